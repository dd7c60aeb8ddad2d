"""`hypermux.client`: the one file that people copy, against what a service may say."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
)

from hypermux import client
from hypermux.client import Client, ClientError, CursorFile, Record, Refused, Unavailable, event_id
from hypermux.core.recording import Encoder
from hypermux.model.accounts import SourceId
from hypermux.model.records import Event, Gap, Item

pytestmark = pytest.mark.live

GAP = Gap(NS, NS, "retention", "proven", 6)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    with services(folder) as begin:
        yield begin


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it try again at once."""
    monkeypatch.setattr(client, "RETRY_MIN_S", 0.001)
    monkeypatch.setattr(client, "RETRY_MAX_S", 0.01)


def heartbeat(cursor: str) -> bytes:
    return b'{"kind":"heartbeat","cursor":"%s"}\n' % cursor.encode()


def test_the_file_alone_is_enough(start: Start, folder: Path) -> None:
    shutil.copy(client.__file__, folder / "stream_client.py")
    service = start([subscribed("ep:0"), record(1) + record(2, GAP), end("ep:2")])
    program = f"""
import sys
sys.path.insert(0, {str(folder)!r})
from stream_client import Client
with Client({str(service.path)!r}, after="start", follow=False) as records:
    for record in records:
        print(record.cursor, record.kind, record.account, record.event and record.event["Action"])
assert not [name for name in sys.modules if name.split(".")[0] in ("hypermux", "attr", "trio")]
"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ep:1 event prod start\nep:2 gap prod None\n"


def test_an_older_python_reads_it() -> None:
    """What 3.10 and later added would be a SyntaxError there, or a name that is not there."""
    tree = ast.parse(Path(client.__file__).read_text(), feature_version=(3, 9))
    future = tree.body[1]
    assert isinstance(future, ast.ImportFrom)
    assert [name.name for name in future.names] == ["annotations"]
    keywords = [keyword.arg for node in ast.walk(tree) for keyword in getattr(node, "keywords", [])]
    assert not {"slots", "kw_only", "strict"} & set(keywords)


class TestRecords:
    def test_a_record_is_its_line_and_what_it_says(self, start: Start) -> None:
        lines = [record(1), record(2, GAP)]
        service = start([subscribed("ep:0"), *lines, end("ep:2")])
        with Client(service.path, after="start", follow=False) as records:
            event, gap = records
        assert [event.line, gap.line] == lines
        assert (event.seq, event.kind, event.cursor) == (1, "event", "ep:1")
        assert (event.account, event.region) == ("prod", "us-west-1")
        assert event.time == "2016-10-13T16:22:54.255155116Z"
        assert event.event_bytes == RAW
        assert event.event == json.loads(RAW)
        assert (gap.kind, gap.event, gap.event_bytes) == ("gap", None, None)
        assert gap.value["cause"] == "retention"
        assert records.cursor == "ep:2"

    def test_numbers_keep_their_digits(self) -> None:
        event = Event(b'{"timeNano":1476375774255155116}', NS, "timeNano")
        found = Record.parse(record(1, event)).event
        assert found == {"timeNano": 1476375774255155116}

    def test_a_line_of_a_file(self) -> None:
        assert Record.parse(record(7)).seq == 7
        for line in (b"{}\n", b"[1]\n", b"\xff\n", b'{"seq":"1","kind":"event"}\n'):
            with pytest.raises(ClientError):
                Record.parse(line)

    def test_lines_arrive_in_any_pieces(self, start: Start) -> None:
        lines = [record(seq) for seq in range(1, 40)]
        data = subscribed("ep:0") + b"".join(lines) + end("ep:39")
        service = start([data[at : at + 7] for at in range(0, len(data), 7)])
        with Client(service.path, follow=False) as records:
            assert [r.line for r in records] == lines


class TestAsking:
    def test_what_it_asks_for(self, start: Start) -> None:
        service = start([subscribed("ep:7"), end("ep:7")])
        with Client(
            service.path,
            after="ep:7",
            since=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
            until=1767323046,
            accounts=["p*", "q"],
            regions="us-*",
            kinds=["event"],
            filters={"event": ["start", "die"]},
            limit=3,
            follow=False,
        ) as records:
            assert list(records) == []
        assert service.requests == [
            {
                "after": "ep:7",
                "since": "1767323045.000678",
                "until": "1767323046",
                "accounts": ["p*", "q"],
                "regions": ["us-*"],
                "kinds": ["event"],
                "filters": {"event": ["start", "die"]},
                "limit": 3,
                "follow": False,
            }
        ]

    @pytest.mark.parametrize(
        ("moment", "sent"),
        [
            ("2016-10-13T16:22:54.25Z", "2016-10-13T16:22:54.25Z"),
            ("soon", "soon"),
            (1.5, "1.500000"),
            (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "1.000000"),
        ],
    )
    def test_moments(self, start: Start, moment: Any, sent: str) -> None:
        service = start([subscribed("ep:0"), end("ep:0")])
        list(Client(service.path, since=moment))
        assert service.requests[0]["since"] == sent

    @pytest.mark.parametrize("back", [timedelta(hours=1), "1h", "59m 60s", "0.5h30min"])
    def test_durations_count_back_once(self, start: Start, back: Any) -> None:
        """Or a client that is behind would skip what got too old while it was reading."""
        service = start([subscribed("ep:0")], [subscribed("ep:0"), end("ep:0")])
        before = datetime.now().timestamp()
        list(Client(service.path, since=back))
        first, second = service.requests
        assert before - 3600.1 <= float(first["since"]) <= datetime.now().timestamp() - 3599.9
        assert second["since"] == first["since"]

    def test_nothing_is_the_default(self, start: Start) -> None:
        service = start([subscribed("ep:0"), end("ep:0")])
        list(Client(service.path))
        assert service.requests == [{}]


class TestRestarts:
    def test_it_reads_on_by_cursor(self, start: Start) -> None:
        service = start(
            [subscribed("ep:4"), record(5) + record(6) + record(7)[:50]],
            [],
            [subscribed("ep:6"), record(7), record(8)],
        )
        told: list[str] = []
        with Client(service.path, limit=4, told=told.append) as records:
            assert [r.cursor for r in records] == ["ep:5", "ep:6", "ep:7", "ep:8"]
        assert [r.get("after") for r in service.requests] == [None, "ep:6", "ep:6"]
        assert [r["limit"] for r in service.requests] == [4, 2, 2]
        assert told == [
            f"the service at {service.path} closed the connection; waiting for it",
            "connected, reading on from ep:6",
        ]

    def test_another_epoch_shows_in_the_cursors(self, start: Start) -> None:
        rewritten = record(1, Gap(NS, NS, "rewritten", "possible"))
        service = start(
            [subscribed("old:1"), record(2)],
            [subscribed("new:0"), rewritten, record(2), end("new:2")],
        )
        with Client(service.path) as records:
            assert [r.cursor for r in records] == ["old:2", "new:1", "new:2"]
        assert service.requests[1]["after"] == "old:2"

    def test_a_cursor_stands_until_something_came(self, start: Start) -> None:
        """Or who is cut off before the gap for rewritten records is never told of them."""
        rewritten = record(1, Gap(NS, NS, "rewritten", "possible"))
        service = start(
            [subscribed("new:1")],
            [subscribed("new:1"), rewritten, record(2), end("new:2")],
        )
        with Client(service.path, after="old:2") as records:
            assert [r.cursor for r in records] == ["new:1", "new:2"]
        assert [r["after"] for r in service.requests] == ["old:2", "old:2"]

    def test_a_stream_that_always_breaks_is_asked_for_less_and_less_often(
        self, start: Start
    ) -> None:
        begun = [subscribed("ep:4")]
        service = start(*[begun] * 5, [*begun, record(5)], [subscribed("ep:5"), end("ep:5")])
        ceilings: list[float] = []

        class Chance(random.Random):
            def uniform(self, a: float, b: float) -> float:
                ceilings.append(b)
                return 0

        with Client(service.path) as records:
            records._rng = Chance()
            assert [r.seq for r in records] == [5]
        assert ceilings == [0.002, 0.004, 0.008, 0.01, 0.01, 0.002]

    def test_a_service_that_is_not_there_yet(self, folder: Path) -> None:
        path = folder / "h.sock"
        services: list[Service] = []
        with pytest.raises(Unavailable, match="no hypermux serves"):
            next(Client(path))

        def told(sentence: str) -> None:
            if not services:
                services.append(Service(path, [subscribed("ep:0"), record(1), end("ep:1")]))

        with Client(path, wait=True, told=told) as records:
            assert [r.seq for r in records] == [1]
        services[0].close()

    def test_without_reconnecting_it_says_so_and_can_go_on(self, start: Start) -> None:
        service = start(
            [subscribed("ep:0"), record(1)], [subscribed("ep:1"), record(2), end("ep:2")]
        )
        with Client(service.path, reconnect=False) as records:
            assert next(records).seq == 1
            with pytest.raises(Unavailable, match="closed the connection"):
                next(records)
            assert [r.seq for r in records] == [2]
        assert service.requests[1]["after"] == "ep:1"

    def test_heartbeats_move_the_cursor(self, start: Start) -> None:
        service = start(
            [subscribed("ep:0"), record(1) + heartbeat("ep:900") + heartbeat("ep:901")],
            [subscribed("ep:901"), end("ep:950")],
        )
        heard: list[str] = []
        with Client(service.path, heartbeat_s=5, on_heartbeat=heard.append) as records:
            assert [r.cursor for r in records] == ["ep:1"]
        assert heard == ["ep:900", "ep:901"]
        assert service.requests[0] == {"heartbeat": "5.000s"}
        assert [r.get("after") for r in service.requests] == [None, "ep:901"]
        assert records.cursor == "ep:950"

    def test_a_service_that_misses_its_heartbeats_is_left(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service = start(
            [subscribed("ep:0"), record(1)], [subscribed("ep:1"), end("ep:1")], hold=True
        )
        monkeypatch.setattr(client, "GRACE_S", 0.02)
        told: list[str] = []

        def tell(sentence: str) -> None:
            told.append(sentence)
            service.release_one()  # it would serve nobody else before

        with Client(service.path, heartbeat_s=0.01, told=tell) as records:
            assert [r.seq for r in records] == [1]
        assert "hangs" in told[0]


class TestEnds:
    @pytest.mark.parametrize(
        ("cause", "error"),
        [
            ("request", Refused),
            ("cursor", Refused),
            ("denied", Refused),
            ("busy", Unavailable),
            ("fault", Unavailable),
        ],
    )
    def test_refusals(self, start: Start, cause: str, error: type[ClientError]) -> None:
        line = json.dumps({"kind": "error", "cause": cause, "error": "for a reason"}).encode()
        service = start([line + b"\n"])
        with pytest.raises(error, match="for a reason") as caught:
            next(Client(service.path))
        assert getattr(caught.value, "cause", cause) == cause

    def test_a_fault_within_the_stream(self, start: Start) -> None:
        fault = b'{"kind":"error","cause":"fault","error":"disk"}\n'
        service = start([subscribed("ep:0"), record(1) + fault])
        records = Client(service.path)
        assert next(records).seq == 1
        with pytest.raises(Unavailable, match="disk"):
            next(records)
        records.close()

    @pytest.mark.parametrize(
        "said", [b"HTTP/1.1 400 Bad\r\n\r\n", b"[]\n", b'{"kind":"subscribed"}\n']
    )
    def test_what_is_no_hypermux(self, start: Start, said: bytes) -> None:
        service = start([said])
        with pytest.raises(ClientError, match=r"no hypermux socket|refuses"):
            next(Client(service.path))

    def test_closed_from_another_thread(self, start: Start) -> None:
        service = start([subscribed("ep:0"), record(1)], hold=True)
        records = Client(service.path)
        assert next(records).seq == 1
        closer = threading.Timer(0.05, records.close)
        closer.start()
        assert list(records) == []
        closer.join()

    def test_closed_while_it_waits_for_a_service(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "RETRY_MIN_S", 60.0)
        records = Client(folder / "h.sock", wait=True)
        closer = threading.Timer(0.05, records.close)
        closer.start()
        assert list(records) == []
        closer.join()

    def test_what_a_later_version_says_is_passed_over(self, start: Start) -> None:
        service = start([subscribed("ep:0"), b'{"kind":"news"}\n' + record(1), end("ep:1")])
        assert [r.seq for r in Client(service.path)] == [1]


class TestEventId:
    def other(
        self, seq: int, item: Item, account: str = "prod", region: str = "us-west-1"
    ) -> Record:
        source = SourceId(account, region)
        return Record.parse(
            Encoder().encode(seq, item, source=source, at_ns=NS + seq, received_ns=NS + 2 * seq)
        )

    def test_two_instances_give_the_same(self) -> None:
        first = event_id(self.other(1, Event(RAW, NS, "timeNano")))
        assert first == event_id(self.other(70, Event(RAW, NS, "timeNano", replayed=True)))
        assert first is not None
        assert len(first) == 32

    def test_what_differs_differs(self) -> None:
        event = Event(RAW, NS, "timeNano")
        found = {
            event_id(self.other(1, event)),
            event_id(self.other(1, event, account="prod2")),
            event_id(self.other(1, event, region="us-west-2")),
            event_id(self.other(1, Event(RAW.replace(b"web", b"wep"), NS, "timeNano"))),
        }
        assert len(found) == 4
        assert None not in found

    def test_it_is_what_the_documentation_says(self) -> None:
        made = self.other(1, Event(RAW, NS, "timeNano"))
        expected = hashlib.sha256(b"prod\nus-west-1\n" + RAW).hexdigest()[:32]
        assert event_id(made) == expected
        shell = """\
            read -r line
            printf '%s\\n%s\\n%s' "$(echo "$line" | jq -r .account)" \
              "$(echo "$line" | jq -r .region)" \
              "$(echo "$line" | sed 's/.*,"event":\\(.*\\),"crc":.*/\\1/')" |
              sha256sum | cut -c1-32"""
        done = subprocess.run(
            ["sh", "-c", shell], input=made.line, capture_output=True, check=True, timeout=30
        )
        assert done.stdout.decode().strip() == expected

    def test_other_kinds_have_none(self) -> None:
        assert event_id(Record.parse(record(1, GAP))) is None


class TestCursorFile:
    def test_it_keeps_a_cursor(self, tmp_path: Path) -> None:
        path = tmp_path / "c"
        with CursorFile(path) as place:
            assert place.load() is None
            place.save("ep:5")
            place.sync()
        with CursorFile(path) as place:
            assert place.load() == "ep:5"
            place.save("ep:123456789")
            place.save("e:6")
            assert place.load() == "e:6"
        assert path.read_text().split() == ["e:6"]
        assert path.stat().st_size == 64

    def test_a_file_that_a_person_wrote(self, tmp_path: Path) -> None:
        path = tmp_path / "c"
        path.write_text("323c83f0:1042\n")
        with CursorFile(path) as place:
            assert place.load() == "323c83f0:1042"
        assert path.read_text().strip() == "323c83f0:1042"
        assert path.stat().st_size == 64

    @pytest.mark.parametrize("text", ["hello\n", "ep:5 ep:6\n", "ep:\n", "ep:5" + 300 * " " + "x"])
    def test_another_file_is_left_alone(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "c"
        path.write_text(text)
        with pytest.raises(ClientError, match="holds no cursor"):
            CursorFile(path)
        assert path.read_text() == text

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        with CursorFile(tmp_path / "c"), pytest.raises(ClientError, match="another reader"):
            CursorFile(tmp_path / "c")

    def test_only_cursors_are_kept(self, tmp_path: Path) -> None:
        with CursorFile(tmp_path / "c") as place:
            place.save("ep:5")
            for text in ("ep", f"{70 * 'e'}:5", "ep:5 "):
                with pytest.raises(ClientError, match="EPOCH:SEQ"):
                    place.save(text)
            assert place.load() == "ep:5"

    def test_no_plain_file(self) -> None:
        with pytest.raises(ClientError, match="no plain file"):
            CursorFile(os.devnull)

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("real")
        with CursorFile(tmp_path / "link") as place:
            place.save("ep:5")
        assert (tmp_path / "real").read_text().strip() == "ep:5"
