"""What becomes of the records that `tail` reads: printed, or handed to a command, and how far.

The cursor file is written behind what has been done, so that whatever ends the program, a record
is done again rather than not at all. How much again, after a kill -9:

    printing    what the last write to stdout had: a block of at most 128 KiB, or one longer record
    a command   the one record that it was at

A line that was cut off by that kill in a file is ended there before anything else is written.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Protocol

from attrs import define, field

from hypermux.client import ClientError, CursorFile
from hypermux.core.lines import seq_of
from hypermux.downstream.console import Printer, StdoutWriter
from hypermux.downstream.follow import READ, Block
from hypermux.downstream.handing import Command
from hypermux.model.errors import DiskFault, UsageFault
from hypermux.model.records import Cursor

# A sync costs a disk milliseconds; what a power cut takes back is done again.
SYNC_S = 1.0
# A command may take seconds for each record. The service closes a connection on which it makes no
# progress while more waits, and sees some each time that we read.
_READ_FOR_COMMANDS = 4096


class Consumer(Protocol):
    """What takes the blocks. `read_size` is how much of the stream to take at once."""

    read_size: int

    def take(self, block: Block) -> None:
        """Do what is to be done with a block, and note that it was."""


@define(eq=False)
class Place:
    """The cursor file, if there is one; synced once a second while it moves."""

    file: CursorFile | None = None
    _synced_s: float = field(factory=time.monotonic)

    @classmethod
    def open(cls, path: str) -> Place:
        """Take a cursor file. Raises UsageFault, DiskFault."""
        try:
            return cls(CursorFile(path))
        except ClientError as error:
            raise UsageFault(f"--cursor-file: {error}") from None
        except OSError as error:
            raise DiskFault(f"--cursor-file {path}: {error.strerror}") from None

    @property
    def cursor(self) -> str | None:
        """What the file holds."""
        return None if self.file is None else self.file.load()

    def save(self, cursor: Cursor) -> None:
        """Note that all up to `cursor` is done. Raises DiskFault."""
        if self.file is None:
            return
        try:
            self.file.save(str(cursor))
            now = time.monotonic()
            if now - self._synced_s >= SYNC_S:
                self._sync()
                self._synced_s = now
        except OSError as error:
            raise DiskFault(f"--cursor-file {self.file.path}: {error.strerror}") from None

    def _sync(self) -> None:
        assert self.file is not None
        # What was printed into a file has to be there before the cursor says so.
        if stat.S_ISREG(os.fstat(1).st_mode):
            os.fdatasync(1)
        self.file.sync()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        """Sync the file and give it back. Raises DiskFault."""
        if self.file is not None:
            try:
                self._sync()
            except OSError as error:
                raise DiskFault(f"--cursor-file {self.file.path}: {error.strerror}") from None
            finally:
                self.file.close()


@define(eq=False)
class Printing:
    """Prints block by block."""

    printer: Printer
    writer: StdoutWriter = field(factory=StdoutWriter)
    place: Place = field(factory=Place)
    read_size: int = READ

    def take(self, block: Block) -> None:
        """See `Consumer`. Raises BrokenStdout, DiskFault."""
        if block.lines:
            self.writer.write(self.printer.format(block.lines))
        self.place.save(block.cursor)


@define(eq=False)
class Handing:
    """Hands record by record to a command."""

    printer: Printer
    command: Command
    place: Place
    read_size: int = _READ_FOR_COMMANDS

    def take(self, block: Block) -> None:
        """See `Consumer`. Raises KeyboardInterrupt, BrokenStdout, DiskFault."""
        for line in block.lines.splitlines(keepends=True):
            cursor = Cursor(block.cursor.epoch, seq_of(line))
            text = self.printer.format(line)
            if text:  # "raw" has no place for some kinds
                self.command.hand(text, cursor)
            self.place.save(cursor)
            if self.command.stopping:
                raise KeyboardInterrupt
        self.place.save(block.cursor)


def end_cut_line(fd: int = 1) -> None:
    """End a line that a kill cut off in the file that `fd` appends to."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return
    try:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # not readable for us: nobody knows
    try:
        last = os.pread(reader, 1, found.st_size - 1)
    finally:
        os.close(reader)
    # `>` begins at the start of what it has just emptied, `>>` at the end.
    if last != b"\n":
        os.write(fd, b"\n")
