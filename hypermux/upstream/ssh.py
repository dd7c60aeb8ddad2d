"""Engines over ssh, as the Docker CLI reaches them: `ssh HOST docker system dial-stdio`.

HTTP is spoken over the stdin and stdout of that process, so there is never a terminal and nobody
to ask: BatchMode, a session of its own, no askpass. Who is let in and which host keys count is for
the user's own ssh configuration, and so are the address, port and jump hosts behind a name. Set
here is what an unattended stream needs: keepalives, and a connection that is not shared with other
sessions (its end and its keepalives would be theirs). No shell on this side sees the command; on
the other side there always is one, so all its words are plain (see `Endpoint.parse`).

An engine whose socket is named, as in `ssh://HOST/run/podman/podman.sock`, is asked for by
`podman --url`, or by `docker --host` when the path does not speak of Podman; without a path it is
Docker's default one. Nothing is guessed: a second login for a second guess would be one more than
the permit is for.

That ssh has connected is seen by the engine's answer to `HEAD /_ping`, and the dial ends with it:
up to there a failure is the dial's, and ssh's own words on stderr say which one.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import subprocess

import h11
import trio
from attrs import define, field

from hypermux.core.wording import printable
from hypermux.model.accounts import Endpoint
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import answers, faults

# A host that went silent is noticed after 7 x (3 + 1) = 28 s.
ALIVE_INTERVAL_S, ALIVE_COUNT = 7, 3
# What is kept of stderr, from its end: ssh's last words are the reason.
_MAX_SAID = 8192
# How long ssh may take from closing stdout to its end, which tells why.
_LAST_WORDS_S = 2.0
# How long ssh may take to end when told to, and then when killed.
_TERMINATE_S, _KILL_S = 1.0, 5.0
_MAX_HEAD = 16 * 1024
_READ_SIZE = 65536
_OWN_FAULT = 255  # ssh's exit code for its own failures; others are the command's over there


def command(endpoint: Endpoint, timeout_s: float) -> list[str]:
    """Return the ssh command line for an endpoint; `timeout_s` is for connecting."""
    options = (
        "BatchMode=yes",
        f"ConnectTimeout={max(1, math.ceil(timeout_s))}",
        f"ServerAliveInterval={ALIVE_INTERVAL_S}",
        f"ServerAliveCountMax={ALIVE_COUNT}",
        "ControlPath=none",
        "ControlMaster=no",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        "LogLevel=INFO",  # QUIET would hide the reason of a failure
    )
    words = ["ssh", "-T", "-a", "-x", *(word for option in options for word in ("-o", option))]
    return [*words, *_target(endpoint), *_remote_command(endpoint.path)]


def _target(endpoint: Endpoint) -> list[str]:
    words = ["-l", endpoint.user] if endpoint.user else []
    words += ["-p", str(endpoint.port)] if endpoint.port else []
    return [*words, "--", endpoint.host]


def _remote_command(path: str) -> list[str]:
    if not path:
        return ["docker", "system", "dial-stdio"]
    engine = ["podman", "--url"] if "podman" in path else ["docker", "--host"]
    return [*engine, f"unix://{path}", "system", "dial-stdio"]


async def dial_ssh(endpoint: Endpoint, timeout_s: float) -> trio.abc.Stream:
    """Return a stream to the engine of an `ssh` endpoint, which has answered over it.

    `timeout_s`: for ssh to connect, and again for login and the engine's answer. The stream's
    `receive_some` raises ConnectionFailed when ssh fails. Raises ConnectionFailed.
    """
    stream = SshStream.over(endpoint, await _start(command(endpoint, timeout_s)))
    trio.lowlevel.spawn_system_task(stream.listen)
    try:
        with trio.move_on_after(2 * timeout_s):
            await _await_engine(stream)
            return stream
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    await trio.aclose_forcefully(stream)
    said = f": {stream.last_line}" if stream.last_line else ""
    text = f"{stream.who}: no answer of the engine within {2 * timeout_s:g} s{said}"
    raise ConnectionFailed(Failure(FailureKind.TIMEOUT, text))


async def _start(argv: list[str]) -> trio.Process:
    try:
        return await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Without a terminal nothing can ask, and Ctrl-C is ours: the stream is drained first.
            start_new_session=True,
            env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
        )
    except OSError as exc:
        if exc.errno in faults.SHORTAGES:
            raise ConnectionFailed(faults.shortage(exc, "starting ssh")) from exc
        text = f"the ssh command cannot be started: {faults.os_words(exc)}"
        raise ConnectionFailed(Failure(FailureKind.SETUP, text)) from exc


async def _await_engine(stream: SshStream) -> None:
    """Ask the engine for a sign of life; any answer will do. Raises ConnectionFailed."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    request = h11.Request(method="HEAD", target="/_ping", headers=[("Host", "docker")])
    sent = (http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b"")
    with contextlib.suppress(trio.BrokenResourceError):  # what is read then says why
        await stream.send_all(sent)
    start = b""
    try:
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                data = bytes(await stream.receive_some(_READ_SIZE))
                if not data:
                    raise ConnectionFailed(stream.failure())
                start = start or data
                http.receive_data(data)
    except h11.RemoteProtocolError as exc:
        detail = answers.not_http(start, who=stream.who).detail.removeprefix("handshake: ")
        text = f"{detail}; the start-up files of the shell over there must print nothing"
        raise ConnectionFailed(Failure(FailureKind.PROTOCOL, text)) from exc
    if http.their_state is not h11.DONE or http.trailing_data[0]:
        text = f"{stream.who}: the engine does not keep the connection open"
        raise ConnectionFailed(Failure(FailureKind.PROTOCOL, text))
    stream.proven = True


