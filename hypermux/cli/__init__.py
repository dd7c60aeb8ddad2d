"""The commands: thin; each module holds one group of them."""

try:
    from hypermux.cli.root import main
except KeyboardInterrupt:  # Ctrl-C while all this loads; later `main` answers for it
    raise SystemExit(130) from None

__all__ = ["main"]
