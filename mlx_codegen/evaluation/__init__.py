"""What a model's scripts are worth: the sandbox they run in, and what is measured there."""
