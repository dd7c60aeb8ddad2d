"""A journal whose disk refuses, and takes again."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

import pytest
from test_downstream_journal import HERE, NEVER, open_journal, read_all, segments, write

from hypermux.config.settings import JournalSettings, RetainSettings
from hypermux.core.segments import index_name, segment_name, sources_name
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.writing import ShownIsGone
from hypermux.model.errors import DiskFault

COMMIT = JournalSettings()
SECONDS = JournalSettings(fsync=5.0)
ALL = [COMMIT, SECONDS, NEVER]


def refused(journal: Journal, storage: MemoryStorage, operation: str = "write") -> None:
    """Have two records refused by the disk; part of them is in the file."""
    storage.write_limit = 50
    storage.fail(operation, errno.ENOSPC, after=1 if operation == "write" else 0)
    with pytest.raises(DiskFault):
        write(journal, 2, 99.0)


def in_a_row(storage: MemoryStorage) -> bytes:
    return b"".join(storage.read(path) for path in segments(storage))


@pytest.mark.parametrize("how", ALL)
def test_what_waits_is_written_to_a_new_segment_and_the_old_one_is_cut(
    how: JournalSettings,
) -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, how)
    data = write(journal, 3)
    refused(journal, storage)
    assert journal.fault
    assert (journal.waiting, journal.position.seq) == (2, 3)
    assert len(storage.read(HERE / segment_name(1))) > len(data)
    assert journal.retry(100.0).seq == 5
    assert not journal.fault
    assert journal.waiting == 0
    assert storage.read(HERE / segment_name(1)) == data
    assert [p.name for p in segments(storage)] == [segment_name(1), segment_name(4)]
    assert storage.target(HERE / "current.ndjson") == segment_name(4)
    assert read_all(journal, storage) == in_a_row(storage)
    assert index_name(1) in storage.names(HERE)
    write(journal, 2, 200.0)
    journal.close()
    again = open_journal(storage, how)
    assert (again.next_seq, again.epoch, again.epoch_reason) == (8, journal.epoch, None)
    assert again.coverage == journal.coverage


def test_a_batch_that_begins_a_segment_keeps_its_coverage() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    write(journal, 5)
    assert journal.rotation_due
    before = journal.coverage.to_bytes()
    storage.fail("append", errno.ENOSPC)
    with pytest.raises(DiskFault):
        write(journal, 1)
    journal.retry()
    assert storage.read(HERE / sources_name(6)) == before


def test_coverage_that_another_history_left_is_not_believed() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, COMMIT)
    write(journal, 3)
    storage.write(HERE / sources_name(4), open_journal(MemoryStorage()).coverage.to_bytes())
    refused(journal, storage)
    journal.retry()
    storage.kill()
    again = open_journal(storage, COMMIT)
    assert again.coverage == journal.coverage
    assert again.coverage.sources


def test_never_is_synced_before_a_segment_follows() -> None:
    """So that the power takes the end of the journal, and no middle."""
    storage = MemoryStorage()
    journal = open_journal(storage, NEVER)
    data = write(journal, 3)
    refused(journal, storage)
    storage.fail("rewrite", errno.EIO)
    with pytest.raises(DiskFault, match="write again"):
        journal.retry()
    assert [p.name for p in segments(storage)] == [segment_name(1)]
    journal.retry()
    assert journal.durable_seq == 3
    assert journal.position.seq == 5
    storage.crash()
    again = open_journal(storage, NEVER, "another boot")
    assert read_all(again, storage) == data
    assert again.epoch_reason is not None
    assert again.epochs[-1].first_seq == 4
    assert write(again, 1)


def test_never_and_what_was_shown_cannot_be_read_back() -> None:
    """The kernel forgot what it could not write: no try helps, and the next start goes on."""
    storage = MemoryStorage()
    journal = open_journal(storage, NEVER)
    data = write(journal, 3)
    first = data.index(b"\n") + 1
    storage.fail("sync", errno.EIO)
    with pytest.raises(DiskFault):
        journal.sync()
    file = storage.files[HERE / segment_name(1)]
    file.data[first:] = bytes(len(file.data) - first)
    with pytest.raises(ShownIsGone, match="no longer holds what was shown"):
        journal.retry()
    storage.kill()
    again = open_journal(storage, NEVER)
    assert read_all(again, storage) == data[:first]
    assert again.epochs[-1].first_seq == 2


def test_a_file_that_somebody_removes_is_noticed() -> None:
    """Written on it would be, and synced, and be gone with the process: nobody would know."""
    storage = MemoryStorage()
    journal = open_journal(storage, COMMIT)
    write(journal, 3)
    assert journal.tend(0) == []
    storage.fail("size", errno.EIO)
    assert journal.tend(0) == []  # a disk that refuses is another matter
    del storage.files[HERE / segment_name(1)]
    with pytest.raises(ShownIsGone, match="was removed while it was written to"):
        journal.tend(0)


def test_a_sync_of_a_file_that_failed_is_never_made_again() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, COMMIT)
    data = write(journal, 1)
    old = storage.files[HERE / segment_name(1)]
    storage.fail("sync", errno.EIO)
    with pytest.raises(DiskFault):
        write(journal, 2)
    synced = old.synced
    storage.fail("sync", errno.EIO)
    with pytest.raises(DiskFault):
        journal.retry()
    tried = storage.files[HERE / segment_name(2)]
    journal.retry()
    assert synced == old.synced == len(data)
    assert storage.files[HERE / segment_name(2)] is not tried
    assert tried.synced == 0


@pytest.mark.parametrize("how", ALL)
def test_files_read_in_a_row_have_each_record_once_whenever_it_ends(how: JournalSettings) -> None:
    """Also when it ends while the disk refuses: nothing would ever cut a segment in the middle."""
    for after in range(12):
        storage = MemoryStorage()
        journal = open_journal(storage, how)
        write(journal, 3)
        refused(journal, storage)
        storage.fail("write", errno.ENOSPC, after=after)
        with suppress(DiskFault):
            journal.retry(100.0)
        storage.kill()
        again = open_journal(storage, how)
        assert read_all(again, storage) == in_a_row(storage)
        assert again.position.seq >= 3
        assert again.coverage == journal.coverage or again.position.seq < 5


def test_old_segments_make_room_and_the_journal_hears_of_it() -> None:
    storage = MemoryStorage()
    how = JournalSettings(segment_size=600, retain=RetainSettings(size=1 << 30), keep_free=1000)
    journal = open_journal(storage, how)
    for _ in range(4):
        write(journal, 5)
    storage.free_bytes = 0
    storage.fail("write", errno.ENOSPC)
    with pytest.raises(DiskFault):
        write(journal, 1)
    shown = journal.position
    journal.retry(now_ns=100)
    assert journal.first_seq > 1
    assert journal.first_seq <= shown.seq, "what is shown of the newest stays"
    (told,) = [text for text in journal.tend(100) if "removed for room" in text]
    assert "less than 1kB is free" in told
    assert not [text for text in journal.tend(100) if "removed for room" in text]


def test_with_seconds_between_syncs_what_is_held_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hypermux.downstream.journal.UNSYNCED", 1000)
    storage = MemoryStorage()
    journal = open_journal(storage, SECONDS)
    write(journal, 1, 0.0)
    most = 0
    for _ in range(20):
        write(journal, 1, 1.0)
        most = max(most, journal.waiting)
    assert 3 < most < 10


def test_there_has_to_be_something_to_try_again() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, COMMIT)
    write(journal, 1)
    with pytest.raises(ValueError, match="nothing to try again"):
        journal.retry()
    refused(journal, storage)
    journal.close()
    with pytest.raises(ValueError, match="nothing to try again"):
        journal.retry()
    # What was written of it may be there, and was shown to nobody.
    assert open_journal(storage, COMMIT).position.seq == 1


@pytest.mark.parametrize("operation", ["prepare", "lock", "write_file", "append", "sync_names"])
def test_a_disk_that_refuses_at_the_start_is_no_journal(operation: str) -> None:
    storage = MemoryStorage()
    storage.fail(operation, errno.EROFS)
    with pytest.raises(DiskFault, match="read-only") as caught:
        open_journal(storage, directory=Path("/new"))
    assert caught.value.exit_code == 74
