"""Audits of journals on a disk: where reading begins, what beside the segments helps, damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from journals import SECOND, flip, made, segments

from hypermux.core.auditing import Report, Verdict
from hypermux.downstream import auditing
from hypermux.downstream.onlooker import Onlooker
from hypermux.downstream.storage import DiskStorage
from hypermux.model.errors import DamagedData

# Of n records: the n-th received n seconds after 1970, `up` of both sources first, and every tenth
# a checkpoint.
COUNT = 300


def look(directory: Path) -> Onlooker:
    return Onlooker.open(directory, DiskStorage(), told_seq=None, locked=False)


def audit(
    directory: Path,
    since: int | None,
    until: int | None,
    *,
    running: bool = True,
    now: int = COUNT + 1,
) -> Report:
    return auditing.audit(
        look(directory),
        None if since is None else since * SECOND,
        None if until is None else until * SECOND,
        lambda source: True,
        running=running,
        now_ns=now * SECOND,
    )


def events(report: Report) -> list[int]:
    return [source.kinds["event"] for source in report.sources]


@pytest.mark.parametrize("since", [1, 50, 130, 280])
def test_it_counts_from_wherever_it_begins(tmp_path: Path, since: int) -> None:
    made(tmp_path, COUNT)
    assert len(segments(tmp_path)) > 5
    report = audit(tmp_path, since, 289)
    assert report.verdict is Verdict.COMPLETE
    ups = max(0, 3 - since)
    assert sum(events(report)) == 289 - since + 1 - ups - (289 // 10 - (since - 1) // 10)


def test_it_reads_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, COUNT)
    taken: list[int] = []
    plain = auditing._records

    def counting(block: bytes):  # type: ignore[no-untyped-def]
        for parsed in plain(block):
            taken.append(parsed.seq)
            yield parsed

    monkeypatch.setattr(auditing, "_records", counting)
    audit(tmp_path, 250, 289)
    assert 100 < taken[0] <= 190  # a minute before 250, and its segment's beginning
    assert taken == list(range(taken[0], COUNT + 1))


def test_without_what_lies_beside_the_segments_it_begins_earlier(tmp_path: Path) -> None:
    made(tmp_path, COUNT)
    whole = audit(tmp_path, 250, 289)
    for path in tmp_path.glob("*.sources"):
        path.unlink()
    assert audit(tmp_path, 250, 289) == whole


def test_a_running_service_is_believed_as_far_as_it_knows(tmp_path: Path) -> None:
    made(tmp_path, COUNT - 2)
    report = audit(tmp_path, 100, None)
    assert (report.verdict, report.interval.to_ns) == (Verdict.COMPLETE, 290 * SECOND)
    assert audit(tmp_path, 100, 295).verdict is Verdict.UNKNOWN


def test_one_without_a_checkpoint_knows_nothing_yet(tmp_path: Path) -> None:
    made(tmp_path, 9)
    report = audit(tmp_path, 1, None, now=12)
    assert (report.verdict, report.interval.to_ns) == (Verdict.UNKNOWN, 12 * SECOND)


def test_checkpoints_are_looked_for_further_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "_LAST", 3)
    made(tmp_path, COUNT - 2)
    assert audit(tmp_path, 100, None).interval.to_ns == 290 * SECOND


def test_one_that_writes_no_checkpoints_any_more_is_not(tmp_path: Path) -> None:
    made(tmp_path, COUNT)
    report = audit(tmp_path, 100, None, now=500)
    assert (report.verdict, report.interval.to_ns) == (Verdict.UNKNOWN, 500 * SECOND)


def test_without_a_service_it_is_until_now(tmp_path: Path) -> None:
    made(tmp_path, COUNT)
    report = audit(tmp_path, 100, None, running=False, now=310)
    assert (report.verdict, report.interval.to_ns) == (Verdict.INCOMPLETE, 310 * SECOND)
    assert {loss.cause for source in report.sources for loss in source.losses} == {
        "no service runs"
    }


def test_what_retention_took_is_not_complete(tmp_path: Path) -> None:
    made(tmp_path, COUNT)
    first, *_ = segments(tmp_path)
    oldest = int(segments(tmp_path)[1].name[:20])
    for path in tmp_path.glob(f"{first.name[:20]}.*"):
        path.unlink()
    report = audit(tmp_path, 1, 289)
    assert report.verdict is Verdict.INCOMPLETE
    for source in report.sources:
        (loss,) = source.losses
        assert (loss.cause, loss.span.from_ns) == ("retention", SECOND)
        assert loss.span.to_ns == oldest * SECOND - 1
    assert audit(tmp_path, oldest, 289).verdict is Verdict.COMPLETE
    assert audit(tmp_path, None, 289).verdict is Verdict.COMPLETE


def test_what_retention_took_is_not_complete_when_nothing_says_what_was_before(
    tmp_path: Path,
) -> None:
    made(tmp_path, COUNT)
    first, second, *_ = segments(tmp_path)
    first.unlink()
    (tmp_path / f"{second.name[:20]}.sources").unlink()
    report = audit(tmp_path, 1, 289)
    assert report.verdict is Verdict.INCOMPLETE
    assert {loss.cause for source in report.sources for loss in source.losses} == {"retention"}


def test_damage_is_said(tmp_path: Path) -> None:
    made(tmp_path, COUNT)
    flip(segments(tmp_path)[-2], 300)
    with pytest.raises(DamagedData, match="does not read back"):
        audit(tmp_path, 250, 289)
