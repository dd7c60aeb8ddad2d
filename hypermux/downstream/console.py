"""Records on a terminal or in a pipe: the four forms, the colours, and writing to stdout.

json    the record lines, byte for byte
raw     the events alone, as received; what else happened is told on the side
pretty  records as indented JSON, integers exact
line    one line a record, for people
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import IO, Any, Literal, Protocol, TypeAlias

import trio
from attrs import define, field
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from hypermux.core import lines, rendering
from hypermux.core.rendering import LineRenderer, Paint, Palette
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.walk import OpenReader, RunSync, Walk
from hypermux.model.errors import DiskFault
from hypermux.model.records import Kind

Output: TypeAlias = Literal["json", "raw", "line", "pretty"]
Color: TypeAlias = Literal["auto", "always", "never"]

_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}
# Readable on dark and on light grounds; red and yellow mean something else here.
_TAG_COLORS = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
_TAG_COLORS_256 = (
    "color(38)", "color(35)", "color(71)", "color(74)", "color(103)", "color(107)", "color(134)",
    "color(139)", "color(140)", "color(143)", "color(169)", "color(172)", "color(175)", "color(67)",
)  # fmt: skip


class BrokenStdout(BrokenPipeError):
    """Whoever read our stdout has gone: the end of the work, not an error."""


def palette(stream: IO[Any], color: Color = "auto") -> Palette:
    """Return the colours for `stream`: none when it is no terminal or NO_COLOR is set ("auto")."""
    if color == "never":
        return rendering.PLAIN
    console = Console(file=stream, force_terminal=True if color == "always" else None)
    if color == "auto" and (not console.is_terminal or console.no_color):
        return rendering.PLAIN
    system = _SYSTEMS.get(console.color_system or "")
    if system is None:
        if color == "auto":
            return rendering.PLAIN
        system = ColorSystem.STANDARD
    tags = _TAG_COLORS if system is ColorSystem.STANDARD else _TAG_COLORS_256
    paint = partial(_paint, system)
    return Palette(
        tags=tuple(paint(Style(color=name)) for name in tags),
        time=paint(Style(dim=True)),
        action=paint(Style(bold=True)),
        dim=paint(Style(dim=True)),
        gap=paint(Style(color="red", bold=True)),
        warning=paint(Style(color="yellow")),
    )


def _paint(system: ColorSystem, style: Style) -> Paint:
    before, _, after = style.render("x", color_system=system).partition("x")
    return before, after


@define(eq=False)
class Formatter:
    """Turns blocks of record lines into what is printed.

    `aside` is told, in "raw", what has no place among events: losses and unparsed messages.
    """

    output: Output
    renderer: LineRenderer = field(factory=LineRenderer)
    encoding: str = "utf-8"
    aside: Callable[[str], None] | None = None

    @classmethod
    def for_stream(
        cls,
        output: Output,
        stream: IO[Any],
        *,
        color: Color = "auto",
        aside: Callable[[str], None] | None = None,
    ) -> Formatter:
        """Return a formatter that knows the stream's colours, encoding and day."""
        # The side remarks of "raw" go elsewhere, so they are plain.
        colors = palette(stream, color) if output == "line" else rendering.PLAIN
        today = datetime.now().astimezone().date()
        encoding = getattr(stream, "encoding", None) or "utf-8"
        return cls(output, LineRenderer(colors, today=today), encoding, aside)

    def format(self, block: bytes) -> bytes:
        """Return what to print for `block`, whole record lines."""
        if self.output == "json":
            return block
        return b"".join(map(self._one, block.splitlines(keepends=True)))

    def _one(self, line: bytes) -> bytes:
        if self.output == "line":
            text = self.renderer.render(line)
            # A terminal that cannot show a character gets its escape, never an error.
            return b"" if text is None else f"{text}\n".encode(self.encoding, "backslashreplace")
        if self.output == "pretty":
            return rendering.pretty(line)
        raw = lines.event_of(line)
        if raw is not None:
            return raw + b"\n"
        if self.aside is not None and lines.kind_of(line) in (Kind.GAP, Kind.UNPARSED):
            self.aside(self.renderer.render(line) or "")
        return b""


@define(eq=False)
class StdoutWriter:
    """Writes whole batches to a file descriptor, past every buffer of Python's."""

    fd: int = 1

    def write(self, data: bytes) -> None:
        """Write all of `data`. Raises BrokenStdout when nobody reads, DiskFault when it fails."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.fd, rest) :]
            except BlockingIOError:
                # A terminal shared with a program that made it non-blocking.
                select.select([], [self.fd], [])
            except BrokenPipeError as exc:
                raise BrokenStdout from exc
            except OSError as exc:
                raise DiskFault(f"cannot write to stdout: {exc.strerror}") from exc

    def gone(self) -> bool:
        """Say whether our reader has gone."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(ready & select.POLLERR for _, ready in poll.poll(0))

    def wait_unless_gone(self, source: socket.socket) -> None:
        """Return when `source` can be read. Raises BrokenStdout when our own reader has gone.

        Without it `tail | head -1` would only notice at the next record.
        """
        poll = select.poll()
        poll.register(source, select.POLLIN)
        poll.register(self.fd, 0)
        while (ready := dict(poll.poll())).keys() == {self.fd}:
            if ready[self.fd] & select.POLLERR:
                raise BrokenStdout
            poll.unregister(self.fd)  # a terminal that was hung up: writing will tell


class Printer(Protocol):
    """Turns blocks of record lines into what is written; a `Formatter` is one."""

    def format(self, block: bytes) -> bytes:
        """Return what to write for whole record lines."""


async def run_console(
    horizon: Horizon,
    open_reader: OpenReader,
    printer: Printer,
    writer: StdoutWriter,
    *,
    after: int,
    run_sync: RunSync,
) -> None:
    """Print every record behind `after` until the horizon has ended.

    Raises BrokenStdout and DiskFault. A reader of our stdout that stands still holds up this
    task alone: the journal is its queue.
    """
    walk = Walk(horizon, open_reader, run_sync, after)
    printing = trio.CapacityLimiter(1)
    try:
        while True:
            ended = horizon.ended
            block = await walk.read(horizon.position)
            if block:
                text = printer.format(block)
                # Abandoned when cancelled: a write into a full pipe may never come back.
                await trio.to_thread.run_sync(
                    writer.write, text, limiter=printing, abandon_on_cancel=True
                )
            elif ended:
                return
            else:
                await walk.wait()
    finally:
        walk.close()
