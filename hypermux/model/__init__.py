"""Values that every room speaks in: no I/O, no TOML, no wire formats."""
