"""Hypermux commands under way."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from util_lib import cases

ROOT = Path(__file__).resolve().parents[2]
# A process that starts on a busy machine, and a connection over TLS.
READY_WITHIN_S = 30.0
ENDS_WITHIN_S = 5.0
READY_LINE = "connected, watching event now:"


class Process:
    """A hypermux command under way; its output is collected by two threads."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.out: queue.Queue[str | None] = queue.Queue()
        self.said: list[str] = []
        self.ready = threading.Event()
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hypermux", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._threads = [
            threading.Thread(target=self._collect, args=(self._process.stdout,)),
            threading.Thread(target=self._listen, args=(self._process.stderr,)),
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, stream: TextIO) -> None:
        for line in stream:
            self.out.put(line)
        self.out.put(None)
        stream.close()

    def _listen(self, stream: TextIO) -> None:
        for line in stream:
            self.said.append(line)
            if READY_LINE in line:
                self.ready.set()
        self.ready.set()  # it will not be any more: whoever waits finds it ended
        stream.close()

    def line_within(self, seconds: float) -> str:
        """Return the next line of its stdout."""
        try:
            line = self.out.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise cases.Trouble(
                f"hypermux said nothing for {seconds:.0f} s: {self.words()}"
            ) from None
        if line is None:
            raise cases.Trouble(f"hypermux ended: {self.words()}")
        return line

    def wait_ready(self) -> None:
        """Wait until its stderr says that it is connected."""
        if not self.ready.wait(READY_WITHIN_S) or not any(READY_LINE in s for s in self.said):
            raise cases.Trouble(f"hypermux watch did not connect: {self.words()}")

    def words(self) -> str:
        """Return the end of what it said on stderr."""
        return "".join(self.said[-5:]).strip() or "(nothing on stderr)"

    def end(self) -> None:
        """End it, in order if it will."""
        self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[Process]:
    """Run a hypermux command for as long as the block lasts."""
    process = Process(arguments)
    try:
        yield process
    finally:
        process.end()
