"""Dialling for real: loopback sockets, TLS with certificates made here."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import resource
import socket
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from attrs import evolve
from loopback import blocking_server, context_of, dial_failure, serving, tls_files, tls_handler

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.model.accounts import Endpoint, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import dialing, faults
from hypermux.upstream.dialing import SocketDialer
from hypermux.upstream.diverting import READ_SIZE, unread
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.transport import Opened

pytestmark = pytest.mark.live


async def test_tcp_connects_and_keeps_alive() -> None:
    async def echo(stream: trio.abc.Stream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    async with serving(echo) as port:
        for host in ("127.0.0.1", "localhost"):
            dialer = SocketDialer(dial_timeout_s=5)
            stream = await dialer.dial(Endpoint.parse(f"tcp://{host}:{port}"), Tls())
            async with stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
                assert isinstance(stream, trio.SocketStream)
                assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
                assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
                assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


async def test_unix_connects(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        stream = await SocketDialer(dial_timeout_s=5).dial(Endpoint.parse(f"unix://{path}"), Tls())
        await stream.aclose()


async def test_unix_failures_say_what_to_type(tmp_path: Path) -> None:
    missing = await dial_failure(Endpoint.parse(f"unix://{tmp_path}/docker.sock"))
    assert missing.kind is FailureKind.CONNECT
    assert "sudo systemctl start docker" in missing.detail
    podman = await dial_failure(Endpoint.parse(f"unix://{tmp_path}/podman/podman.sock"))
    assert "systemctl --user start podman.socket" in podman.detail
    left = str(tmp_path / "left.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(left)
    assert "nothing listens" in (await dial_failure(Endpoint.parse(f"unix://{left}"))).detail
    long = await dial_failure(Endpoint.parse(f"unix:///{'x' * 200}"))
    assert long.kind is FailureKind.CONNECT


async def test_unix_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may connect to every socket
        try:
            failure = await dial_failure(Endpoint.parse(f"unix://{path}"))
        finally:
            if root:
                os.seteuid(0)
    assert failure.kind is FailureKind.CONNECT
    assert "sudo usermod -aG docker $USER" in failure.detail
    denied = PermissionError(13, "Permission denied")
    assert "podman.socket" in faults.unix_words("/run/podman/podman.sock", denied)


async def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        failure = await dial_failure(Endpoint.parse(f"tcp://127.0.0.1:{port}"))
    assert failure.kind is FailureKind.CONNECT
    assert failure.detail == f"127.0.0.1:{port}: connection refused: nothing listens there"


async def test_names_without_address() -> None:
    for host in ("no-such-name.invalid", "x" * 64 + ".example"):
        failure = await dial_failure(Endpoint.parse(f"wss://{host}/events/ws"))
        assert failure.kind is FailureKind.RESOLVE
        assert host in failure.detail


async def test_a_resolver_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    release = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang(host: str, port: int, *args: object, **options: object) -> None:
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        trio.from_thread.run(release.wait, trio_token=token)
        raise socket.gaierror(socket.EAI_NONAME, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    failure = await dial_failure(Endpoint.parse("wss://slow.example/"), timeout_s=0.1)
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.detail == "resolving slow.example took longer than 0.1 s"
    default = trio.to_thread.current_default_thread_limiter()
    assert default.borrowed_tokens == 0
    release.set()


async def test_a_broken_family_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"hello")

    async with serving(talk) as port:
        # 192.0.2.1 (documentation) swallows packets or is unroutable: neither may matter.
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("100::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
        stream = await SocketDialer(dial_timeout_s=5).dial(Endpoint.parse("tcp://two:1"), Tls())
        async with stream:
            assert await stream.receive_some() == b"hello"


async def test_a_host_that_swallows_times_out() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]  # a full backlog drops further requests
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        failure = await dial_failure(Endpoint.parse(f"tcp://127.0.0.1:{address[1]}"), timeout_s=0.3)
        for filler in fillers:
            filler.close()
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.detail == f"connecting to 127.0.0.1:{address[1]} took longer than 0.3 s"


async def test_tls_verified_and_its_context_shared(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    async with serving(tls_handler(context_of(authority, "localhost", "127.0.0.1"))) as port:
        dialer = SocketDialer(dial_timeout_s=5)
        contexts = []
        for host in ("localhost", "127.0.0.1"):
            stream = await dialer.dial(Endpoint.parse(f"wss://{host}:{port}/"), evolve(tls))
            async with stream:
                assert isinstance(stream, trio.SSLStream)
                contexts.append(stream.context)
                await stream.send_all(b"?")
                assert await stream.receive_some() == b"hello"
        assert contexts[0] is contexts[1]
        # A renewed file is read again.
        tls_files(tmp_path, trustme.CA())
        os.utime(tmp_path / "ca.pem", ns=(1, 1))
        failure = await dial_failure(Endpoint.parse(f"wss://localhost:{port}/"), tls)
        assert "not trusted" in failure.detail
        with pytest.raises(ConnectionFailed):
            await dialer.dial(Endpoint.parse(f"wss://localhost:{port}/"), tls)


async def test_certificates_that_do_not_verify(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    future = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    later = future + datetime.timedelta(days=1)
    cases = [
        (context_of(trustme.CA(), "localhost"), "authority that is not trusted"),
        (context_of(authority, "other.example"), "not for the name localhost"),
        (context_of(authority, "localhost", not_after=past), "has expired"),
        (
            context_of(authority, "localhost", not_before=future, not_after=later),
            "is not valid yet (or this computer's clock is slow)",
        ),
    ]
    for context, says in cases:
        async with serving(tls_handler(context)) as port:
            endpoint = Endpoint.parse(f"wss://localhost:{port}/")
            failure = await dial_failure(endpoint, tls)
            assert failure.kind is FailureKind.TLS
            assert says in failure.detail
            # Unverified, all of them do.
            careless = SocketDialer(dial_timeout_s=5)
            await (await careless.dial(endpoint, Tls(verify=False))).aclose()
    async with serving(tls_handler(context_of(authority, "localhost"))) as port:
        failure = await dial_failure(Endpoint.parse(f"wss://127.0.0.1:{port}/"), tls)
        assert "not for the address 127.0.0.1" in failure.detail
        assert dialing.trust_of(Endpoint.parse("wss://x/"), tls) == "verified"
        assert dialing.trust_of(Endpoint.parse("wss://x/"), Tls(verify=False)) == "unverified"
        assert dialing.trust_of(Endpoint.parse("ws://x/"), tls) == "off"


async def test_no_tls_where_tls_is_asked_for() -> None:
    async def plain(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def hang_up(stream: trio.abc.Stream) -> None:
        await stream.receive_some()

    async def mute(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with serving(plain) as port:
        failure = await dial_failure(Endpoint.parse(f"wss://127.0.0.1:{port}/"))
        assert failure.kind is FailureKind.TLS
        assert "does not speak TLS" in failure.detail
    async with serving(hang_up) as port:
        failure = await dial_failure(Endpoint.parse(f"wss://127.0.0.1:{port}/"))
        assert failure.kind is FailureKind.EOF  # a restart behind a proxy looks like this
    async with serving(mute) as port:
        failure = await dial_failure(Endpoint.parse(f"wss://127.0.0.1:{port}/"), timeout_s=1)
        assert failure.kind is FailureKind.TIMEOUT
        assert "TLS handshake" in failure.detail


async def test_bad_files_are_named(tmp_path: Path) -> None:
    endpoint = Endpoint.parse("wss://127.0.0.1:9/")
    missing = str(tmp_path / "none.pem")
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    for tls in (
        Tls(ca=missing),
        Tls(ca=str(empty)),
        Tls(client_cert=missing),
        Tls(client_cert=str(empty)),
        Tls(client_cert=str(empty), client_key=missing),
    ):
        failure = await dial_failure(endpoint, tls)
        assert failure.kind is FailureKind.TLS
        assert (
            missing if missing in (tls.ca, tls.client_cert, tls.client_key) else str(empty)
        ) in (failure.detail)


async def test_want_of_descriptors_is_not_distrust(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        failures = [
            await dial_failure(Endpoint.parse(url), tls if url.startswith("wss") else None)
            for url in (
                "wss://127.0.0.1:9/",
                "tcp://127.0.0.1:9",
                "tcp://localhost:9",
                "tcp://no-such-name.invalid:9",
                f"unix://{tmp_path}/s.sock",
                "ssh://127.0.0.1:9",
            )
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    for failure in failures:
        # Ours, and it passes: neither distrust nor an unreachable server.
        assert failure.kind is FailureKind.SHORTAGE, failure
        assert "too many open files" in failure.detail


async def test_a_file_that_cannot_be_read_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    stamp = dialing._stamp

    def hang(path: str) -> tuple[str, int, int]:
        if path == "/slow/ca.pem":
            release.wait(10)
        return stamp(path)

    monkeypatch.setattr(dialing, "_stamp", hang)
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    dialer = SocketDialer(dial_timeout_s=1)
    failures: list[Failure] = []

    async def slow(port: int) -> None:
        with pytest.raises(ConnectionFailed) as caught:
            await dialer.dial(Endpoint.parse(f"wss://localhost:{port}/"), Tls(ca="/slow/ca.pem"))
        failures.append(caught.value.failure)

    try:
        async with (
            serving(tls_handler(context_of(authority, "localhost"))) as port,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(slow, port)
            nursery.start_soon(slow, port)
            await trio.sleep(0.05)
            stream = await dialer.dial(Endpoint.parse(f"wss://localhost:{port}/"), tls)
            await trio.aclose_forcefully(stream)
            assert not failures
    finally:
        release.set()
    for failure in failures:
        assert failure.kind is FailureKind.TIMEOUT
        assert failure.detail == "reading the certificate files took longer than 1 s"
    assert len(failures) == 2


async def test_a_full_read_asks_the_socket_whether_that_was_all() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(bytes(READ_SIZE + 1))
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
            assert unread(stream, len(await stream.receive_some(READ_SIZE)))
            theirs.sendall(bytes(READ_SIZE - 1))
            got = len(await stream.receive_some(READ_SIZE))
            assert got == READ_SIZE
            assert not unread(stream, got)


class Quiet:
    """A listener for connections that never open."""

    def asking(self) -> None: ...

    def opened(self, opened: Opened) -> None:
        raise AssertionError

    def heard(self) -> None:
        raise AssertionError

    def replied(self) -> None:
        raise AssertionError

    def received(self, messages: list[bytes], *, more: bool) -> None:
        raise AssertionError

    def repeated(self, count: int) -> None:
        raise AssertionError

    def recovered(self, messages: list[bytes], *, unsure_from_ns: int | None) -> None:
        raise AssertionError

    def unanswered(self, *, dead_s: float = math.inf) -> None:
        raise AssertionError


async def test_client_certificates(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    mine = authority.issue_cert("client@example.org")
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    answer = b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n"
    async with blocking_server(
        context_of(authority, "localhost", clients=authority), answer
    ) as port:

        async def docker_failure(tls: Tls) -> Failure:
            source = Source(
                SourceId("a", "b"), "docker", Endpoint.parse(f"tcp://localhost:{port}"), tls=tls
            )
            with pytest.raises(ConnectionFailed) as failed:
                await stream_docker(
                    source,
                    dialer=SocketDialer(dial_timeout_s=5),
                    listener=Quiet(),
                    settings=ConnectionSettings(),
                )
            return failed.value.failure

        with_key = await docker_failure(evolve(tls, client_cert=cert, client_key=key))
        assert (with_key.kind, with_key.code) == (FailureKind.HTTP, 418)
        # TLS 1.3 tells only at the first read.
        without = await docker_failure(tls)
        assert without.kind is FailureKind.TLS
        assert "wants a client certificate" in without.detail
        stranger = trustme.CA().issue_cert("x@example.org")
        stranger.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
        refused = await docker_failure(evolve(tls, client_cert=str(tmp_path / "both.pem")))
        assert refused.kind is FailureKind.TLS
        assert "does not accept the client certificate" in refused.detail


async def test_a_tls_stream_says_what_it_still_holds(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    context = context_of(authority, "localhost")

    async def three_records(stream: trio.abc.Stream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True)
        await secured.do_handshake()
        for _ in range(3):
            await secured.send_all(b"record")
        await secured.receive_some()

    async with serving(three_records) as port:
        dialer = SocketDialer(dial_timeout_s=5)
        stream = await dialer.dial(Endpoint.parse(f"wss://localhost:{port}/"), tls)
        await trio.testing.wait_all_tasks_blocked()  # all three have come
        held = [unread(stream, len(await stream.receive_some(READ_SIZE))) for _ in range(3)]
        assert held == [True, True, False]
        await stream.aclose()
