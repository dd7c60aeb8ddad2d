"""Handing records to a command: one run each, one after the other, none passed over.

The command is a shell's line, as for `watch` and `ssh`: a record is on its standard input and
never in its text, so nothing that a server sent is ever interpreted. HYPERMUX_CURSOR is the place
behind the record, for commands that keep it with their outcome.

Exit status 0 means done. With any other the same record is tried again: what comes later waits,
because a consumer that may skip needs no `--exec`.

A first Ctrl-C or SIGTERM lets the command that runs come to its end (a terminal sends Ctrl-C to it,
too; SIGTERM is passed on), so that what it has done counts; a second one kills it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from types import FrameType

from attrs import define

from hypermux.core.backoff import full_jitter
from hypermux.downstream.console import BrokenStdout
from hypermux.model.records import Cursor

# A command that fails at once is run four times in the first seconds, then about twice a minute:
# what it waits for (a server, a disk) is rarely back sooner, and nobody's machine is kept busy.
RETRY_MIN_S, RETRY_MAX_S = 0.5, 60.0


@define(eq=False)
class Command:
    """What runs for each record. `nobody_reads` tells that our own stdout leads nowhere."""

    text: str
    notice: Callable[[str], None]
    sleep: Callable[[float], None]
    rng: random.Random
    nobody_reads: Callable[[], bool] = lambda: False
    stopping: bool = False
    _busy: bool = False
    _child: subprocess.Popen[bytes] | None = None
    _terminate: bool = False

    def hand(self, data: bytes, cursor: Cursor) -> None:
        """Return when the command has taken a record.

        Raises KeyboardInterrupt when that was to be its end, BrokenStdout when nobody reads what
        it prints.
        """
        attempt = 0
        while (status := self._run(data, cursor)) != 0:
            if self.stopping:
                raise KeyboardInterrupt
            if self.nobody_reads():
                raise BrokenStdout
            delay = full_jitter(attempt, min_s=RETRY_MIN_S, max_s=RETRY_MAX_S, rng=self.rng)
            self.notice(f"the command {_ended(status)} at {cursor}; again in {delay:.1f} s")
            self.sleep(delay)
            attempt += 1

    def _run(self, data: bytes, cursor: Cursor) -> int:
        self._busy = True
        try:
            child = self._child = subprocess.Popen(
                ["/bin/sh", "-c", self.text],
                stdin=subprocess.PIPE,
                env={**os.environ, "HYPERMUX_CURSOR": str(cursor)},
            )
            if self._terminate:  # told while it was being started
                child.terminate()
            try:
                child.communicate(data)  # a command need not read what it is given
            except BaseException:
                child.kill()
                child.wait()
                raise
            return child.returncode
        finally:
            self._busy, self._child = False, None

    def stop(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; see above. Raises KeyboardInterrupt when no command runs."""
        if self.stopping or not self._busy:
            raise KeyboardInterrupt
        self.stopping = True
        if number == signal.SIGTERM:
            self._terminate = True
            if self._child is not None:
                self._child.terminate()


def _ended(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"exited with {status}"
