"""`hypermux tail` as people run it: a process, a pipe or a terminal, a service that restarts."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import (
    NS,
    RAW,
    Service,
    Start,
    end,
    record,
    services,
    short_folder,
    subscribed,
    unheard,
)

from hypermux.downstream.follow import Block, Stream, follow
from hypermux.model.errors import Unreachable, UsageFault
from hypermux.model.records import Checkpoint, Cursor, Gap

pytestmark = pytest.mark.live


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    with services(folder) as begin:
        yield begin


def tail(path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "hypermux", "tail", "--socket", str(path), *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "TZ": "UTC"},
    )


class TestTail:
    def test_json_is_byte_for_byte_and_the_default_in_a_pipe(self, start: Start) -> None:
        lines = [
            record(1),
            record(2, Checkpoint(NS)),
            record(3, Gap(NS, NS, "dropped", "possible")),
        ]
        service = start(
            [subscribed("ep:0"), b"".join(lines)[:100], b"".join(lines)[100:], end("ep:3")]
        )
        done = tail(service.path, "--after", "start", "--no-follow")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"".join(lines), b"")
        assert service.requests == [{"after": "start", "follow": False}]

    def test_what_it_asks_for(self, start: Start) -> None:
        service = start([subscribed("ep:0"), end("ep:0")])
        done = tail(
            service.path, "--after", "ab:7", "--filter", "event=start,label=a=b", "--account", "p*",
            "--region", "us-*", "--kinds", "event,gap", "--since", "1.5", "--limit", "3",
            "-o", "line",
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        (request,) = service.requests
        assert json.loads(request.pop("filters")) == {
            "event": {"start": True},
            "label": {"a=b": True},
        }
        assert request == {
            "after": "ab:7",
            "since": "1.500000000",
            "accounts": ["p*"],
            "regions": ["us-*"],
            "kinds": ["event", "gap"],
            "limit": 3,
        }

    def test_raw(self, start: Start) -> None:
        gap = record(2, Gap(NS, NS, "overflow", "proven", 3))
        service = start([subscribed("ep:0"), record(1) + gap, end("ep:2")])
        done = tail(service.path, "--no-follow", "-o", "raw")
        assert done.stdout == RAW + b"\n"
        assert b"3 events lost" in done.stderr
        assert service.requests[0]["kinds"] == ["event", "gap", "unparsed"]

    def test_line_and_pretty(self, start: Start) -> None:
        script = [subscribed("ep:0"), record(1), end("ep:1")]
        service = start(script, script)
        plain = tail(service.path, "--no-follow", "-o", "line").stdout
        assert plain == b"2016-10-13 16:22:54.255 prod/us-west-1  container start  web (f2)\n"
        assert b'\n  "seq": 1,\n' in tail(service.path, "--no-follow", "-o", "pretty").stdout

    def test_a_terminal_gets_lines_in_colour(self, start: Start) -> None:
        service = start([subscribed("ep:0"), record(1), end("ep:1")])
        master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "TZ": "UTC"}
        environment.pop("NO_COLOR", None)
        with subprocess.Popen(
            [sys.executable, "-m", "hypermux", "tail", "--socket", str(service.path)],
            stdout=slave,
            env=environment,
        ) as process:
            os.close(slave)
            shown = b""
            while b"\n" not in shown:
                shown += os.read(master, 4096)
            assert process.wait(30) == 0
        os.close(master)
        assert b"\x1b[1mstart" in shown

    def test_no_service(self, folder: Path) -> None:
        done = tail(folder / "none.sock")
        assert done.returncode == 69
        assert b"hypermux run" in done.stderr
        assert b"Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--after", "7"], b"EPOCH:SEQ"),
            (["--since", "soon"], b"a time is written"),
            (["--since", "0001-01-01T00:00:00"], b"--since: a time is written"),
            (["--until", "99999999d"], b"--until: a time is written"),
            (["--filter", "evnt=x"], b"--filter"),
        ],
    )
    def test_usage(self, folder: Path, arguments: list[str], words: bytes) -> None:
        done = tail(folder / "none.sock", *arguments)
        assert done.returncode == 64
        assert words in done.stderr

    def test_a_refused_request(self, start: Start) -> None:
        service = start([b'{"kind":"error","cause":"cursor","error":"no such \\u001b[31mepoch"}\n'])
        done = tail(service.path, "--after", "zz:7")
        assert done.returncode == 64
        assert rb"no such \x1b[31mepoch" in done.stderr

    def test_ctrl_c_ends_it_quietly(self, start: Start) -> None:
        service = start([subscribed("ep:0"), record(1)], hold=True)
        with subprocess.Popen(
            [sys.executable, "-m", "hypermux", "tail", "--socket", str(service.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == record(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stderr.read() == b""

    def test_nobody_reads_its_output(self, start: Start) -> None:
        service = start([subscribed("ep:0"), *(record(i) for i in range(1, 2000))], hold=True)
        with subprocess.Popen(
            [sys.executable, "-m", "hypermux", "tail", "--socket", str(service.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.wait(30) == 0
            assert process.stderr.read() == b""

    def test_a_reader_that_has_gone_ends_it_without_more_records(self, start: Start) -> None:
        service = start([subscribed("ep:0"), record(1)], hold=True)
        with subprocess.Popen(
            [sys.executable, "-m", "hypermux", "tail", "--socket", str(service.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == record(1)
            process.stdout.close()  # `| head -1`
            assert process.wait(10) == 0
            assert process.stderr.read() == b""

    def test_no_stdout(self, folder: Path) -> None:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "hypermux", "tail"],
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert done.returncode == 74
        assert b"stdout is closed" in done.stderr

    def test_a_full_disk_is_said(self, start: Start) -> None:
        service = start([subscribed("ep:0"), record(1)], hold=True)
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "hypermux", "tail", "--socket", str(service.path)],
                stdout=full,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        assert done.returncode == 74
        assert b"cannot write to stdout" in done.stderr


class TestFollow:
    def test_it_reads_on_by_cursor_when_the_service_restarts(self, start: Start) -> None:
        service = start(
            [subscribed("ep:4"), record(5), record(6) + record(7)[:30]],  # cut off
            [subscribed("ep:6"), record(7)],
            [subscribed("ep:7"), record(8) + end("ep:8")],
        )
        notices: list[str] = []
        naps: list[float] = []
        got = b"".join(
            block.lines
            for block in follow(
                service.path,
                {"after": "live", "limit": 4},
                notice=notices.append,
                sleep=naps.append,
                rng=random.Random(1),
            )
        )
        assert got == b"".join(map(record, (5, 6, 7, 8)))
        assert [(r["after"], r["limit"]) for r in service.requests] == [
            ("live", 4), ("ep:6", 2), ("ep:7", 1),
        ]  # fmt: skip
        assert "read on from ep:6" in notices[0]
        assert len(naps) == 2

    def test_a_cursor_stands_until_something_came(self, start: Start) -> None:
        """Or who is cut off before the gap for rewritten records is never told of them."""
        rewritten = record(1, Gap(NS, NS, "rewritten", "possible"))
        service = start([subscribed("new:1")], [subscribed("new:1"), rewritten + end("new:1")])
        blocks = follow(
            service.path,
            {"after": "old:2"},
            notice=unheard,
            sleep=lambda _: None,
            rng=random.Random(1),
        )
        assert b"".join(block.lines for block in blocks) == rewritten
        assert [r["after"] for r in service.requests] == ["old:2", "old:2"]

    def test_a_stream_that_always_breaks_is_asked_for_less_and_less_often(
        self, start: Start
    ) -> None:
        answers = [[subscribed("ep:4")]] * 20
        service = start(
            *answers, [subscribed("ep:4"), record(5)], [subscribed("ep:5"), end("ep:5")]
        )
        naps: list[float] = []
        rng = random.Random(1)
        list(follow(service.path, {}, notice=unheard, sleep=naps.append, rng=rng))
        assert max(naps[:2]) < 2
        assert 3 < sum(naps[8:20]) / 12 < 8
        assert naps[20] < 0.5, "something came"

    def test_it_waits_for_a_service_that_is_away(self, folder: Path) -> None:
        path = folder / "h.sock"
        first = Service(path, [subscribed("ep:0"), record(1)])
        later: list[Service] = []
        naps: list[float] = []

        def sleep(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 1:
                first.close()
            elif len(naps) == 4:
                later.append(Service(path, [subscribed("ep:1"), record(2), end("ep:2")]))

        rng = random.Random(2)
        blocks = follow(path, {"limit": 2}, notice=unheard, sleep=sleep, rng=rng)
        assert b"".join(block.lines for block in blocks) == record(1) + record(2)
        assert len(naps) == 4
        assert 0 < max(naps) <= 10
        later[0].close()

    def test_a_cursor_that_is_void_after_a_restart_ends_it(self, start: Start) -> None:
        service = start(
            [subscribed("ep:0"), record(1)],
            [b'{"kind":"error","cause":"cursor","error":"rewritten"}\n'],
        )
        blocks = follow(
            service.path, {}, notice=unheard, sleep=lambda _: None, rng=random.Random(1)
        )
        assert next(blocks).lines == record(1)
        with pytest.raises(UsageFault, match="rewritten"):
            next(blocks)

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (b"", Unreachable),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", Unreachable),
            (b"[]\n", Unreachable),
            (b'{"kind":"subscribed"}\n', Unreachable),
            (b'{"kind":"error","cause":"busy","error":"there are 3"}\n', Unreachable),
            (b'{"kind":"error","cause":"request","error":"no"}\n', UsageFault),
        ],
    )
    def test_what_is_no_stream(self, start: Start, answer: bytes, error: type[Exception]) -> None:
        service = start([answer])
        with pytest.raises(error):
            Stream.open(service.path, {})

    def test_a_fault_within_a_stream(self, start: Start) -> None:
        service = start(
            [subscribed("ep:0"), record(1), b'{"kind":"error","cause":"fault","error":"disk"}\n']
        )
        stream = Stream.open(service.path, {})
        with pytest.raises(Unreachable, match="disk"):
            list(stream.blocks())
        stream.close()

    def test_records_before_a_fault_are_given(self, start: Start) -> None:
        fault = b'{"kind":"error","cause":"fault","error":"disk"}\n'
        service = start([subscribed("ep:0") + record(1) + record(2) + fault])
        stream = Stream.open(service.path, {})
        blocks = stream.blocks()
        assert next(blocks) == Block(record(1) + record(2), Cursor("ep", 2))
        assert str(stream.cursor) == "ep:2"
        with pytest.raises(Unreachable, match="disk"):
            next(blocks)
        stream.close()

    def test_blocks_hold_whole_lines_however_they_arrive(self, start: Start) -> None:
        data = subscribed("ep:0") + b"".join(map(record, range(1, 20)))
        rng = random.Random(5)
        pieces = []
        while data:
            cut = rng.randrange(1, 400)
            pieces.append(data[:cut])
            data = data[cut:]
        service = start(pieces)
        stream = Stream.open(service.path, {})
        blocks = list(stream.blocks())
        stream.close()
        assert all(block.lines.endswith(b"\n") for block in blocks)
        assert b"".join(block.lines for block in blocks) == b"".join(map(record, range(1, 20)))
        assert str(stream.cursor) == "ep:19"
