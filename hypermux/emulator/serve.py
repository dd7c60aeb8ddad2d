"""Running the emulator as a process: sockets, files, signals."""

from __future__ import annotations

import json
import resource
import signal
import ssl
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import trio
from attrs import frozen

from hypermux.emulator.certificates import server_context
from hypermux.emulator.control import Control, serve_control
from hypermux.emulator.files import LineFile, write_accounts
from hypermux.emulator.router import PATH, Router, RouterSettings
from hypermux.model.errors import HypermuxError, Unreachable

# For goodbyes at the end: a connection's own two deadlines, and a little for the many.
SHUTDOWN_S = 3.0


@frozen
class Options:
    """What the command asks for. `directory` keeps the authority; None: beside the accounts."""

    router: RouterSettings
    accounts_file: Path
    host: str = "127.0.0.1"
    port: int = 0
    plain: bool = False
    manifest: Path | None = None
    accept_log: Path | None = None
    control: Path | None = None
    directory: Path | None = None


def run(options: Options) -> None:
    """Serve until SIGINT or SIGTERM, then say goodbye, write the files out and return.

    Says on stdout, in one line of JSON, when it is ready; anything else goes to stderr. Raises
    HypermuxError.
    """
    problem: HypermuxError | None = None
    try:
        trio.run(_run, options)
    except* HypermuxError as group:
        problem = _first(group)
    if problem is not None:
        raise problem


async def serve(
    router: Router,
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a router over TCP, with TLS where a context is given, until cancelled.

    Starts with the port listened on. Raises Unreachable when the address cannot be had.
    """
    try:
        # One socket: with port 0 each address of a name would get a port of its own.
        listener, *others = await trio.open_tcp_listeners(port, host=host)
    except OSError as problem:
        raise Unreachable(f"cannot listen on {host} port {port}: {problem}") from problem
    for other in others:
        await other.aclose()

    async def serve_connection(stream: trio.abc.Stream) -> None:
        if ssl_context is not None:
            # Clients that leave without TLS's own goodbye are ordinary.
            stream = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
        await router.serve_stream(stream)

    task_status.started(listener.socket.getsockname()[1])
    await trio.serve_listeners(serve_connection, [listener])


async def _run(options: Options) -> None:
    with ExitStack() as files, trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        lines = {
            path: files.enter_context(closing(LineFile(path)))
            for path in (options.manifest, options.accept_log)
            if path is not None
        }
        router = Router(
            options.router,
            time.time_ns,
            manifest=lines[options.manifest].write if options.manifest else None,
            accept_log=lines[options.accept_log].write if options.accept_log else None,
            report=_report,
        )
        context, ca = None, None
        if not options.plain:
            directory = options.directory or options.accounts_file.absolute().parent
            context, ca = server_context(directory.absolute(), keep=options.directory is not None)
        _raise_open_files()
        async with trio.open_nursery() as nursery:
            for file in lines.values():
                nursery.start_soon(file.run)
            if options.control is not None:
                await nursery.start(serve_control, options.control, Control(router))
            port = await nursery.start(serve, router, options.host, options.port, context)
            url = f"{'ws' if options.plain else 'wss'}://{_dialled(options.host)}:{port}{PATH}"
            write_accounts(options.accounts_file, router.accounts, url, ca)
            ready = {
                "ready": True,
                "url": url,
                "control": str(options.control.absolute()) if options.control else None,
                "ca": str(ca) if ca else None,
                "accounts": str(options.accounts_file.absolute()),
            }
            print(json.dumps(ready, separators=(",", ":")), flush=True)
            async for _ in signals:
                break
            await router.shutdown(SHUTDOWN_S)
            nursery.cancel_scope.cancel()


def _dialled(host: str) -> str:
    """Return the host as clients on this machine dial it, as it stands in a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _raise_open_files() -> None:
    """Allow as many open files as there may be: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _report(text: str) -> None:
    print(f"emulator: {text}", file=sys.stderr, flush=True)


def _first(group: BaseExceptionGroup[HypermuxError]) -> HypermuxError:
    problem: BaseException = group
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    assert isinstance(problem, HypermuxError)
    return problem
