"""From where text is to batches of tokens: sources, preparation, packed batches."""
