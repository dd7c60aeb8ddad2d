"""The real socket: who may connect, who may take its place, and what plain tools see."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from attrs import define, evolve

from hypermux.config.settings import JournalSettings, SocketSettings
from hypermux.core.recording import Encoder
from hypermux.downstream import sockets
from hypermux.downstream.console import Formatter, StdoutWriter, run_console
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.journal import Journal
from hypermux.downstream.reading import JournalReader, Rewritten, resolve_cursor
from hypermux.downstream.storage import DiskStorage
from hypermux.downstream.streaming import Published
from hypermux.downstream.subscribers import Subscribers
from hypermux.model.accounts import SourceId
from hypermux.model.errors import ConfigurationFault, Unreachable
from hypermux.model.records import Cursor, Event

pytestmark = pytest.mark.live

T = TypeVar("T")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short path, whatever the test's name."""
    path = Path(tempfile.mkdtemp(prefix="hm-"))
    yield path
    shutil.rmtree(path)


class TestThePlace:
    def test_modes(self, folder: Path) -> None:
        path = folder / "made" / "here" / "h.sock"
        bound = sockets.bind(path, 0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        bound.close()
        assert not path.exists()

    def test_a_living_socket_is_never_replaced(self, folder: Path) -> None:
        path = folder / "h.sock"
        bound = sockets.bind(path, 0o600)
        before = path.stat().st_ino
        with pytest.raises(Unreachable, match="another hypermux serves"):
            sockets.bind(path, 0o600)
        assert path.stat().st_ino == before
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        bound.close()

    def test_busy_is_not_dead(self, folder: Path) -> None:
        path = folder / "h.sock"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen(0)
            waiting = []
            for _ in range(3):
                client = socket.socket(socket.AF_UNIX)
                client.setblocking(False)
                waiting.append(client)
                try:
                    client.connect(str(path))
                except BlockingIOError:
                    break
            with pytest.raises(Unreachable):
                sockets.bind(path, 0o600)
            for client in waiting:
                client.close()

    def test_a_dead_socket_is_replaced(self, folder: Path) -> None:
        path = folder / "h.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        bound = sockets.bind(path, 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        bound.close()

    def test_only_our_own_file_is_removed(self, folder: Path) -> None:
        path = folder / "h.sock"
        bound = sockets.bind(path, 0o600)
        path.unlink()
        successor = sockets.bind(path, 0o600)
        bound.close()
        assert path.exists()
        successor.close()

    def test_one_at_a_time(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fd = os.open(folder, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with monkeypatch.context() as patch:
            patch.setattr(sockets, "LOCK_WAIT_S", 0.1)
            with pytest.raises(Unreachable, match="starting or stopping"):
                sockets.bind(folder / "h.sock", 0o600)
        # Two that start at once, each with a socket of its own, need not fail.
        timer = threading.Timer(0.2, os.close, [fd])
        timer.start()
        sockets.bind(folder / "h.sock", 0o600).close()
        timer.join()

    def test_a_directory_that_others_can_write_is_refused(self, folder: Path) -> None:
        open_to_all = folder / "open"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        with pytest.raises(ConfigurationFault, match=f"type: chmod go-w {open_to_all}"):
            sockets.bind(open_to_all / "h.sock", 0o600)
        open_to_all.chmod(0o1777)
        with pytest.raises(ConfigurationFault, match="use a directory below it"):
            sockets.bind(open_to_all / "h.sock", 0o600)
        assert list(open_to_all.iterdir()) == []

    def test_what_is_no_socket_stays(self, folder: Path) -> None:
        path = folder / "h.sock"
        path.write_text("mine")
        with pytest.raises(ConfigurationFault, match="not a socket"):
            sockets.bind(path, 0o600)
        assert path.read_text() == "mine"
        link = folder / "link.sock"
        link.symlink_to(path)
        with pytest.raises(ConfigurationFault, match="not a socket"):
            sockets.bind(link, 0o600)

    def test_a_path_has_a_length(self, folder: Path) -> None:
        with pytest.raises(ConfigurationFault, match="at most 107 bytes"):
            sockets.bind(folder / ("x" * 108), 0o600)

    def test_no_directory_can_be_made(self, folder: Path) -> None:
        (folder / "file").write_text("")
        with pytest.raises(ConfigurationFault, match=r"[Nn]ot a directory"):
            sockets.bind(folder / "file" / "h.sock", 0o600)


@define(eq=False)
class Server:
    """A journal that a test writes, and its subscribers."""

    journal: Journal
    horizon: Horizon
    path: Path
    lines: list[bytes]
    subscribers: Subscribers

    async def grow(self, count: int, size: int = 0) -> None:
        first = self.journal.next_seq
        raw = b'{"Type":"container","Action":"start","pad":"%s"}' % (b"x" * size)
        added = [
            Encoder().encode(
                seq,
                Event(raw, seq * 10**9, "timeNano"),
                source=SourceId("prod", "r1"),
                at_ns=seq * 10**9,
                received_ns=seq * 10**9,
                durable=self.journal.durable_seq if seq == first else None,
            )
            for seq in range(first, first + count)
        ]
        self.lines.extend(added)
        sources = self.journal.coverage.to_bytes() if self.journal.rotation_due else b""
        position = await trio.to_thread.run_sync(
            self.journal.commit, b"".join(added), first, first + count - 1, sources
        )
        self.horizon.publish(position)


def in_thread(limiter: trio.CapacityLimiter) -> Callable[..., Awaitable[Any]]:
    def run_sync(function: Callable[..., T], *args: Any) -> Awaitable[T]:
        return trio.to_thread.run_sync(function, *args, limiter=limiter)

    return run_sync


@asynccontextmanager
async def serving(
    folder: Path, segment_size: int = 100_000, **changes: Any
) -> AsyncIterator[Server]:
    storage = DiskStorage()
    journal = Journal.open(
        folder / "journal",
        storage,
        JournalSettings(fsync="never", segment_size=segment_size),
        new_epoch=lambda: "3f9a2c41",
        now_ns=0,
    )
    horizon = Horizon(journal.epoch, journal.position)
    settings = SocketSettings(folder / "run" / "h.sock", **changes)

    def resolve(cursor: Cursor) -> int | Rewritten | str:
        return resolve_cursor(cursor, journal.epochs, horizon.position.seq + 1)

    async with trio.open_nursery() as nursery:
        published = Published(
            horizon,
            lambda after: JournalReader(
                journal.directory, storage, after=after, indexes=journal.indexes
            ),
            resolve=resolve,
            run_sync=in_thread(trio.CapacityLimiter(4)),
        )
        server = Subscribers(settings, published)
        await nursery.start(lambda *, task_status: server.run(task_status=task_status))
        yield Server(journal, horizon, settings.path, [], server)
        horizon.end()
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert not nursery.cancel_scope.cancelled_caught
    journal.close()


async def read_lines(stream: trio.abc.ReceiveStream, count: int) -> list[bytes]:
    held = b""
    with trio.fail_after(20):
        while held.count(b"\n") < count:
            data = await stream.receive_some()
            assert data, held
            held += data
    lines = held.splitlines(keepends=True)
    assert len(lines) == count
    return lines


@pytest.mark.skipif(shutil.which("nc") is None, reason="there is no nc")
@pytest.mark.parametrize("closed", [False, True])
async def test_nc_sees_live_records(folder: Path, closed: bool) -> None:
    async with serving(folder) as server, trio.open_nursery() as nursery:
        await server.grow(5)
        # With its input closed nc shuts its sending side down, and reads on.
        command = ["nc", "-U", str(server.path)]
        if closed:
            command.insert(1, "-N")
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL if closed else subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        (head,) = await read_lines(process.stdout, 1)
        assert json.loads(head) == {"kind": "subscribed", "mode": "live", "cursor": "3f9a2c41:5"}
        await server.grow(3)
        assert await read_lines(process.stdout, 3) == server.lines[5:]
        server.horizon.end()
        nursery.start_soon(process.wait)
        with trio.move_on_after(10):
            assert await process.stdout.receive_some() == b""
        process.terminate()
        await process.stdout.aclose()
        if process.stdin is not None:
            await process.stdin.aclose()


@pytest.mark.skipif(shutil.which("nc") is None, reason="there is no nc")
async def test_nc_asks_late(folder: Path) -> None:
    async with serving(folder) as server:
        await server.grow(3)
        path = shlex.quote(str(server.path))
        script = f'(sleep 1; echo \'{{"after":"start"}}\'; sleep 2) | nc -U {path}'
        process = await trio.lowlevel.open_process(
            ["sh", "-c", f"exec 2>&1; {script}"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        live, replay, *lines = await read_lines(process.stdout, 5)
        assert json.loads(live)["mode"] == "live"
        assert json.loads(replay) == {
            "kind": "subscribed", "mode": "replay", "cursor": "3f9a2c41:0",
        }  # fmt: skip
        assert lines == server.lines
        server.horizon.end()
        with trio.fail_after(20):
            await process.wait()
        await process.stdout.aclose()


async def test_replay_over_segments_then_live(folder: Path) -> None:
    async with serving(folder) as server:
        for _ in range(8):
            await server.grow(100, size=200)
        assert len(list((folder / "journal").glob("*.ndjson"))) > 2
        stream = await trio.open_unix_socket(str(server.path))
        async with stream:
            await stream.send_all(b'{"after":"3f9a2c41:123"}\n')
            await read_lines(stream, 1)
            got = b""
            while len(got.splitlines()) < 677:
                got += await stream.receive_some()
            await server.grow(10)
            while got.count(b"\n") < 687:
                got += await stream.receive_some()
            assert got == b"".join(server.lines[123:])


async def test_the_kernel_sends_what_nobody_chooses_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    sendfile = os.sendfile

    def noted(*arguments: int) -> int:
        sizes.append(count := sendfile(*arguments))
        return count

    monkeypatch.setattr(os, "sendfile", noted)
    async with serving(folder, segment_size=2_000_000) as server:
        for _ in range(60):
            await server.grow(100, size=500)
        async with await trio.open_unix_socket(str(server.path)) as stream:
            await stream.send_all(b'{"after":"start","follow":false}\n')
            with trio.fail_after(20):
                got = b"".join([part async for part in stream])
        assert got.splitlines(keepends=True)[1:-1] == server.lines
        assert sum(sizes) > 0.8 * len(got)


async def test_a_late_word_cuts_no_line_of_what_the_kernel_sends(folder: Path) -> None:
    async with serving(folder, segment_size=20_000_000) as server:
        for _ in range(100):
            await server.grow(100, size=500)
        async with await trio.open_unix_socket(str(server.path)) as stream:
            await stream.send_all(b'{"after":"start"}\n')
            got = await stream.receive_some(100)
            await stream.send_all(b"what?\n")
            with trio.fail_after(20):
                got += b"".join([part async for part in stream])
        _, *records, error = got.splitlines(keepends=True)
        assert 0 < len(records) < len(server.lines)
        assert records == server.lines[: len(records)]
        assert json.loads(error)["kind"] == "error"


async def test_ten_readers_and_a_stuck_one(folder: Path) -> None:
    async with serving(folder, stall_timeout_s=0.5) as server:
        stuck = await trio.open_unix_socket(str(server.path))
        await stuck.send_all(b"{}\n")
        await read_lines(stuck, 1)
        done = 0

        async def read_all() -> None:
            nonlocal done
            async with await trio.open_unix_socket(str(server.path)) as stream:
                await stream.send_all(b'{"after":"start","limit":2000}\n')
                got = b""
                while data := await stream.receive_some():
                    got += data
                assert got.splitlines(keepends=True)[1:-1] == server.lines[:2000]
                done += 1

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(read_all)
                for _ in range(20):
                    await server.grow(100, size=500)
        assert done == 10
        # The stuck one finds what the kernel held, then the end.
        await trio.sleep(1.5)
        async with stuck:
            with trio.fail_after(10):
                async for _ in stuck:
                    pass


async def test_the_console_prints_to_the_end(folder: Path) -> None:
    reader, writer = os.pipe()
    async with serving(folder) as server, trio.open_nursery() as nursery:
        await server.grow(3)
        nursery.start_soon(
            partial(
                run_console,
                server.horizon,
                lambda after: JournalReader(server.journal.directory, DiskStorage(), after=after),
                Formatter("json"),
                StdoutWriter(writer),
                after=1,
                run_sync=in_thread(trio.CapacityLimiter(1)),
            )
        )
        await server.grow(3)
        await trio.testing.wait_all_tasks_blocked(0.05)
        server.horizon.end()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"".join(server.lines[1:])


_CONNECT = """
import os, socket, sys
path, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setgid(int(gid))
os.setuid(int(uid))
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(path)
    s.sendall(b"{}\\n")
except BrokenPipeError:
    pass
except OSError as error:
    sys.exit(error.strerror)
print(s.makefile().readline(), end="")
"""
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
OTHER = 54321  # a user and groups that nobody has


async def heard(path: Path, uid: int, gid: int, *groups: int) -> str:
    """Connect as somebody else; return the first line, or why there is none."""
    command = [sys.executable, "-S", "-c", _CONNECT, path, uid, gid, *groups]
    with trio.fail_after(20):
        done = await trio.run_process(
            [str(part) for part in command], capture_stdout=True, capture_stderr=True, check=False
        )
    return (done.stdout or done.stderr).decode()


@only_root
async def test_other_users_are_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    await trio.Path(folder).chmod(0o755)
    await trio.Path(folder / "run").mkdir(mode=0o755)
    async with serving(folder, mode=0o666) as server:
        refusal = json.loads(await heard(server.path, OTHER, OTHER, OTHER + 1))
        assert (refusal["kind"], refusal["cause"]) == ("error", "denied")
    assert f"refused a connection of uid {OTHER} (pid " in caplog.text
    assert f"groups {OTHER}, {OTHER + 1}: not allowed to read" in caplog.text


@only_root
@pytest.mark.parametrize(
    ("allowed", "who"),
    [
        ({"mode": 0o666, "allow_uids": (OTHER,)}, (OTHER, OTHER)),
        ({"mode": 0o666, "allow_gids": (OTHER,)}, (1, OTHER)),
        ({"mode": 0o666, "allow_gids": (OTHER,)}, (1, 1, 2, OTHER)),
        ({"mode": 0o660, "group": OTHER}, (1, 1, 2, OTHER)),
    ],
)
async def test_who_is_named_may_read(
    folder: Path,
    allowed: dict[str, Any],
    who: tuple[int, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "hypermux")
    await trio.Path(folder).chmod(0o711)
    async with serving(folder, **allowed) as server:
        # The directory was made by the service: without more than its mode nobody got here.
        line = await heard(server.path, *who)
        assert '"subscribed"' in line, line
        assert f"a connection of uid {who[0]} (pid " in caplog.text
        caplog.clear()
        stranger = await heard(server.path, OTHER + 2, OTHER + 2)
        assert "denied" in stranger or "Permission denied" in stranger


@only_root
async def test_who_may_read_changes_while_it_runs(folder: Path) -> None:
    await trio.Path(folder).chmod(0o711)
    async with serving(folder) as server:
        assert "Permission denied" in await heard(server.path, OTHER, OTHER)
        settings = server.subscribers.settings
        server.subscribers.change(evolve(settings, mode=0o666, allow_uids=(OTHER,)))
        assert '"subscribed"' in await heard(server.path, OTHER, OTHER)
        server.subscribers.change(evolve(settings, mode=0o660, group=OTHER))
        assert '"subscribed"' in await heard(server.path, 1, 1, OTHER)
        assert "Permission denied" in await heard(server.path, 1, 1)
        server.subscribers.change(settings)
        assert "Permission denied" in await heard(server.path, 1, 1, OTHER)


@only_root
class TestPassingTheDirectory:
    """The socket's mode is no use to whom its directory keeps out."""

    def test_one_of_its_own_is_opened(self, folder: Path) -> None:
        path = folder / "run" / "h.sock"
        sockets.bind(path, 0o600).close()  # an earlier run
        bound = sockets.bind(path, 0o660, OTHER)
        for file, mode in ((path, 0o660), (path.parent, 0o750)):
            info = file.stat()
            assert (stat.S_IMODE(info.st_mode), info.st_gid) == (mode, OTHER)
        bound.permit(0o666, None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert path.stat().st_gid == os.getegid()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o751
        bound.close()

    def test_one_that_holds_more_is_left_and_told(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "secret").touch()
        for mode, gid, advice in (
            (0o660, OTHER, f"chgrp {OTHER} {folder}; chmod g+x {folder}"),
            (0o666, None, f"chmod go+x {folder}"),
        ):
            caplog.clear()
            sockets.bind(folder / "h.sock", mode, gid).close()
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert f"type `{advice}`" in caplog.text
            for command in advice.split("; "):
                subprocess.run(command.split(), check=True)
            caplog.clear()
            sockets.bind(folder / "h.sock", mode, gid).close()
            assert not caplog.text
            folder.chmod(0o700)


def test_a_killed_servers_socket_is_taken_over(folder: Path) -> None:
    path = folder / "h.sock"
    script = (
        "import sys, time; from pathlib import Path; from hypermux.downstream import sockets;"
        "b = sockets.bind(Path(sys.argv[1]), 0o600); print('bound', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"bound\n"
        with pytest.raises(Unreachable):
            sockets.bind(path, 0o600)
        process.send_signal(signal.SIGKILL)
    assert path.exists()
    sockets.bind(path, 0o600).close()
    assert not path.exists()
