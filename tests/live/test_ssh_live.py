"""Engines over ssh: a real client, a real sshd on loopback, a real dockerd behind it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import dockerd
import pytest
import trio
import trio.lowlevel
from processes import end, wait_until
from sshd import Sshd, descendants, running_sshd
from test_docker_live import Heard
from test_resume_live import Watch

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.model.accounts import Endpoint, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import ssh
from hypermux.upstream.dialing import SocketDialer, trust_of
from hypermux.upstream.diverting import READ_SIZE, unread
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.ssh import SshStream

pytestmark = [pytest.mark.live, pytest.mark.slow]

WAIT_S = 30.0


@pytest.fixture(scope="module")
def engine() -> Iterator[dockerd.Engine]:
    with dockerd.running_dockerd() as engine:
        yield engine


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def server(running: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """The server as a client expects it, and no process of ours left behind."""
    running.reset()
    monkeypatch.setenv("PATH", f"{running.home}/bin:{os.environ['PATH']}")
    before = set(descendants(os.getpid()))
    yield running
    # A session may end between the two looks: then look again.
    wait_until(
        lambda: set(descendants(os.getpid())) - before <= set(running.sessions()), "ssh to end", 5
    )


def to(engine: dockerd.Engine, host: str = "build1") -> Endpoint:
    return Endpoint.parse(f"ssh://{host}{engine.socket}")


async def dial(endpoint: Endpoint, timeout_s: float = 10.0) -> SshStream:
    stream = await SocketDialer(dial_timeout_s=timeout_s).dial(endpoint, Tls())
    assert isinstance(stream, SshStream)
    return stream


async def dial_failure(endpoint: Endpoint, timeout_s: float = 10.0) -> Failure:
    with pytest.raises(ConnectionFailed) as failed:
        await dial(endpoint, timeout_s)
    assert failed.value.failure.detail.startswith("ssh to ")
    return failed.value.failure


@asynccontextmanager
async def watching(endpoint: Endpoint) -> AsyncIterator[Heard]:
    """Read the engine's stream while the block runs; `failure` is set when it ends by itself."""
    heard = Heard()

    async def watch() -> None:
        try:
            await stream_docker(
                Source(SourceId("ci", "build1"), "docker", endpoint),
                dialer=SocketDialer(dial_timeout_s=10),
                listener=heard,
                settings=ConnectionSettings(),
            )
        except ConnectionFailed as failed:
            heard.failure = failed.failure
            heard._change()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await heard.until(lambda: bool(heard.openings) or heard.failure is not None)
        yield heard
        nursery.cancel_scope.cancel()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not condition():  # noqa: ASYNC110 - processes set no event
            await trio.sleep(0.01)


async def test_events_come_over_ssh(server: Sshd, engine: dockerd.Engine) -> None:
    endpoint = to(engine)
    assert trust_of(endpoint, Tls()) == "off"
    async with watching(endpoint) as heard:
        assert heard.failure is None
        for number in range(20):
            engine.run("volume", "create", f"over-ssh-{number}")
        await heard.until(lambda: len(heard.messages) >= 20)
        assert heard.actions == ["volume create"] * 20
    await trio.lowlevel.checkpoint()


async def test_the_default_socket_and_a_user(server: Sshd, engine: dockerd.Engine) -> None:
    # Over there DOCKER_HOST takes the place of /var/run/docker.sock, which is not the test's.
    server.authorize(f'environment="DOCKER_HOST=unix://{engine.socket}"')
    stream = await dial(Endpoint.parse(f"ssh://{getpass.getuser()}@build1:{server.port}"))
    await stream.aclose()


async def test_podman_over_ssh(server: Sshd) -> None:
    with dockerd.running_podman() as engine:
        assert "podman" in engine.socket.name
        async with watching(to(engine)) as heard:
            assert heard.failure is None
            engine.run("volume", "create", "over-ssh")
            await heard.until(lambda: bool(heard.messages))


async def test_a_large_answer_says_what_is_unread(server: Sshd, engine: dockerd.Engine) -> None:
    stream = await dial(to(engine))
    async with stream:
        await stream.send_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
        data = await stream.receive_some(10)
        assert len(data) == 10
        assert unread(stream, READ_SIZE)  # as if that had been a full read
        rest = await stream.receive_some(READ_SIZE)
        assert bytes(data + rest).endswith(b"OK")
        assert not unread(stream, READ_SIZE)


