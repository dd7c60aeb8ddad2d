"""The emulator as a process: TLS, files, orders, signals."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from emulator_fixtures import Emulator, emulator

from hypermux.core import signing
from hypermux.emulator.certificates import server_context
from hypermux.emulator.control import call
from hypermux.emulator.files import LineFile, replace
from hypermux.model.accounts import Credential, Endpoint, Secret
from hypermux.model.errors import ConfigurationFault, DiskFault

pytestmark = pytest.mark.live


@asynccontextmanager
async def connected(
    server: Emulator, account: str = "acct-001", region: str = "east"
) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """Connect as an account of the accounts file, verifying the certificate."""
    keys = server.accounts[account]
    endpoint = Endpoint.parse(keys["endpoint"])
    signed = signing.sign(
        method="GET",
        host=endpoint.netloc,
        path=endpoint.path,
        raw_query="",
        credential=Credential(keys["access_key"], Secret(keys["secret_key"])),
        region=region,
        now_utc_s=time.time(),
    )
    # Not open_websocket_url: it sends an IPv6 host without its brackets.
    stream: Any = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    if "ca" in keys:
        context = ssl.create_default_context(cafile=keys["ca"])
        stream = trio.SSLStream(
            stream, context, server_hostname=endpoint.host, https_compatible=True
        )
    try:
        async with trio.open_nursery() as nursery:
            websocket = await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                endpoint.netloc,
                endpoint.path,
                extra_headers=[(n.encode(), v.encode()) for n, v in signed.headers],
            )
            yield websocket
            await websocket.aclose()
    except* trio_websocket.ConnectionRejected as group:
        raise group.exceptions[0] from None
    finally:
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("options", [(), ("--plain",), ("--host", "localhost"), ("--host", "::1")])
async def test_events_reach_a_signed_client(tmp_path: Path, options: tuple[str, ...]) -> None:
    count = 300
    flags = ("--accounts", "2", "--regions", "east,west", "--rate", "max", "--events", str(count))
    with emulator(tmp_path, *flags, *options) as server, trio.fail_after(20):
        assert server.url.startswith("ws://" if "--plain" in options else "wss://")
        async with connected(server) as websocket:
            got = [await websocket.get_message() for _ in range(count)]
            await websocket.ping()
        assert server.stop(signal.SIGINT) == 0
        lines = (tmp_path / "manifest").read_bytes().splitlines()
        assert [line.partition(b'"event":')[2][:-1].decode() for line in lines] == got
        (accepted,) = server.lines("accept.log")
        assert (accepted["answer"], accepted["connection"]) == (101, 1)


async def test_a_stop_says_goodbye_and_writes_all_out(tmp_path: Path) -> None:
    with emulator(tmp_path, "--regions", "east", "--rate", "max") as server, trio.fail_after(20):
        async with connected(server) as websocket:
            await websocket.get_message()
            server.process.send_signal(signal.SIGTERM)
            seen = 1
            with suppress(trio_websocket.ConnectionClosed):
                while True:
                    await websocket.get_message()
                    seen += 1
            assert websocket.closed is not None
            assert websocket.closed.code == 1012
        assert server.process.wait(10) == 0
        assert not (tmp_path / "control.sock").exists()
        assert len(server.lines("manifest")) == seen


async def test_orders(tmp_path: Path) -> None:
    with emulator(tmp_path, "--regions", "east", "--rate", "0") as server, trio.fail_after(20):
        path = tmp_path / "control.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        where = {"account": "acct-001", "region": "east"}
        assert call(path, {"op": "ps", "account": "x", "region": "y"})["ok"] is False
        async with connected(server) as websocket:
            made = server.call("create", **where, image="busybox", name="web")
            event = json.loads(await websocket.get_message())
            assert (event["Action"], event["id"]) == ("create", made["id"])
            assert server.call("connections")["connections"][0]["sent"] == 1
            # Written within 200 ms, not only at the end.
            await trio.sleep(0.5)
            assert server.lines("manifest")[0]["event"] == event
            server.call("drop", **where)
            with pytest.raises(trio_websocket.ConnectionClosed):
                await websocket.get_message()
        server.call("refuse", status=500, count=1)
        with pytest.raises(trio_websocket.ConnectionRejected) as refused:
            async with connected(server):
                pass
        assert refused.value.status_code == 500
        async with connected(server):
            pass


def test_the_accounts_file_holds_accounts_alone_and_is_private(tmp_path: Path) -> None:
    flags = ("--accounts", "2", "--regions", "east,west", "--seed", "7")
    with emulator(tmp_path, *flags) as server:
        mode = stat.S_IMODE(server.accounts_file.stat().st_mode)
        assert mode == 0o600
        assert list(server.accounts) == ["acct-001", "acct-002"]
        first = server.accounts["acct-001"]
        assert first["regions"] == ["east", "west"]
        assert first["endpoint"] == server.url
        assert Path(first["ca"]) == server.ca
        keys = first["access_key"], first["secret_key"]
    with emulator(tmp_path, *flags) as server:
        first = server.accounts["acct-001"]
        assert (first["access_key"], first["secret_key"]) == keys


def test_garbage_leaves_it_unmoved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with emulator(tmp_path, "--regions", "east") as server:
        endpoint = Endpoint.parse(server.url)
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\0" * 99):
            with socket.create_connection((endpoint.host, endpoint.port), 5) as client:
                client.sendall(garbage)
        context = ssl.create_default_context(cafile=str(server.ca))
        with (
            socket.create_connection((endpoint.host, endpoint.port), 5) as client,
            context.wrap_socket(client, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(b"nonsense\r\n\r\n")
            assert secure.recv(100).startswith(b"HTTP/1.1 400 ")
        assert server.call("connections")["connections"] == []
        assert server.stop() == 0
    assert capfd.readouterr().err == ""


def test_a_second_one_does_not_take_the_control_socket(tmp_path: Path) -> None:
    with emulator(tmp_path, "--regions", "east", "--plain") as first:
        other = tmp_path / "other"
        other.mkdir()
        with (
            pytest.raises(json.JSONDecodeError),
            emulator(other, "--plain", "--control", str(tmp_path / "control.sock")),
        ):
            pass
        first.call("connections")


def test_a_kept_authority_is_used_again(tmp_path: Path) -> None:
    _, path = server_context(tmp_path, keep=True)
    first = path.read_bytes()
    assert server_context(tmp_path, keep=True)[1] == path
    assert path.read_bytes() == first
    assert stat.S_IMODE((tmp_path / "emulator-ca-key.pem").stat().st_mode) == 0o600
    path.write_text("no certificate")
    with pytest.raises(ConfigurationFault, match="does not read"):
        server_context(tmp_path, keep=True)
    server_context(tmp_path, keep=False)
    assert path.read_bytes().startswith(b"-----BEGIN CERTIFICATE")


def test_without_trustme_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ConfigurationFault, match=r"pip install 'hypermux\[emulator\]'"):
        server_context(tmp_path, keep=False)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    file = LineFile(Path("/dev/full"))
    file.write(b"line\n")
    with pytest.raises(DiskFault, match="No space left"):
        file.flush()
    with pytest.raises(DiskFault):
        file.close()
    with pytest.raises(DiskFault, match="cannot write"):
        LineFile(tmp_path / "missing/file")
    with pytest.raises(DiskFault, match="cannot write"):
        replace(tmp_path / "missing/file", b"")


def test_lines_come_after_those_of_an_earlier_run(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        file = LineFile(tmp_path / "log")
        file.write(line)
        file.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
