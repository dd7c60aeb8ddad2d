"""Saying things on stderr without ever waiting for whoever reads it.

Stderr may be a full pipe, a stopped terminal or a blocked log driver. A service that waits there
answers no ping and writes no journal, so lines go through a bounded queue to a thread; what finds
it full is counted, and the count is said when there is room again.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import select
import threading

# Lines held for a reader of stderr that stands still: some hundred KiB.
MAX_LINES = 1000
# How long the end of the program waits for the last lines.
FINISH_S = 1.0

_STDERR = 2


class _Writer:
    """The thread and its queue; started by the first line."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._lost = 0
        self._thread: threading.Thread | None = None

    def say(self, line: str) -> None:
        """Queue a line. Never waits, never raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
            self._thread.start()
            atexit.register(self.finish)
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def finish(self) -> None:
        """Return when all is written, or after `FINISH_S`. What is said later is lost."""
        if self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._lines.put_nowait(None)
            self._thread.join(FINISH_S)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if self._lost:
                lost, self._lost = self._lost, 0
                _write(f"(stderr stood still: {lost} lines were left out here)")
            if line is None:
                return
            _write(line)


def _write(line: str) -> None:
    rest = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
    # Without a stderr there is nobody to tell.
    with contextlib.suppress(OSError):
        while rest:
            try:
                rest = rest[os.write(_STDERR, rest) :]
            except BlockingIOError:
                # A terminal shared with a program that made it non-blocking.
                select.select([], [_STDERR], [])


_writer = _Writer()
say = _writer.say
finish = _writer.finish