async def test_host_keys(server: Sshd, engine: dockerd.Engine) -> None:
    server.know_host_key("other")
    changed = await dial_failure(to(engine))
    assert changed.kind is FailureKind.TLS
    assert "another key than the one known" in changed.detail
    (server.home / "known_hosts").write_text("")
    unknown = await dial_failure(to(engine))
    assert unknown.kind is FailureKind.TLS
    assert "`ssh -- build1` asks once" in unknown.detail
    assert (server.home / "known_hosts").read_text() == ""


async def test_the_configuration_of_the_user_decides(server: Sshd, engine: dockerd.Engine) -> None:
    (server.home / "known_hosts").write_text("")
    server.configure("StrictHostKeyChecking accept-new", "RemoteCommand false", "RequestTTY force")
    await (await dial(to(engine))).aclose()
    assert (server.home / "known_hosts").read_text()


async def test_a_key_that_is_refused(server: Sshd, engine: dockerd.Engine) -> None:
    (server.home / "authorized_keys").write_text((server.home / "stranger.pub").read_text())
    failure = await dial_failure(to(engine))
    assert failure.kind is FailureKind.ACCESS
    assert "Permission denied (publickey)" in failure.detail


async def test_a_key_with_a_passphrase_asks_nobody(server: Sshd, engine: dockerd.Engine) -> None:
    locked = server.home / "id"
    keep = locked.read_bytes()
    done = await trio.run_process(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "passphrase", "-f", str(locked)]
    )
    assert done.returncode == 0
    try:
        with trio.fail_after(8):
            failure = await dial_failure(to(engine))
    finally:
        locked.write_bytes(keep)
    assert failure.kind is FailureKind.ACCESS


async def test_nothing_there(server: Sshd, engine: dockerd.Engine) -> None:
    refused = await dial_failure(Endpoint.parse("ssh://127.0.0.1:1"))
    assert refused.kind is FailureKind.CONNECT
    assert refused.detail == "ssh to 127.0.0.1: connection refused: nothing listens there"
    nowhere = await dial_failure(Endpoint.parse("ssh://no-such-name.invalid"))
    assert nowhere.kind is FailureKind.RESOLVE
    missing = await dial_failure(Endpoint.parse(f"ssh://build1{engine.socket}.not"))
    assert missing.kind is FailureKind.CONNECT
    assert "docker.sock.not" in missing.detail


async def test_no_docker_command_over_there(server: Sshd) -> None:
    server.authorize('environment="PATH=/nowhere"')
    failure = await dial_failure(Endpoint.parse("ssh://build1"))
    assert failure.kind is FailureKind.SETUP
    assert "there is no docker command" in failure.detail


async def test_a_talkative_shell(server: Sshd, engine: dockerd.Engine) -> None:
    command = f"echo Welcome; exec docker --host unix://{engine.socket} system dial-stdio"
    server.authorize(f'command="{command}"')
    failure = await dial_failure(Endpoint.parse("ssh://build1"))
    assert failure.kind is FailureKind.PROTOCOL
    assert "begins 'Welcome" in failure.detail
    # On stderr it may say what it likes, however much.
    noise = "head -c 300000 /dev/zero | tr '\\\\0' x >&2"
    server.authorize(f'command="{noise}; {command.removeprefix("echo Welcome; ")}"')
    stream = await dial(Endpoint.parse("ssh://build1"))
    assert len(stream._said) <= ssh._MAX_SAID
    await stream.aclose()


async def test_no_ssh_here(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConnectionFailed) as failed:
        await dial(Endpoint.parse("ssh://build1"))
    assert failed.value.failure.kind is FailureKind.SETUP
    assert failed.value.failure.detail == "the ssh command cannot be started: no such file"


async def test_a_host_that_does_not_answer(server: Sshd, engine: dockerd.Engine) -> None:
    with server.standing_still():
        failure = await dial_failure(to(engine), timeout_s=0.6)
    assert failure.kind is FailureKind.TIMEOUT
    server.authorize('command="sleep 60"')
    failure = await dial_failure(to(engine), timeout_s=0.6)
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.detail == "ssh to build1: no answer of the engine within 1.2 s"


