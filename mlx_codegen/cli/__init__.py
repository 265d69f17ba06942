"""The terminal: one small file per command. Parses, calls the library, draws with rich; nothing imports it."""
