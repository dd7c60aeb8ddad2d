"""The commands: thin; each module holds one group of them."""

from hypermux.cli.root import main

__all__ = ["main"]