async def test_a_host_that_dies_is_noticed(
    server: Sshd, engine: dockerd.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "ALIVE_INTERVAL_S", 1)
    async with watching(to(engine)) as heard:
        assert heard.failure is None
        began = trio.current_time()
        with server.standing_still(*server.sessions()):
            await heard.until(lambda: heard.failure is not None)
        assert heard.failure is not None
        assert heard.failure.kind is FailureKind.SILENT
        assert 2 < trio.current_time() - began < 8  # 1 x (3 + 1) s


async def test_streams_that_break(server: Sshd, engine: dockerd.Engine) -> None:
    async with watching(to(engine)) as heard:
        for pid in server.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await heard.until(lambda: heard.failure is not None)
        assert heard.failure is not None
        assert heard.failure.kind is FailureKind.RESET
    stream = await dial(to(engine))
    stream.process.kill()
    with pytest.raises(ConnectionFailed) as failed:
        await stream.receive_some()
    assert failed.value.failure.kind is FailureKind.RESET
    await stream.aclose()


async def test_an_engine_that_stops(server: Sshd) -> None:
    with dockerd.running_dockerd() as short_lived:
        async with watching(to(short_lived)) as heard:
            assert heard.failure is None
            await trio.to_thread.run_sync(short_lived.stop)
            await heard.until(lambda: heard.failure is not None)
            assert heard.failure is not None
            assert heard.failure.kind is FailureKind.EOF


async def test_cancelling_leaves_no_process(server: Sshd, engine: dockerd.Engine) -> None:
    before = set(descendants(os.getpid()))

    def ours() -> set[int]:
        return set(descendants(os.getpid())) - before - set(server.sessions())

    # In the middle of a stream: the command over there ends too.
    async with watching(to(engine)):
        (pid,) = ours()
        there = server.sessions()
        assert there
    assert not is_there(pid)
    await until(lambda: not any(map(is_there, there)))
    # While connecting, to a server that says nothing.
    with server.standing_still():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, to(engine))
            await until(lambda: bool(ours()))
            nursery.cancel_scope.cancel()
        assert not ours()


async def test_an_ssh_that_does_not_end_is_killed(server: Sshd, engine: dockerd.Engine) -> None:
    stream = await dial(to(engine))
    os.kill(stream.process.pid, signal.SIGSTOP)
    await stream.aclose()
    assert stream.process.returncode == -signal.SIGKILL


async def test_a_proxy_command_ends_with_it(server: Sshd, engine: dockerd.Engine) -> None:
    if shutil.which("nc") is None:
        pytest.skip("nc is not installed")
    server.configure(f"ProxyCommand nc 127.0.0.1 {server.port}; sleep 60")
    stream = await dial(to(engine))
    helpers = descendants(stream.process.pid)
    assert helpers
    await stream.aclose()
    await until(lambda: not any(map(is_there, helpers)))


async def test_many_at_once(server: Sshd, engine: dockerd.Engine) -> None:
    streams: list[SshStream] = []

    async def one() -> None:
        streams.append(await dial(to(engine)))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.aclose)
    assert all(stream.process.returncode is not None for stream in streams)


def test_the_whole_service_over_ssh(server: Sshd, engine: dockerd.Engine, tmp_path: Path) -> None:
    watch = Watch.of(engine, tmp_path, url=str(to(engine)))
    with watch.running() as child:
        names = watch.see("before-ssh")
        helpers = descendants(child.pid)
        assert helpers
        end(child, signal.SIGKILL)
        # Nobody is left to end them: their stdin is, and that is enough.
        wait_until(lambda: not any(map(is_there, helpers)), "ssh to end by itself")
    names += engine.volumes("down-ssh", 30)
    with watch.running() as child:
        names += watch.see("after-ssh")
        helpers = descendants(child.pid)
        assert end(child) == 0
        assert not any(map(is_there, helpers))
    assert [name for name in watch.created() if name.split("-")[0] != "over"] == names
    assert len(watch.created(replayed=True)) == 30
    assert [gap["cause"] for gap in watch.gaps] == ["start"]
