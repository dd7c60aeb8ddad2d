"""`tail` as a consumer: where it begins, the cursor that it keeps, the command that it runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import (
    FAST,
    HYPERMUX,
    Place,
    emulator,
    place,
    process,
    service,
    wait_until,
)
from scripted import NS, RAW, Start, end, record, services, short_folder, subscribed

from hypermux.client import CursorFile
from hypermux.core.lines import seq_of
from hypermux.downstream.console import BrokenStdout
from hypermux.downstream.follow import READ, Block, Stream
from hypermux.downstream.handing import Command
from hypermux.downstream.lookback import begin_of_last
from hypermux.model.errors import Unreachable
from hypermux.model.records import Checkpoint, Cursor, Gap, StateChange

pytestmark = [pytest.mark.live, pytest.mark.slow]

# A hundred take a minute and a half: HYPERMUX_TAIL_KILLS=100.
KILLS = int(os.environ.get("HYPERMUX_TAIL_KILLS", "6"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    with services(folder) as begin:
        yield begin


def heartbeat(cursor: str) -> bytes:
    return b'{"kind":"heartbeat","cursor":"%s"}\n' % cursor.encode()


def tail(path: Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [*HYPERMUX, "tail", "--socket", str(path), *map(str, arguments)]
    return subprocess.run(command, **{"capture_output": True, **options}, timeout=60, check=False)


class TestBlocks:
    def test_heartbeats_stand_between_records(self, start: Start) -> None:
        said = [record(5), record(6), heartbeat("ep:90"), record(91), heartbeat("ep:99")]
        service = start([subscribed("ep:4"), b"".join(said), end("ep:120")])
        stream = Stream.open(service.path, {})
        assert list(stream.blocks()) == [
            Block(record(5) + record(6), Cursor("ep", 6)),
            Block(b"", Cursor("ep", 90)),
            Block(record(91), Cursor("ep", 91)),
            Block(b"", Cursor("ep", 99)),
            Block(b"", Cursor("ep", 120)),
        ]
        assert stream.complete
        stream.close()

    def test_what_is_no_line_of_ours(self, start: Start) -> None:
        service = start([subscribed("ep:0"), record(1) + b"oh\n"])
        stream = Stream.open(service.path, {})
        blocks = stream.blocks()
        assert next(blocks).lines == record(1)
        with pytest.raises(Unreachable, match="not a hypermux socket"):
            next(blocks)
        stream.close()


class TestLast:
    """The search for where the last records begin, on a service that says what is asked for."""

    def ask(self, path: Path, count: int, **request: Any) -> tuple[str, list[str]]:
        told: list[str] = []
        return begin_of_last(path, request, count, notice=told.append), told

    def test_none_is_from_now_on(self, start: Start) -> None:
        service = start([subscribed("ep:700")])
        assert self.ask(service.path, 0) == ("ep:700", [])

    def test_of_everything_they_are_as_many_records(self, start: Start) -> None:
        lines = b"".join(map(record, range(691, 701)))
        service = start([subscribed("ep:700")], [subscribed("ep:690"), lines, end("ep:700")])
        assert self.ask(service.path, 10) == ("ep:690", [])
        assert service.requests[1] == {"after": "ep:690", "follow": False}

    def test_there_may_be_fewer(self, start: Start) -> None:
        service = start([subscribed("ep:3")], [subscribed("ep:0"), record(1), end("ep:3")])
        assert self.ask(service.path, 5) == ("start", [])
        assert service.requests[1]["after"] == "start"

    def test_of_a_selection_it_looks_further_and_further_back(self, start: Start) -> None:
        service = start(
            [subscribed("ep:900000")],
            [subscribed("ep:899000"), record(899_500), end("ep:900001")],
            [subscribed("ep:892000"), record(892_800) + record(899_500), end("ep:900003")],
        )
        kinds = ["event"]
        assert self.ask(service.path, 2, kinds=kinds, limit=7) == ("ep:892799", [])
        assert [r["after"] for r in service.requests] == ["live", "ep:899000", "ep:892000"]
        assert service.requests[1] == {"after": "ep:899000", "kinds": kinds, "follow": False}

    def test_it_does_not_look_back_for_ever(self, start: Start) -> None:
        found = [subscribed("ep:8000000"), record(7_999_000), end("ep:9000000")]
        service = start([subscribed("ep:9000000")], *[found] * 5)
        place, told = self.ask(service.path, 2, kinds=["event"])
        assert place == "ep:7998999"
        assert [r["after"] for r in service.requests[1:]] == [
            "ep:8999000", "ep:8992000", "ep:8936000", "ep:8488000", "ep:8000000",
        ]  # fmt: skip
        assert "the last 1000000 records have 1 of the 2 asked for" in told[0]

    def test_what_was_removed_is_not_asked_for(self, start: Start) -> None:
        gap = record(899_200, Gap(NS, NS, "retention", "proven", 200))
        service = start(
            [subscribed("ep:900000")],
            [subscribed("ep:899000"), gap + record(899_900), end("ep:900000")],
            [subscribed("ep:899200"), record(899_900), end("ep:900000")],
        )
        assert self.ask(service.path, 2, kinds=["gap", "event"]) == ("start", [])
        assert service.requests[2]["after"] == "start"

    def test_since_says_where_to_look(self, start: Start) -> None:
        service = start(
            [subscribed("ep:900000")],
            [subscribed("ep:5"), b"".join(map(record, range(6, 12))), end("ep:900000")],
        )
        assert self.ask(service.path, 2, since="1.5") == ("ep:9", [])

    def test_a_service_that_ends_meanwhile(self, start: Start) -> None:
        service = start([subscribed("ep:900000")], [subscribed("ep:899990"), record(899_999)])
        with pytest.raises(Unreachable, match="during the search"):
            self.ask(service.path, 10)

    def test_tail_begins_there_and_follows(self, start: Start) -> None:
        lines = [record(seq) for seq in (8, 9, 10)]
        service = start(
            [subscribed("ep:9")],
            [subscribed("ep:7"), lines[0] + lines[1], end("ep:9")],
            [subscribed("ep:7"), *lines, end("ep:10")],
        )
        done = tail(service.path, "-n", "2", "-o", "json", "--limit", "3")
        assert (done.returncode, done.stdout) == (0, b"".join(lines)), done.stderr
        assert service.requests[2] == {"after": "ep:7", "limit": 3}
        assert tail(service.path, "-n", "2", "--after", "start").returncode == 64


class TestCursorFile:
    def test_it_is_written_and_read(self, start: Start, folder: Path) -> None:
        file = folder / "cursor"
        service = start(
            [subscribed("ep:4"), record(5), record(6) + end("ep:80")],
            [subscribed("ep:80"), record(81) + end("ep:81")],
        )
        arguments = ("--cursor-file", file, "--since", "1.5", "--no-follow", "-o", "json")
        assert tail(service.path, *arguments).stdout == record(5) + record(6)
        assert file.read_text().strip() == "ep:80"
        assert tail(service.path, *arguments).stdout == record(81)
        assert file.read_text().strip() == "ep:81"
        first, second = service.requests
        assert (first["since"], first.get("after")) == ("1.500000000", None)
        assert first["heartbeat"] == "5s"
        assert (second.get("since"), second["after"]) == (None, "ep:80")

    def test_it_is_written_while_following(self, start: Start, folder: Path) -> None:
        file = folder / "cursor"
        service = start([subscribed("ep:4"), record(5) + record(6) + heartbeat("ep:70")], hold=True)
        command = [*HYPERMUX, "tail", "--socket", str(service.path), "--cursor-file", str(file)]
        with process(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            wait_until(lambda: file.exists() and "ep:70" in file.read_text(), "the cursor")
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.read() == record(5) + record(6)
            assert child.stderr.read() == b""

    def test_where_nothing_was_shown_yet_it_has_where_it_began(
        self, start: Start, folder: Path
    ) -> None:
        """Or what comes between this run and the next would never be shown."""
        file = folder / "cursor"
        service = start([subscribed("ep:4"), end("ep:4")])
        tail(service.path, "--cursor-file", file)
        assert file.read_text().strip() == "ep:4"

    def test_a_cursor_stays_until_something_has_come(self, start: Start, folder: Path) -> None:
        """What comes first may be the gap for rewritten records: it is told of an older epoch."""
        file = folder / "cursor"
        file.write_text("old:9\n")
        service = start([subscribed("new:4") + record(4)], hold=True)
        command = [*HYPERMUX, "tail", "--socket", str(service.path), "--cursor-file", str(file)]
        failing = ["--exec", "touch tried; exit 1"]
        with process(*command, *failing, cwd=folder, stderr=subprocess.DEVNULL) as child:
            wait_until((folder / "tried").exists, "the command")
            child.kill()
        assert file.read_text().strip() == "old:9"

    @pytest.mark.parametrize(
        ("arguments", "content", "words"),
        [
            (["--after", "ep:7"], "ep:9\n", b"--after ep:7, but cursor holds ep:9"),
            ([], "my notes\n", b"holds no cursor"),
        ],
    )
    def test_usage(self, folder: Path, arguments: list[str], content: str, words: bytes) -> None:
        (folder / "cursor").write_text(content)
        done = tail(folder / "none", "--cursor-file", "cursor", *arguments, cwd=folder)
        assert done.returncode == 64
        assert words in done.stderr
        assert (folder / "cursor").read_text().split() == content.split()

    def test_one_reader_at_a_time(self, folder: Path) -> None:
        with CursorFile(folder / "cursor"):
            done = tail(folder / "none", "--cursor-file", folder / "cursor")
        assert done.returncode == 64
        assert b"another reader" in done.stderr

    def test_a_place_that_is_none(self, folder: Path) -> None:
        done = tail(folder / "none", "--cursor-file", folder / "no" / "cursor")
        assert done.returncode == 74
        assert b"No such file or directory" in done.stderr

    def test_a_cursor_that_is_refused(self, start: Start, folder: Path) -> None:
        (folder / "cursor").write_text("old:7\n")
        service = start([b'{"kind":"error","cause":"cursor","error":"no such epoch"}\n'])
        done = tail(service.path, "--cursor-file", folder / "cursor")
        assert done.returncode == 64
        assert b"no such epoch" in done.stderr
        assert b"remove " in done.stderr

    def test_a_line_that_a_kill_cut_off_is_ended(self, start: Start, folder: Path) -> None:
        file, out = folder / "cursor", folder / "out"
        file.write_text("ep:4\n")
        out.write_bytes(record(4) + record(5)[:30])
        service = start([subscribed("ep:4"), record(5) + end("ep:5")])
        with out.open("ab") as stdout:
            tail(service.path, "--cursor-file", file, capture_output=False, stdout=stdout)
        assert out.read_bytes() == record(4) + record(5)[:30] + b"\n" + record(5)


class TestCommand:
    def command(self, text: str, **options: Any) -> Command:
        self.notices: list[str] = []
        self.naps: list[float] = []
        return Command(text, self.notices.append, self.naps.append, random.Random(1), **options)

    def test_a_record_is_on_its_input_and_its_cursor_beside(self, folder: Path) -> None:
        command = self.command(f'cat > {folder}/in; echo "$HYPERMUX_CURSOR" > {folder}/cursor')
        command.hand(record(5), Cursor("ep", 5))
        assert (folder / "in").read_bytes() == record(5)
        assert (folder / "cursor").read_text() == "ep:5\n"
        assert self.notices == []

    def test_what_fails_is_tried_again_less_and_less_often(self, folder: Path) -> None:
        command = self.command(f"cat >> {folder}/in; test $(wc -l < {folder}/in) -ge 6")
        command.hand(b"x\n", Cursor("ep", 5))
        assert (folder / "in").read_bytes() == 6 * b"x\n"
        assert len(self.naps) == 5
        assert all(0.5 <= nap <= 0.5 * 2 ** (n + 1) for n, nap in enumerate(self.naps))
        assert self.notices[0].startswith("the command exited with 1 at ep:5; again in ")

    def test_one_that_reads_nothing(self) -> None:
        self.command("exec true").hand(1_000_000 * b"x", Cursor("ep", 5))

    def test_one_that_is_killed(self, folder: Path) -> None:
        command = self.command(f"test -e {folder}/x || {{ : > {folder}/x; kill -9 $$; }}")
        command.hand(b"x\n", Cursor("ep", 5))
        assert "was ended by SIGKILL" in self.notices[0]

    def test_nobody_reads_what_it_prints(self) -> None:
        with pytest.raises(BrokenStdout):
            self.command("exit 3", nobody_reads=lambda: True).hand(b"x", Cursor("ep", 5))

    def test_a_first_signal_waits_for_it(self, folder: Path) -> None:
        command = self.command(f"until test -e {folder}/go; do sleep 0.01; done")

        def told(number: int, frame: Any) -> None:
            command.stop(number, frame)
            (folder / "go").touch()

        before = signal.signal(signal.SIGALRM, told)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            command.hand(b"x", Cursor("ep", 5))
        finally:
            signal.signal(signal.SIGALRM, before)
        assert command.stopping
        with pytest.raises(KeyboardInterrupt):
            command.stop(signal.SIGINT, None)


class TestExec:
    def test_each_record_once_and_the_cursor_behind_it(self, start: Start, folder: Path) -> None:
        lines = [record(1), record(2, StateChange("up")), record(3)]
        service = start([subscribed("ep:0"), *lines, end("ep:9")])
        command = f"cat >> {folder}/got; cat {folder}/cursor >> {folder}/cursors; echo $?"
        arguments = ("--cursor-file", folder / "cursor", "--after", "start", "--exec", command)
        done = tail(service.path, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, 3 * b"0\n", b"")
        assert (folder / "got").read_bytes() == b"".join(lines)
        assert (folder / "cursors").read_text().split() == ["ep:0", "ep:1", "ep:2"]
        assert (folder / "cursor").read_text().strip() == "ep:9"
        assert service.requests[0]["kinds"] == ["event", "gap", "state", "unparsed"]

    def test_raw_hands_over_events_alone(self, start: Start) -> None:
        gap = record(2, Gap(NS, NS, "overflow", "proven", 3))
        service = start([subscribed("ep:0"), record(1) + gap + end("ep:2")])
        done = tail(service.path, "-o", "raw", "--exec", "cat")
        assert done.stdout == RAW + b"\n"
        assert b"3 events lost" in done.stderr

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_lets_it_end(self, start: Start, folder: Path, number: int) -> None:
        service = start([subscribed("ep:0"), record(1) + record(2)], hold=True)
        text = f"trap 'echo told >> {folder}/log' TERM; : > {folder}/begun; " + (
            f"until test -e {folder}/go; do sleep 0.01; done"
        )
        command = [*HYPERMUX, "tail", "--socket", str(service.path), "--exec", text]
        arguments = ("--cursor-file", folder / "cursor")
        with process(*command, *arguments, stderr=subprocess.PIPE) as child:
            wait_until((folder / "begun").exists, "the command")
            child.send_signal(number)
            if number == signal.SIGTERM:
                wait_until((folder / "log").exists, "the signal to be passed on")
            assert child.poll() is None
            (folder / "go").touch()
            assert child.wait(30) == 0
            assert child.stderr is not None
            assert child.stderr.read() == b""
        assert (folder / "cursor").read_text().strip() == "ep:1"

    def test_a_reader_of_its_output_that_has_gone(self, start: Start) -> None:
        service = start([subscribed("ep:0"), *map(record, range(1, 500))], hold=True)
        done = subprocess.run(
            f"{HYPERMUX[0]} -m hypermux tail --socket {service.path} --exec cat | head -1",
            shell=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.stderr) == (record(1), b"")


def lines_of(path: Path) -> list[bytes]:
    """Return the whole lines of what kills may have cut."""
    return [
        line
        for line in path.read_bytes().splitlines(keepends=True)
        if line.startswith(b'{"seq":') and line.endswith(b'"}\n')
    ]


def test_killed_again_and_again_it_shows_every_record(tmp_path: Path) -> None:
    """kill -9 at any moment: nothing is missing, and repeated is one block at most each time."""
    out, rng = tmp_path / "out", random.Random(7)
    with emulator(tmp_path, "--accounts", "4", "--regions", "us", "--rate", "800") as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        arguments = [*HYPERMUX, "tail", "--socket", str(where.socket), "-o", "json"]
        keeping = ["--cursor-file", str(tmp_path / "cursor"), "--after", "start"]
        with service(where):
            for _ in range(KILLS):
                size = out.stat().st_size if out.exists() else 0
                with (
                    out.open("ab") as stdout,
                    process(*arguments, *keeping, stdout=stdout) as child,
                ):
                    wait_until(lambda size=size: out.stat().st_size > size, "records")  # type: ignore[misc]
                    time.sleep(rng.uniform(0, 0.1))  # any moment
                    child.kill()
                    child.wait()
            emulated.stop()
            with out.open("ab") as stdout:
                subprocess.run([*arguments, *keeping, "--no-follow"], stdout=stdout, check=True)
            last = recorded(where)
    shown = lines_of(out)
    seqs = {seq_of(line) for line in shown}
    assert seqs == set(range(1, max(seqs) + 1))
    assert max(seqs) >= last > 100 * KILLS
    highest, repeated, most = 0, 0, 0
    for line in shown:
        seq = seq_of(line)
        repeated = repeated + len(line) if seq <= highest else 0
        highest, most = max(highest, seq), max(most, repeated)
    again = len(shown) - len(seqs)
    print(f"{KILLS} kills, {len(seqs)} records, {again} repeated, at most {most} bytes at once")
    assert most <= READ + 4096


def downs(where: Place) -> int:
    """Return how often a source was recorded as down: each is before its first connection."""
    return sum(b'"state":"down"' in line for line in where.lines)


def recorded(where: Place) -> int:
    """Return the seq of the last event."""
    return max(seq_of(line) for line in where.lines if b'"kind":"event"' in line)


def test_a_restart_in_between(tmp_path: Path) -> None:
    """The same `tail` goes on with the next service, commands and all."""
    with emulator(tmp_path, "--accounts", "1", "--regions", "us", "--rate", "20") as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        got = tmp_path / "got"
        got.touch()
        arguments = ("--after", "start", "--kinds", "event", "--exec", f"cat >> {got}")
        command = [*HYPERMUX, "tail", "--socket", str(where.socket), *arguments]
        with service(where) as first, process(*command, stderr=subprocess.PIPE) as child:
            wait_until(lambda: len(lines_of(got)) >= 5, "records")
            first.terminate()
            assert first.wait(30) == 0
            before = where.lines
            with service(where):
                more = len(before) + 5
                wait_until(lambda: seq_of(lines_of(got)[-1]) > more, "records of the next")
                child.send_signal(signal.SIGINT)
                assert child.wait(30) == 0
        events = [line for line in where.lines if b'"kind":"event"' in line]
        shown = lines_of(got)
        assert shown == events[: len(shown)]


def test_checkpoints_are_no_news_for_a_command(start: Start) -> None:
    service = start([subscribed("ep:0"), record(1, Checkpoint(NS)), end("ep:1")])
    tail(service.path, "--exec", "cat", "--kinds", "checkpoint")
    assert service.requests[0]["kinds"] == ["checkpoint"]
