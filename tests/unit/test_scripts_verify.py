"""scripts/verify finds every way in which a journal can differ from what was sent.

The journals here are written by this file's own code, crc included: neither side of the
comparison comes from hypermux.
"""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import zstandard
from attrs import define, field

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify"
START_NS = 1_700_000_000_000_000_000
MS = 1_000_000
SECOND = 1000 * MS
SOURCES = (("dev", "r1"), ("prod", "r1"), ("prod", "r2"))


def load() -> Any:
    loader = SourceFileLoader("verify_script", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = kept
    return module


VERIFY = load()


def rfc3339(ns: int) -> str:
    seconds, rest = divmod(ns, SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def sealed(body: bytes) -> bytes:
    return body + f',"crc":"{zlib.crc32(body):08x}"}}\n'.encode()


def record(seq: int, kind: str, at_ns: int, source: tuple[str, str] | None, **keys: Any) -> bytes:
    event = keys.pop("event", None)
    head: dict[str, Any] = {"seq": seq, "kind": kind, "time": rfc3339(at_ns)}
    head["received"] = rfc3339(at_ns + MS)
    if source:
        head["account"], head["region"] = source
    body = json.dumps(head | keys, separators=(",", ":")).encode()[:-1]
    return sealed(body + (b',"event":' + event if event is not None else b""))


def event(number: int) -> bytes:
    return f'{{"Action":"start","n":{number},"text":"a,\\"event\\":{{b"}}'.encode()


def manifest_line(number: int, connection: int, *, raw: bytes | None = None) -> bytes:
    account, region = SOURCES[number % 3]
    head = f'{{"time":{sent_ns(number)},"account":"{account}","region":"{region}",'
    tail = f'"connection":{connection},"event":'
    return (head + tail).encode() + (raw if raw is not None else event(number)) + b"}\n"


def sent_ns(number: int) -> int:
    return START_NS + number * 100 * MS


@define
class Bench:
    """A state directory, a manifest and an accept log, before they are written."""

    directory: Path
    lines: list[bytes] = field(factory=list)
    manifest: list[bytes] = field(factory=list)
    accepts: list[int] = field(factory=list)

    def run(self, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, int]]:
        journal = self.directory / "journal"
        journal.mkdir(exist_ok=True)
        (journal / "00000000000000000001.ndjson").write_bytes(b"".join(self.lines))
        (self.directory / "manifest").write_bytes(b"".join(self.manifest))
        accepts = [
            {"time": t, "account": None, "region": None, "answer": 101} for t in self.accepts
        ]
        (self.directory / "accepts").write_text("".join(json.dumps(a) + "\n" for a in accepts))
        code = VERIFY.main([*self.arguments, *options])
        line = capsys.readouterr().out.strip()
        return code, {k: int(v) for k, _, v in (pair.partition("=") for pair in line.split())}

    @property
    def arguments(self) -> list[str]:
        return [str(self.directory), *(str(self.directory / n) for n in ("manifest", "accepts"))]

    def renumber(self) -> None:
        """Give the lines contiguous seqs and right crcs, whatever was done to them."""
        for index, line in enumerate(self.lines):
            rest = line[:-19].partition(b",")[2]
            self.lines[index] = sealed(b'{"seq":%d,' % (index + 1) + rest)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return twelve events, by turns of three sources; each reconnects after two."""
    made = Bench(tmp_path)
    for number in range(12):
        made.manifest.append(manifest_line(number, number % 3 + number // 6 * 3))
        source = SOURCES[number % 3]
        made.lines.append(record(number + 1, "event", sent_ns(number), source, event=event(number)))
    made.accepts = [START_NS, START_NS + 999 * MS, START_NS + 1000 * MS, START_NS + 5000 * MS]
    return made


def gap(seq: int, number: int, source: tuple[str, str], **keys: Any) -> bytes:
    """Return a gap that spans event `number`'s time by a nanosecond on each side."""
    bounds = {"from": rfc3339(sent_ns(number) - 1), "to": rfc3339(sent_ns(number) + 1)}
    more = {"cause": "closed", "certainty": "possible", **keys}
    return record(seq, "gap", sent_ns(11) + 1, source, **(bounds | more))


def test_all_recorded(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    code, counts = bench.run(capsys)
    assert code == 0
    assert counts == {
        "sent": 12,
        "recorded": 12,
        "missing": 0,
        "extra": 0,
        "misordered": 0,
        "dials": 4,
        "most_dials_per_second": 2,
        "covered": 0,
        "late": 0,
        "gaps": 0,
        "damaged": 0,
    }
    assert list(counts)[:6] == ["sent", "recorded", "missing", "extra", "misordered", "dials"]


def test_runs_alone(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(capsys)
    del bench.lines[4]
    (bench.directory / "journal" / "00000000000000000001.ndjson").write_bytes(b"".join(bench.lines))
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *bench.arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.startswith(
        "sent=12 recorded=11 missing=1 extra=0 misordered=1 dials=4 most_dials_per_second=2 "
    )
    assert "missing: manifest line 5: prod/r1" in done.stderr
    assert "misordered: 00000000000000000001.ndjson:5: seq 6, expected 5" in done.stderr


def test_compressed_segments_count_where_there_is_no_plain_one(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run(capsys)
    journal = bench.directory / "journal"
    plain = journal / "00000000000000000001.ndjson"
    packed = [zstandard.compress(b"".join(bench.lines[at : at + 4])) for at in (0, 4)]
    skipped = b"\x5e\x2a\x4d\x18\3\0\0\0abc"
    (journal / f"{plain.name}.zst").write_bytes(b"".join(packed) + skipped)
    (journal / "00000000000000000009.ndjson").write_bytes(b"".join(bench.lines[8:]))
    assert VERIFY.main(bench.arguments) == 0  # the plain one, up to its successor
    plain.unlink()
    assert VERIFY.main(bench.arguments) == 0
    assert "recorded=12 " in capsys.readouterr().out
    (journal / f"{plain.name}.zst").write_bytes(packed[0] + skipped)
    assert VERIFY.main(bench.arguments) == 1


def test_shares_no_code_with_hypermux() -> None:
    tree = ast.parse(SCRIPT.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    # What unpacks compressed segments is asked for only where there are any.
    assert imported - {"zstandard"} <= sys.stdlib_module_names


# Each takes one change to the journal (or what was sent) and the counts that it must cause.
def deleted(bench: Bench) -> None:
    del bench.lines[4]


def deleted_and_renumbered(bench: Bench) -> None:
    del bench.lines[4]
    bench.renumber()


def doubled(bench: Bench) -> None:
    bench.lines.insert(5, bench.lines[5])


def doubled_and_renumbered(bench: Bench) -> None:
    doubled(bench)
    bench.renumber()


def swapped(bench: Bench) -> None:
    bench.lines[4], bench.lines[7] = bench.lines[7], bench.lines[4]


def swapped_events(bench: Bench) -> None:
    """Two events of one connection change places inside otherwise right records."""
    source = SOURCES[1]
    bench.lines[1] = record(2, "event", sent_ns(1), source, event=event(4))
    bench.lines[4] = record(5, "event", sent_ns(4), source, event=event(1))


def swapped_sources(bench: Bench) -> None:
    """Two sources' records change places: each source's own order is right."""
    bench.lines[4], bench.lines[5] = bench.lines[5], bench.lines[4]
    bench.renumber()


def altered(bench: Bench) -> None:
    bench.lines[4] = bench.lines[4].replace(b"start", b"stert")


def altered_with_a_right_crc(bench: Bench) -> None:
    bench.lines[4] = sealed(bench.lines[4][:-19].replace(b"start", b"stert"))


def white_space_altered_with_a_right_crc(bench: Bench) -> None:
    bench.lines[4] = sealed(bench.lines[4][:-19].replace(b'"n":', b'"n": '))


def other_source(bench: Bench) -> None:
    bench.lines[4] = bench.lines[4][:-19].replace(b'"r1"', b'"r9"')
    bench.lines[4] = sealed(bench.lines[4])


def torn_inside(bench: Bench) -> None:
    bench.lines[4] = bench.lines[4][:30] + b"\n"


def not_sent(bench: Bench) -> None:
    del bench.manifest[4]


def sent_again(bench: Bench) -> None:
    bench.manifest.append(bench.manifest[4])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (deleted, {"recorded": 11, "missing": 1, "misordered": 1}),
        (deleted_and_renumbered, {"recorded": 11, "missing": 1}),
        (doubled, {"recorded": 13, "extra": 1, "misordered": 1}),
        (doubled_and_renumbered, {"recorded": 13, "extra": 1}),
        # 1 2 3 4 8 6 7 5 9: four steps of seq, two of time (at 6 and at 5)
        (swapped, {"misordered": 6}),
        (swapped_events, {"misordered": 1}),
        (swapped_sources, {"misordered": 1}),
        (altered, {"recorded": 11, "missing": 1, "damaged": 1}),
        (altered_with_a_right_crc, {"missing": 1, "extra": 1}),
        (white_space_altered_with_a_right_crc, {"missing": 1, "extra": 1}),
        (other_source, {"missing": 1, "extra": 1}),
        (torn_inside, {"recorded": 11, "missing": 1, "damaged": 1}),
        (not_sent, {"sent": 11, "extra": 1}),
        (sent_again, {"sent": 13, "missing": 1}),
    ],
)
def test_one_change(
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Bench], None],
    expected: dict[str, int],
) -> None:
    change(bench)
    code, counts = bench.run(capsys)
    assert code == 1
    usual = {"sent": 12, "recorded": 12}
    rest = ("missing", "extra", "misordered", "damaged", "covered")
    assert counts == counts | usual | dict.fromkeys(rest, 0) | expected


# --- gaps ------------------------------------------------------------------------------------


def test_a_gap_around_it_covers_it(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    del bench.lines[4]
    bench.lines.append(gap(12, 4, SOURCES[1]))
    bench.renumber()
    code, counts = bench.run(capsys, "--slack", "0ms")
    assert (code, counts["missing"], counts["covered"], counts["gaps"]) == (0, 0, 1, 1)


def test_a_gap_covers_no_hole_in_a_connection(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection loses its end: what came behind the lost event shows that it was open."""
    del bench.lines[1]
    bench.lines.append(gap(12, 1, SOURCES[1]))
    bench.renumber()
    assert bench.run(capsys)[1]["missing"] == 1
    del bench.lines[3]  # the event behind it, now at the end too
    bench.renumber()
    code, counts = bench.run(capsys, "--slack", "400ms")
    assert (code, counts["covered"]) == (0, 2)


def test_another_sources_gap_does_not(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    del bench.lines[4]
    bench.lines.append(gap(12, 4, SOURCES[2]))
    bench.renumber()
    code, counts = bench.run(capsys)
    assert (code, counts["missing"], counts["covered"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("slack", "code"), [("250ms", 1), ("299.999998ms", 1), ("300ms", 0), ("1s", 0)]
)
def test_slack_widens_a_gap(
    bench: Bench, capsys: pytest.CaptureFixture[str], slack: str, code: int
) -> None:
    del bench.lines[4]
    bench.lines.append(gap(12, 7, SOURCES[1]))  # 300 ms after it
    bench.renumber()
    assert bench.run(capsys, "--slack", slack)[0] == code


def test_a_gap_covers_what_is_after_a_shorter_one(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    del bench.lines[10]
    wide = {"from": rfc3339(sent_ns(0)), "to": rfc3339(sent_ns(11))}
    bench.lines += [gap(12, 4, SOURCES[1], **wide), gap(13, 4, SOURCES[1])]
    bench.renumber()
    code, counts = bench.run(capsys, "--slack", "0ms")
    assert (code, counts["covered"], counts["gaps"]) == (0, 1, 2)


@pytest.mark.parametrize(("lost", "missing"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_a_counted_gap_covers_its_count_and_no_more(
    bench: Bench, capsys: pytest.CaptureFixture[str], lost: int, missing: int
) -> None:
    del bench.lines[7], bench.lines[4]
    wide = {"from": rfc3339(sent_ns(0)), "to": rfc3339(sent_ns(11))}
    bench.lines.append(gap(11, 4, SOURCES[1], lost=lost, certainty="proven", **wide))
    bench.renumber()
    code, counts = bench.run(capsys)
    assert (code, counts["missing"], counts["covered"]) == (int(missing > 0), missing, 2 - missing)


@pytest.mark.parametrize(("ends", "code"), [(("down",), 0), (("down", "up"), 1)])
def test_an_outage_without_its_gap_yet(
    bench: Bench, capsys: pytest.CaptureFixture[str], ends: tuple[str, ...], code: int
) -> None:
    del bench.lines[10]
    for state in ends:
        keys = {"state": state, "from": rfc3339(sent_ns(9))}
        bench.lines.append(record(1, "state", sent_ns(12), SOURCES[1], **keys))
    bench.renumber()
    assert bench.run(capsys, "--slack", "0ms")[0] == code


# --- order -----------------------------------------------------------------------------------


def test_late_records_may_be_behind(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    moved = bench.lines.pop(3)
    bench.lines.insert(5, sealed(moved[:-19].replace(b',"event":', b',"late":true,"event":')))
    bench.renumber()
    code, counts = bench.run(capsys)
    assert (code, counts["late"], counts["misordered"]) == (0, 1, 0)


def test_late_records_keep_their_connections_order(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = bench.lines.pop(0)
    bench.lines.insert(3, sealed(moved[:-19].replace(b',"event":', b',"late":true,"event":')))
    bench.renumber()
    code, counts = bench.run(capsys)
    assert (code, counts["late"], counts["misordered"]) == (1, 1, 1)


def test_at_orders_and_time_does_not(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    body = bench.lines[4][:-19].replace(
        rfc3339(sent_ns(4)).encode(), f'{rfc3339(1)}","at":"{rfc3339(sent_ns(4))}'.encode()
    )
    bench.lines[4] = sealed(body)
    assert bench.run(capsys)[0] == 0


def test_equal_times_are_ordered_by_account_and_region(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    now = START_NS
    bench.manifest = [manifest_line(n, n) for n in range(3)]
    bench.lines = [record(n + 1, "event", now, SOURCES[n], event=event(n)) for n in range(3)]
    assert bench.run(capsys)[0] == 0
    bench.lines.reverse()
    bench.renumber()
    code, counts = bench.run(capsys)
    assert (code, counts["misordered"]) == (1, 2)


@pytest.mark.parametrize(
    ("recorded", "misordered"),
    [("aba", 0), ("ba", 0), ("ab", 0), ("aa", 0), ("aab", 1), ("baa", 1)],
)
def test_repeats_of_the_same_bytes(
    bench: Bench, capsys: pytest.CaptureFixture[str], recorded: str, misordered: int
) -> None:
    raws = {letter: b'{"x":"%s"}' % letter.encode() for letter in "ab"}
    bench.manifest = [manifest_line(0, 0, raw=raws[letter]) for letter in "aba"]
    bench.lines = [
        record(n, "event", sent_ns(0), SOURCES[0], event=raws[letter])
        for n, letter in enumerate(recorded, 1)
    ]
    _, counts = bench.run(capsys)
    assert counts["misordered"] == misordered
    assert (counts["extra"], counts["missing"]) == (0, 3 - len(recorded))


def test_order_holds_within_a_connection_only(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.manifest = [manifest_line(n, n) for n in (0, 3)]
    bench.lines = [
        record(i + 1, "event", START_NS, SOURCES[0], event=event(n)) for i, n in enumerate((3, 0))
    ]
    assert bench.run(capsys)[0] == 0
    bench.manifest = [manifest_line(n, 0) for n in (0, 3)]
    assert bench.run(capsys)[1]["misordered"] == 1


# --- segments, epochs, bytes -----------------------------------------------------------------


def test_segments(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    journal = bench.directory / "journal"
    journal.mkdir()
    for first in (5, 9):
        name = f"{first:020}.ndjson"
        (journal / name).write_bytes(b"".join(bench.lines[first - 1 : first + 3]))
    # Behind the next segment's first seq a file says nothing: it was written again there.
    bench.lines = [*bench.lines[:4], bench.lines[4].replace(b"start", b"stert"), b'{"seq":6,"ki']
    code, counts = bench.run(capsys)
    assert (code, counts["recorded"]) == (0, 12)
    (journal / f"{5:020}.ndjson").rename(journal / f"{6:020}.ndjson")
    assert bench.run(capsys)[0] == 1
    (journal / f"{6:020}.ndjson").unlink()
    code, counts = bench.run(capsys)
    assert (code, counts["missing"]) == (1, 4)


def test_epochs(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    journal = bench.directory / "journal"
    journal.mkdir()

    def with_epochs(*epochs: tuple[str, int]) -> int:
        rows = (f'{{epoch = "{name}", first_seq = {seq}}}' for name, seq in epochs)
        text = f"format = 1\nepochs = [{', '.join(rows)}]\n"
        (journal / "journal.toml").write_text(text)
        return bench.run(capsys)[0]

    assert with_epochs(("aa", 1), ("bb", 6), ("cc", 13)) == 0
    assert with_epochs(("aa", 6), ("bb", 7)) == 1
    assert with_epochs(("aa", 1), ("bb", 14)) == 1
    assert with_epochs(("aa", 1), ("aa", 3)) == 1
    assert with_epochs() == 1


def test_a_last_line_under_way_is_no_damage(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.lines.append(bench.lines[0][:40])
    code, counts = bench.run(capsys)
    assert (code, counts["damaged"]) == (0, 0)


def test_text_that_is_recorded_in_another_form(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = '{"a":\t"é😀","n":1.50}'.encode()
    recorded = rb'{"a": "\u00e9\ud83d\ude00","n":1.50}'
    bench.manifest = [manifest_line(0, 0, raw=sent)]
    bench.lines = [record(1, "event", START_NS, SOURCES[0], event=recorded)]
    assert bench.run(capsys)[0] == 0


@pytest.mark.parametrize("text", ["", "not\njson", '["é"]', "x" * 4096, "é" * 5000])
def test_messages_that_are_no_events(
    bench: Bench, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    account, region = SOURCES[0]
    keys = {"time": START_NS, "account": account, "region": region, "connection": 0}
    bench.manifest = [json.dumps(keys | {"text": text}, separators=(",", ":")).encode() + b"\n"] * 2
    size = len(text.encode())
    shown = {"text": text[:4096], "size": size, "reason": "not JSON"}
    line = record(1, "unparsed", START_NS, SOURCES[0], **shown)
    bench.lines = [line, line]
    bench.renumber()
    code, counts = bench.run(capsys)
    assert (code, counts["sent"], counts["recorded"]) == (0, 2, 2)
    bench.lines.append(line)
    bench.renumber()
    assert bench.run(capsys)[1]["extra"] == 1
    shown["size"] = size + 1
    shown["text"] = "y" + text[1:4096]
    bench.lines[1:] = [record(2, "unparsed", START_NS, SOURCES[0], **shown)]
    code, counts = bench.run(capsys)
    assert (counts["missing"], counts["extra"]) == (1, 1)


def test_an_event_sent_as_text(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    account, region = SOURCES[0]
    text = '{"Action":\n"start"}\n'
    keys = {"time": START_NS, "account": account, "region": region, "connection": 0, "text": text}
    bench.manifest = [json.dumps(keys).encode() + b"\n"]
    event = b'{"Action": "start"}'
    bench.lines = [record(1, "event", START_NS, SOURCES[0], event=event)]
    assert bench.run(capsys)[0] == 0


def test_state_directory_may_be_the_journal(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run(capsys)
    assert VERIFY.main([str(bench.directory / "journal"), *bench.arguments[1:]]) == 0


@pytest.mark.parametrize("name", ["manifest", "accepts", "journal/00000000000000000001.ndjson"])
def test_unreadable(bench: Bench, capsys: pytest.CaptureFixture[str], name: str) -> None:
    bench.run(capsys)
    (bench.directory / name).unlink()
    assert VERIFY.main(bench.arguments) == 2
    if "/" not in name:
        (bench.directory / name).write_text("not json\n")
        assert VERIFY.main(bench.arguments) == 2


def test_problems_are_told_up_to_a_limit(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.manifest += [manifest_line(n, 0) for n in range(12, 62)]
    bench.run(capsys)
    VERIFY.main(bench.arguments)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 21
    assert told[-1] == "... and 30 more"


def test_most_dials_in_any_second(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(7)
    bench.accepts = [START_NS + rng.randrange(20 * SECOND) for _ in range(300)]
    _, counts = bench.run(capsys)
    most = max(sum(1 for b in bench.accepts if a <= b < a + SECOND) for a in bench.accepts)
    assert (counts["dials"], counts["most_dials_per_second"]) == (300, most)
