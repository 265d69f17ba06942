"""From a prompt to a script."""
