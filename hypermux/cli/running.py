"""Running a service from a command: signals, the overall deadline, open files."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

import trio

from hypermux.cli import stderr
from hypermux.config.settings import Settings
from hypermux.downstream.activation import Passed
from hypermux.service import (
    LAST_COMMIT_S,
    READERS_END_S,
    UPSTREAM_END_S,
    Reader,
    Service,
)
from hypermux.service.notifying import Notifier
from hypermux.service.observing import LoggedObserver
from hypermux.service.seams import Seams
from hypermux.upstream.link import Observer

log = logging.getLogger("hypermux.run")

EXIT_UNDELIVERED = 75
_SIGNALS = (signal.SIGINT, signal.SIGHUP)


async def run_service(
    settings: Settings,
    *,
    readers: Sequence[Reader] = (),
    observer: Observer | None = None,
    serve_socket: bool = True,
    shutdown: trio.Event | None = None,
    at_exit: Callable[[], None] = lambda: None,
    on_reload: Callable[[Settings], None] | None = None,
    passed: Sequence[Passed] = (),
    notifier: Notifier | None = None,
) -> None:
    """Run a service until SIGINT, SIGTERM or `shutdown`, then drain it.

    SIGHUP reloads it when there is an `on_reload`, which is told the new settings; without one it
    is a closed terminal, and ends the program no less than Ctrl-C does. `at_exit` is called before
    the process ends without draining. `passed` and `notifier` are the service manager's, if any.
    """
    raise_open_files()
    if shutdown is None:
        shutdown = trio.Event()
    service = Service(
        settings,
        Seams.real(settings),
        observer or LoggedObserver(),
        on_reload or (lambda _: None),
        passed,
        notifier or Notifier(),
    )
    # One that waits stands for all that come before it is heeded: it reads what is there then.
    hang_up, hang_ups = trio.open_memory_channel[None](1)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Service]) -> None:
            await service.run(
                shutdown, readers=readers, serve_socket=serve_socket, task_status=task_status
            )
            nursery.cancel_scope.cancel()

        await nursery.start(
            partial(_obey_signals, shutdown, at_exit, None if on_reload is None else hang_up)
        )
        await nursery.start(run)
        async for _ in hang_ups:
            try:
                await service.reload("SIGHUP")
            except Exception:  # a fault of ours, and no reason to stop
                log.exception("reload by SIGHUP failed")


async def _obey_signals(
    shutdown: trio.Event,
    at_exit: Callable[[], None],
    hang_up: trio.MemorySendChannel[None] | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Set `shutdown` at the first signal; end the process at the second, or when draining hangs.

    With `hang_up` SIGHUP goes there instead.
    """
    # What whoever started us chose to ignore stays ignored (nohup, a script's background job).
    heeded = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    with trio.open_signal_receiver(signal.SIGTERM, *heeded) as signals:
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_overdue, shutdown, at_exit)
            async for number in signals:
                if number == signal.SIGHUP and hang_up is not None:
                    with contextlib.suppress(trio.WouldBlock):
                        hang_up.send_nowait(None)
                    continue
                if shutdown.is_set():
                    _end_at_once("second signal", at_exit)
                log.info("%s: draining; once more ends at once", signal.Signals(number).name)
                shutdown.set()


async def _end_when_overdue(shutdown: trio.Event, at_exit: Callable[[], None]) -> None:
    await shutdown.wait()
    await trio.sleep(UPSTREAM_END_S + LAST_COMMIT_S + READERS_END_S + 5.0)
    _end_at_once("draining took too long", at_exit)


def _end_at_once(why: str, at_exit: Callable[[], None]) -> NoReturn:
    log.error("%s: ending at once; the journal is as last synced", why)
    stderr.finish()
    at_exit()
    os._exit(EXIT_UNDELIVERED)


def raise_open_files() -> None:
    """Raise the soft limit on open files to the hard one: each connection and reader takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