@define(eq=False)
class SshStream(trio.abc.Stream):
    """The stdin and stdout of an ssh process. `proven`: the engine has answered over it.

    However it is closed, the process is ended and waited for.
    """

    endpoint: Endpoint
    process: trio.Process
    stdin: trio.lowlevel.FdStream
    stdout: trio.lowlevel.FdStream
    stderr: trio.lowlevel.FdStream
    proven: bool = False
    _said: bytearray = field(factory=bytearray)
    _silent: trio.Event = field(factory=trio.Event)  # stderr is at its end

    @classmethod
    def over(cls, endpoint: Endpoint, process: trio.Process) -> SshStream:
        """Make the stream of a process with pipes on all three."""
        pipes = (process.stdin, process.stdout, process.stderr)
        return cls(endpoint, process, *pipes)  # type: ignore[arg-type]  # FdStreams on Unix

    @property
    def who(self) -> str:
        """What failures call the host."""
        return f"ssh to {self.endpoint.host}"

    @property
    def last_line(self) -> str:
        """The last line of stderr, fit to be shown; empty when there is none."""
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines()]
        return printable(next((line for line in reversed(lines) if line), ""))

    async def listen(self) -> None:
        """Read stderr to its end, so that nobody over there waits for a reader."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in self.stderr:
                self._said += piece
                del self._said[:-_MAX_SAID]
        self._silent.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write to ssh's stdin."""
        await self.stdin.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room in ssh's stdin."""
        await self.stdin.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read from ssh's stdout.

        Returns b"" when the engine ended the stream; raises ConnectionFailed when ssh did.
        """
        data = await self.stdout.receive_some(max_bytes)
        if data:
            return data
        with trio.move_on_after(_LAST_WORDS_S):
            await self.process.wait()
            await self._silent.wait()
        status = self.process.returncode
        if self.proven and status is not None and 0 <= status < _OWN_FAULT:
            return b""
        raise ConnectionFailed(self.failure())

    def fileno(self) -> int:
        """Return the descriptor that is read from."""
        return self.stdout.fileno()

    def failure(self) -> Failure:
        """Return why ssh came to its end, by its exit code and its words."""
        said = self._said.decode(errors="replace")
        return end_of_ssh(self.endpoint, self.process.returncode, said, self.last_line, self.proven)

    async def aclose(self) -> None:
        """End the process, with what it started itself, and wait until it is gone."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
        for number, patience_s in ((signal.SIGTERM, _TERMINATE_S), (signal.SIGKILL, _KILL_S)):
            if self.process.returncode is not None:
                break
            # Its own group: a ProxyCommand or a jump host's ssh must not stay behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with trio.move_on_after(patience_s, shield=True):
                await self.process.wait()
        await trio.lowlevel.checkpoint()


# What ssh says when it fails itself, in the order of looking: the kind, and what it means to us.
_WORDS: tuple[tuple[str, FailureKind, str], ...] = (
    (
        "IDENTIFICATION HAS CHANGED",
        FailureKind.TLS,
        "the host shows another key than the one known for it: see `{by_hand}`",
    ),
    (
        "Host key verification failed",
        FailureKind.TLS,
        "the host's key is not known to this user: `{by_hand}` asks once whether to accept it",
    ),
    ("Could not resolve hostname", FailureKind.RESOLVE, "{said}"),
    (
        "Permission denied (",
        FailureKind.ACCESS,
        "no key of ours is accepted for {user}: {said}; it must work without a question",
    ),
    ("Too many authentication failures", FailureKind.ACCESS, "{said}"),
    ("No supported authentication", FailureKind.ACCESS, "{said}"),
    ("not responding", FailureKind.SILENT, "the host does not answer any more"),
    ("onnection refused", FailureKind.CONNECT, "connection refused: nothing listens there"),
    ("No route to host", FailureKind.CONNECT, "no route to the host"),
    ("Network is unreachable", FailureKind.CONNECT, "no route to the network"),
    ("timed out", FailureKind.TIMEOUT, "the host does not answer"),
    ("bad configuration option", FailureKind.SETUP, "its configuration: {said}"),
    ("Bad configuration option", FailureKind.SETUP, "its configuration: {said}"),
    ("Bad owner or permissions", FailureKind.SETUP, "its configuration: {said}"),
    ("Unable to negotiate", FailureKind.SETUP, "{said}"),
)


def end_of_ssh(
    endpoint: Endpoint, status: int | None, said: str, last_line: str, proven: bool
) -> Failure:
    """Return what the end of ssh means.

    `status` is its exit code (None: it has closed its output, no more), `said` what it wrote to
    stderr, `proven`: the engine had answered.
    """
    where = f"ssh to {endpoint.host}"
    otherwise = FailureKind.RESET if proven else FailureKind.EOF
    if status == _OWN_FAULT:
        for needle, kind, words in _WORDS:
            if needle in said:
                user = endpoint.user or "this user"
                by_hand = shlex.join(["ssh", *_target(endpoint)])
                text = words.format(by_hand=by_hand, user=user, said=last_line)
                return Failure(kind, f"{where}: {text}")
        return Failure(otherwise, f"{where}: {last_line or 'it failed without a word'}")
    if status is not None and status < 0:
        return Failure(otherwise, f"{where}: it was ended by signal {-status}")
    if status in (126, 127):
        program = "podman" if "podman" in endpoint.path else "docker"
        hint = "; for Podman name its socket: ssh://HOST/run/podman/podman.sock"
        text = f"{where}: there is no {program} command for this user over there"
        return Failure(FailureKind.SETUP, text + (hint if program == "docker" else ""))
    if last_line:
        # The command's own words: it is there, and does not reach the engine.
        return Failure(FailureKind.CONNECT, f"{where}: {last_line}")
    return Failure(otherwise, f"{where}: the connection ended")
