"""What a service manager is told of us (systemd's `Type=notify`), where it wants to know.

    READY=1                      everything accepts; again after each reload
    RELOADING=1, MONOTONIC_USEC  a reload begins (as `Type=notify-reload` needs it)
    STOPPING=1                   the drain begins
    STATUS=…                     how the sources fare, in a few words
    WATCHDOG=1                   sent by the event loop: where it stands still, nothing goes on

Telling never waits and never fails: a manager that does not listen must not hold up anything.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping

import trio
from attrs import define

from hypermux.model.status import SourceStatus

log = logging.getLogger("hypermux.service")

# How often the words are made anew: they are read by people, and looking at a thousand sources
# takes 25 ms.
STATUS_S = 10.0
# Beats in the time that the manager allows: one may be late, and one may be lost.
_BEATS = 3
# Sources looked at between two awaits: some 5 ms of work.
_AT_ONCE = 200


@define(eq=False)
class Notifier:
    """Tells the manager at `address`; empty: there is none. `watchdog_s`: when it gives us up."""

    address: str = ""
    watchdog_s: float = float("inf")

    @classmethod
    def take(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """Read, and remove, what the manager of process `pid` left in the environment."""
        address = environ.pop("NOTIFY_SOCKET", "")
        micros = environ.pop("WATCHDOG_USEC", "")
        meant = environ.pop("WATCHDOG_PID", str(pid)) == str(pid)
        if address[:1] == "@":
            address = "\0" + address[1:]
        elif address[:1] != "/":  # a virtual machine's manager: not ours
            address = ""
        watched = meant and micros.isdigit() and int(micros) > 0
        return cls(address, int(micros) / 1e6 if watched else float("inf"))

    def tell(self, *lines: str) -> None:
        """Send assignments such as `READY=1`."""
        if not self.address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self.address)
        except OSError as error:
            log.warning("cannot tell the service manager %s: %s", lines[0], error.strerror)

    def ready(self) -> None:
        """All is up, or a reload is over."""
        self.tell("READY=1")

    def reloading(self) -> None:
        """A reload begins."""
        self.tell(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self) -> None:
        """The drain begins."""
        self.tell("STOPPING=1")

    async def run(self, sources: Callable[[], Iterator[SourceStatus]]) -> None:
        """Give signs of life until cancelled; `sources` are whose states make the words."""
        if not self.address:
            return
        pause_s = min(STATUS_S, self.watchdog_s / _BEATS)
        told, due_s = "", trio.current_time()
        while True:
            if self.watchdog_s < float("inf"):
                self.tell("WATCHDOG=1")
            if trio.current_time() >= due_s:
                due_s = trio.current_time() + STATUS_S
                words = await _words(sources())
                if words != told:
                    told = words
                    self.tell(f"STATUS={words}")
            await trio.sleep(pause_s)


async def _words(sources: Iterator[SourceStatus]) -> str:
    states: Counter[str] = Counter()
    for source in sources:
        states[source.state] += 1
        if states.total() % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return "sources: " + ", ".join(f"{count} {state}" for state, count in states.most_common())
