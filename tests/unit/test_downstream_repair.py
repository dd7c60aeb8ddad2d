from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from journals import SOURCES, flip, made, open_journal, segments, write

from hypermux.core.recording import parse_rfc3339
from hypermux.core.request import Request
from hypermux.downstream.checking import DAMAGE, Check, Report
from hypermux.downstream.manifest import MANIFEST
from hypermux.downstream.onlooker import Onlooker
from hypermux.downstream.reading import Rewritten, resolve_cursor
from hypermux.downstream.repair import Repair
from hypermux.downstream.storage import DiskStorage
from hypermux.model.errors import DamagedData, DiskFault
from hypermux.model.records import Cursor


def look(directory: Path, **how: Any) -> Onlooker:
    given: dict[str, Any] = {"told_seq": None, "locked": False, **how}
    return Onlooker.open(directory, DiskStorage(), **given)


def check(directory: Path) -> Report:
    return Check(look(directory)).run()


def cat(directory: Path) -> list[bytes]:
    request = Request.of({"follow": False}, 0)
    return b"".join(look(directory).blocks(request)).splitlines(keepends=True)


def repair(directory: Path, storage: DiskStorage | None = None, epoch: str = "e2") -> list[str]:
    onlooker = look(directory)
    report = Check(onlooker).run()
    work = Repair(directory, storage or DiskStorage(), report, onlooker.manifest, epoch, 10**15)
    plan = work.plan()
    if plan:
        work.run()
    return plan


def test_a_sound_journal_is_left_as_it_is(tmp_path: Path) -> None:
    made(tmp_path, 100)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert check(tmp_path).sound
    assert repair(tmp_path) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_any_changed_byte_of_any_file_is_found(tmp_path: Path) -> None:
    made(tmp_path, 60)
    rng = random.Random(3)
    for path in [*segments(tmp_path), *tmp_path.glob("*.index"), *tmp_path.glob("*.sources")]:
        whole = path.read_bytes()
        for offset in {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(12))}:
            flip(path, offset)
            report = check(tmp_path)
            assert not report.sound, f"{path.name} at {offset}"
            path.write_bytes(whole)
    assert check(tmp_path).sound


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    made(tmp_path, 100)
    first, second, *_ = segments(tmp_path)
    kept = second.with_suffix(".sources").read_bytes()
    second.with_suffix(".sources").write_bytes(first.with_suffix(".sources").read_bytes())
    shutil.copy(first.with_suffix(".index"), second.with_suffix(".index"))
    names = {fault.name: fault.reason for fault in check(tmp_path).faults}
    assert names == {
        second.with_suffix(".sources").name: "it is not what the records before it say",
        second.with_suffix(".index").name: "it is that of segment 1",
    }
    repair(tmp_path)
    assert check(tmp_path).sound
    saved = second.with_name(f"{second.stem}.sources.e2.damaged")
    assert saved.read_bytes() == first.with_suffix(".sources").read_bytes() != kept
    # What is only missing is no fault.
    report = check(tmp_path)
    assert [line.split(" is missing")[0] for line in report.remarks] == [
        str(second.with_suffix(ending)) for ending in (".sources", ".index")
    ]


def test_lost_records_are_told_in_their_place(tmp_path: Path) -> None:
    lines = made(tmp_path, 100)
    first, second, *_, last = segments(tmp_path)
    flip(first, len(lines[0]) + 10)  # record 2
    whole = second.read_bytes().splitlines(keepends=True)
    lost_seq = int(second.stem) + 4
    second.write_bytes(b"".join(whole[:4] + whole[7:]))  # three were cut out
    flip(last, 20)
    with pytest.raises(DamagedData, match="hypermux journal repair"):
        open_journal(tmp_path)
    plan = repair(tmp_path)
    assert "5 lost records are replaced by gaps" in plan[-1]
    assert check(tmp_path).sound
    after = cat(tmp_path)
    expected_lost = {2, lost_seq, lost_seq + 1, lost_seq + 2, int(last.stem)}
    assert [json.loads(line)["seq"] for line in after] == list(range(1, len(after) + 1))
    for seq, line in enumerate(lines, 1):
        told = json.loads(after[seq - 1])
        if seq in expected_lost:
            assert (told["kind"], told["cause"], told["lost"]) == ("gap", DAMAGE, 1)
            assert told["certainty"] == "proven"
            assert parse_rfc3339(told["from"]) < seq * 10**9 < parse_rfc3339(told["to"])
        else:
            assert after[seq - 1] == line
    told = json.loads(after[100])
    assert (told["kind"], told["state"]) == ("state", "epoch")
    assert "5 records were lost" in told["reason"]
    saved = {path.name: path.read_bytes() for path in tmp_path.glob("*.damaged")}
    assert len(saved) == 2  # of what was cut out there are no bytes
    assert len(saved[f"{2:020}.e2.damaged"]) == len(lines[1])
    # It starts, in the new epoch; cursors of the old one go on, with what they have.
    journal = open_journal(tmp_path)
    assert (journal.epoch, journal.next_seq, journal.cut) == ("e2", 102, 0)
    assert resolve_cursor(Cursor("e1", 100), journal.epochs, 102) == 100
    assert "rewritten" in str(resolve_cursor(Cursor("e1", 101), journal.epochs, 102))
    write(journal, 20)
    journal.close()
    assert check(tmp_path).sound


