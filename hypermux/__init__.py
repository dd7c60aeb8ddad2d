"""hypermux: many signed event streams, one durable, totally ordered stream.

The rooms, from the bottom up. A room imports only from the rooms before it
(`tests/unit/test_layers.py` keeps it so):

- `model`: values and errors; no I/O, no file formats, no wire formats.
- `core`: decisions; no trio, clock, random source or files: `now` and `rng` are arguments.
- `config`: the accounts file and credentials, read into frozen settings.
- `upstream`, `downstream`: connections on one side, journal and readers on the other;
  they meet only in the sequencer's inbox.
- `emulator`: a local API router to test against; shares nothing with the client but `core.filters`.
- `service`: the composition root.
- `client`: reading the stream from a program: one file that may be copied elsewhere, so that it
  imports nothing from here.
- `cli`: the commands.
"""

__version__ = "0.1.0"
