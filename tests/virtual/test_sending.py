"""Stretches of files on their way to a peer, over real sockets and files."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve
from trio.testing import MockClock

from hypermux.downstream.peer import Peer, PeerGone, PeerStalled
from hypermux.downstream.sending import send_stretch
from hypermux.downstream.storage import DiskStorage, Slice
from hypermux.downstream.stretches import Stretch
from hypermux.model.errors import DamagedData

DATA = b"".join(b'{"seq":%d,"pad":"%s"}\n' % (n, b"x" * 400) for n in range(5000))


async def direct(function: Callable[..., Any], *args: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return function(*args)


@define
class Carried:
    """A file that the kernel cannot send: compressed, for example."""

    file: Slice

    def read_at(self, offset: int, size: int) -> bytes:
        return self.file.read_at(offset, size)

    def close(self) -> None:
        self.file.close()


@pytest.fixture
def stretch(tmp_path: Path) -> Stretch:
    (tmp_path / "file").write_bytes(DATA)
    begin = DATA.index(b"\n") + 1
    return Stretch(DiskStorage().open(tmp_path / "file"), begin, len(DATA) - begin, 4999, b"")


async def sent(stretch: Stretch) -> bytes:
    """Send a stretch; return what came, until the peer was closed."""
    here, there = socket.socketpair()
    here.setblocking(False)
    got = b""
    async with (
        trio.open_nursery() as nursery,
        trio.SocketStream(trio.socket.from_stdlib_socket(there)) as reader,
    ):

        async def send() -> None:
            peer = Peer(here)
            try:
                await send_stretch(peer, stretch, 30.0, direct)
            finally:
                peer.close()

        nursery.start_soon(send)
        async for part in reader:
            got += part
    return got


async def test_all_of_it_arrives_by_the_kernel(
    stretch: Stretch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(stretch.file), "read_at", None)  # by no other way
    assert await sent(stretch) == DATA[stretch.offset :]


async def test_what_the_kernel_cannot_send_is_carried(
    stretch: Stretch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await sent(evolve(stretch, file=Carried(stretch.file))) == DATA[stretch.offset :]

    def not_here(*_: int) -> int:
        raise OSError(errno.EINVAL, "not on this file system")

    monkeypatch.setattr(os, "sendfile", not_here)
    assert await sent(stretch) == DATA[stretch.offset :]


@pytest.mark.parametrize("carried", [False, True])
async def test_a_file_that_is_shorter_is_damaged(stretch: Stretch, carried: bool) -> None:
    file = Carried(stretch.file) if carried else stretch.file
    with pytest.raises(ExceptionGroup) as raised:
        await sent(evolve(stretch, file=file, size=stretch.size + 1))
    assert raised.group_contains(DamagedData, match=f"ends at byte {len(DATA)}, before record 4999")


async def test_a_disk_that_fails_is_not_the_peers_fault(
    stretch: Stretch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: int) -> int:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(os, "sendfile", broken)
    with pytest.raises(ExceptionGroup) as raised:
        await sent(stretch)
    assert raised.group_contains(OSError, match="the disk")


async def test_a_peer_that_goes_and_one_that_stalls(
    autojump_clock: MockClock, stretch: Stretch
) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        begun = trio.current_time()
        with pytest.raises(PeerStalled):
            await send_stretch(Peer(here), stretch, 30.0, direct)
        assert trio.current_time() - begun == pytest.approx(30.0, abs=0.1)
        there.close()
        with pytest.raises(PeerGone):
            await send_stretch(Peer(here), stretch, 30.0, direct)