def test_a_lost_end_is_told_by_one_gap(tmp_path: Path) -> None:
    lines = made(tmp_path, 100)
    last = segments(tmp_path)[-1]
    first_seq = int(last.stem)
    keep = len(lines[first_seq - 1])
    data = last.read_bytes()
    last.write_bytes(data[:keep] + bytes(len(data) - keep))  # the mark knows that it was synced
    repair(tmp_path)
    assert check(tmp_path).sound
    after = cat(tmp_path)
    assert after[:first_seq] == lines[:first_seq]
    told = [json.loads(line) for line in after[first_seq:]]
    assert [(r["seq"], r["kind"]) for r in told] == [  # in the new epoch, both
        (first_seq + 1, "gap"),
        (first_seq + 2, "state"),
    ]
    assert told[0]["lost"] == 100 - first_seq
    journal = open_journal(tmp_path)
    assert [(e.name, e.first_seq) for e in journal.epochs] == [("e1", 1), ("e2", first_seq + 1)]
    # Whoever had the lost ones is told that others stand in their place.
    found = resolve_cursor(Cursor("e1", 100), journal.epochs, 101)
    assert isinstance(found, Rewritten)
    assert (found.epoch, found.after) == ("e2", first_seq)
    # Both were connected, and nothing says that they were to the end.
    for source in SOURCES:
        covered = journal.coverage.sources[source]
        assert not covered.up
        assert covered.in_outage
        assert covered.cause == DAMAGE
        assert covered.outage_from_ns is not None
        assert covered.outage_from_ns <= first_seq * 10**9
    journal.close()


def test_only_sources_without_a_sign_of_life_count_as_disconnected(tmp_path: Path) -> None:
    lines = made(tmp_path, 40, segment_size=1 << 20)
    (path,) = segments(tmp_path)
    # Only b (the odd seqs) has a record behind the damage; the last one says what was synced.
    data = bytearray(b"".join(lines))
    for seq in (35, 36, 37, 38):
        data[len(b"".join(lines[: seq - 1])) + 9] ^= 1
    path.write_bytes(bytes(data))
    path.with_suffix(".index").unlink()
    repair(tmp_path)
    journal = open_journal(tmp_path)
    states = {s.account: c for s, c in journal.coverage.sources.items()}
    assert (states["a"].up, states["a"].outage_from_ns) == (False, 30 * 10**9)  # the checkpoint
    assert states["b"].up
    journal.close()


def test_without_a_manifest_all_records_stay_and_no_cursor_fits(tmp_path: Path) -> None:
    lines = made(tmp_path, 50)
    (tmp_path / MANIFEST).write_text("nonsense")
    with pytest.raises(DamagedData, match="hypermux journal repair"):
        open_journal(tmp_path)
    repair(tmp_path)
    assert (tmp_path / f"{MANIFEST}.e2.damaged").read_text() == "nonsense"
    assert check(tmp_path).sound
    assert cat(tmp_path)[:50] == lines
    journal = open_journal(tmp_path)
    assert [(e.name, e.first_seq) for e in journal.epochs] == [("e2", 51)]
    assert "never had" in str(resolve_cursor(Cursor("e1", 10), journal.epochs, 52))
    journal.close()


def test_missing_segments_are_told_record_by_record(tmp_path: Path) -> None:
    lines = made(tmp_path, 100)
    paths = segments(tmp_path)
    for path in paths[1:3]:
        path.unlink()
    lost = range(int(paths[1].stem), int(paths[3].stem))
    repair(tmp_path)
    assert check(tmp_path).sound
    after = cat(tmp_path)
    for seq in range(1, 101):
        told = json.loads(after[seq - 1])
        assert told["seq"] == seq
        assert (told.get("cause") == DAMAGE) == (seq in lost)
        assert seq in lost or after[seq - 1] == lines[seq - 1]


