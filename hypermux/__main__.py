"""`python -m hypermux`."""

from hypermux.cli import main

main()