def test_a_tail_that_was_not_synced_is_kept_beside(tmp_path: Path) -> None:
    lines = made(tmp_path, 30, segment_size=1 << 20)
    (path,) = segments(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"seq":31,"kind":"ev')
    report = check(tmp_path)
    assert report.sound
    assert "had not been synced" in report.remarks[-1]
    flip(path, 9)
    repair(tmp_path)
    assert (tmp_path / f"{31:020}.e2.torn").read_bytes() == b'{"seq":31,"kind":"ev'
    assert cat(tmp_path)[1:30] == lines[1:30]
    journal = open_journal(tmp_path)
    assert journal.cut == 0
    journal.close()


class PowerCut(BaseException):
    pass


@define(eq=False)
class Interrupted(DiskStorage):
    """Ends at the call that changes something after `calls` more."""

    calls: int = 0

    def _count(self) -> None:
        if self.calls == 0:
            raise PowerCut
        self.calls -= 1

    def write(self, path: Path, data: bytes) -> None:
        self._count()
        super().write(path, data)

    def move(self, path: Path, target: Path) -> None:
        self._count()
        super().move(path, target)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def append(self, path: Path) -> Any:
        self._count()
        return super().append(path)

    def link(self, path: Path, target: str) -> None:
        self._count()
        super().link(path, target)


def test_a_repair_that_is_cut_short_is_made_again(tmp_path: Path) -> None:
    lines = made(tmp_path / "0", 60)
    for path in segments(tmp_path / "0")[:2] + segments(tmp_path / "0")[-1:]:
        flip(path, 9)
    lost = [int(path.stem) for path in segments(tmp_path / "0")[:2]]
    lost.append(int(segments(tmp_path / "0")[-1].stem))
    for calls in range(40):
        directory = tmp_path / "again"
        shutil.copytree(tmp_path / "0", directory, symlinks=True)
        try:
            repair(directory, Interrupted(calls), "e2")
            done = True
        except PowerCut:
            done = False
            repair(directory, epoch="e3")
        assert check(directory).sound
        after = cat(directory)
        for seq in range(1, 61):
            assert (json.loads(after[seq - 1]).get("cause") == DAMAGE) == (seq in lost)
            assert seq in lost or after[seq - 1] == lines[seq - 1]
        open_journal(directory).close()
        shutil.rmtree(directory)
        if done:
            assert calls > 12
            return
    pytest.fail("it never came to its end")


def test_no_room_is_said_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, 60)
    flip(segments(tmp_path)[0], 9)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(DiskStorage, "free", lambda self, directory: 100)
    with pytest.raises(DiskFault, match="100 are free"):
        repair(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_last_records_of_what_is_asked_for(tmp_path: Path) -> None:
    lines = made(tmp_path, 60)
    onlooker = look(tmp_path)
    everything = Request.of({"follow": False}, 0)
    for count in (0, 1, 7, 100):
        assert b"".join(onlooker.last(everything, count)) == b"".join(lines[60 - min(count, 60) :])
    events = Request.of({"follow": False, "accounts": ["a"], "kinds": ["event"]}, 0)
    chosen = b"".join(onlooker.blocks(events)).splitlines(keepends=True)
    assert 20 < len(chosen) < 40
    assert b"".join(onlooker.last(events, 5)) == b"".join(chosen[-5:])


def test_an_onlooker_shows_no_line_that_is_not_known_to_be_synced(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, fsync=1e9, segment_size=1 << 20)
    lines = write(journal, 12)
    assert journal.durable_seq == 3  # the first commit is synced, the others wait
    request = Request.of({"follow": False}, 0)
    assert b"".join(look(tmp_path, locked=True).blocks(request)) == b"".join(lines[:3])
    assert b"".join(look(tmp_path, told_seq=6, locked=True).blocks(request)) == b"".join(lines[:6])
    # Nobody writes: all of it is synced, and shown.
    assert b"".join(look(tmp_path).blocks(request)) == b"".join(lines)
    journal.close()
    assert b"".join(look(tmp_path, locked=True).blocks(request)) == b"".join(lines)


def test_what_cannot_be_synced_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path, fsync=1e9, segment_size=1 << 20)
    lines = write(journal, 12)

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr("hypermux.downstream.onlooker.settle", refuse)
    request = Request.of({"follow": False}, 0)
    assert b"".join(look(tmp_path).blocks(request)) == b"".join(lines[:3])
    journal.close()


@pytest.mark.parametrize("torn", [0, 7])
def test_a_segment_copied_before_its_mark_starts_without_a_repair(
    tmp_path: Path, torn: int
) -> None:
    lines = made(tmp_path, 40, segment_size=1 << 20)
    (path,) = segments(tmp_path)
    path.write_bytes(b"".join(lines[:30]) + lines[30][:torn])
    report = check(tmp_path)
    assert report.sound
    assert any("copied before its index was" in remark for remark in report.remarks)
    assert cat(tmp_path) == lines[:30]
    journal = open_journal(tmp_path, "e2")
    assert (journal.epoch, journal.next_seq, journal.cut) == ("e2", 31, torn)
    assert "records up to 40 were taken away" in str(journal.epoch_reason)
    assert isinstance(resolve_cursor(Cursor("e1", 31), journal.epochs, 31), Rewritten)
    write(journal, 3)
    journal.close()
    assert check(tmp_path).sound
