from __future__ import annotations

import errno
import itertools
import resource
import shutil
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.config.settings import JournalSettings
from hypermux.core.recording import Encoder
from hypermux.core.segments import segment_name, sources_name
from hypermux.downstream.journal import LOCK, Journal
from hypermux.downstream.manifest import MANIFEST
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.reading import JournalReader, Rewritten, resolve_cursor
from hypermux.downstream.storage import DiskStorage, Storage, which_file, write_all
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DamagedData, DiskFault, Unreachable
from hypermux.model.records import Cursor, Event, StateChange

HERE = Path("/j")
SMALL = JournalSettings(segment_size=600)
NEVER = JournalSettings(fsync="never")
SOURCE = SourceId("a", "r")

_names = itertools.count(1)


def open_journal(
    storage: Storage, how: JournalSettings = SMALL, boot: str = "b1", directory: Path = HERE
) -> Journal:
    def new_epoch() -> str:
        return f"{next(_names):08x}"

    return Journal.open(directory, storage, how, new_epoch=new_epoch, now_ns=10**18, boot=boot)


def began(journal: Journal) -> bool:
    """Say whether this start began an epoch of an older journal."""
    return journal.epoch_reason is not None


def write(journal: Journal, count: int, now_s: float = 0.0) -> bytes:
    """Commit one batch as the sequencer does; return its bytes."""
    sources = journal.coverage.to_bytes() if journal.rotation_due else b""
    encoder, first_seq, lines = Encoder(), journal.next_seq, []
    durable: int | None = journal.durable_seq
    for seq in range(first_seq, first_seq + count):
        item = StateChange("up") if seq == 1 else Event(b'{"n":%d}' % seq, seq, "timeNano")
        lines.append(
            encoder.encode(seq, item, source=SOURCE, at_ns=seq, received_ns=seq, durable=durable)
        )
        journal.coverage.apply(SOURCE, item, seq)
        durable = None
    data = b"".join(lines)
    journal.commit(data, first_seq, first_seq + count - 1, sources, now_s)
    return data


def read_all(journal: Journal, storage: Storage) -> bytes:
    reader = JournalReader(journal.directory, storage, after=journal.first_seq - 1)
    data = b"".join(iter(lambda: reader.read(journal.position, 100), b""))
    reader.close()
    return data


def segments(storage: MemoryStorage) -> list[Path]:
    return sorted(p for p in storage.files if p.name.endswith(".ndjson"))


def remove_indexes(storage: MemoryStorage) -> None:
    for path in [p for p in storage.files if p.name.endswith(".index")]:
        del storage.files[path]


def test_a_new_journal() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    assert (journal.next_seq, journal.durable_seq, journal.position.seq) == (1, 0, 0)
    assert (journal.cut, began(journal), journal.first_seq) == (0, False, 1)
    names = {segment_name(1), sources_name(1), MANIFEST, "current.ndjson"}
    assert set(storage.names(HERE)) == names
    assert storage.target(HERE / "current.ndjson") == segment_name(1)
    manifest = tomllib.loads(storage.read(HERE / MANIFEST).decode())
    assert manifest["format"] == 1
    assert [(e["epoch"], e["first_seq"]) for e in manifest["epochs"]] == [(journal.epoch, 1)]


def test_what_was_committed_is_there_again_in_the_same_epoch() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    data = b"".join(write(journal, n) for n in (1, 3, 2, 5, 1, 4))
    coverage, epoch = journal.coverage, journal.epoch
    assert len(segments(storage)) > 2
    journal.close()
    again = open_journal(storage)
    assert (again.next_seq, again.durable_seq, again.epoch) == (17, 16, epoch)
    assert again.coverage == coverage
    assert read_all(again, storage) == data
    assert again.first_seq == 1


def test_rotation_names_links_and_sources() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    write(journal, 5)
    assert journal.rotation_due
    with pytest.raises(ValueError, match="coverage"):
        journal.commit(b"x\n", 6, 6)
    before = journal.coverage.to_bytes()
    write(journal, 1)
    assert not journal.rotation_due
    assert [p.name for p in segments(storage)] == [segment_name(1), segment_name(6)]
    assert storage.read(HERE / sources_name(6)) == before
    assert storage.target(HERE / "current.ndjson") == segment_name(6)
    with pytest.raises(ValueError, match="cannot follow"):
        journal.commit(b"x\n", 6, 6)


def test_one_writer() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    with pytest.raises(Unreachable, match="another hypermux holds /j"):
        open_journal(storage)
    journal.close()
    journal.close()
    open_journal(storage)
    storage.kill()
    journal = open_journal(storage)
    with pytest.raises(DiskFault, match="closed"):
        journal.close() or write(journal, 1)  # type: ignore[func-returns-value]


def test_a_failed_start_lets_the_lock_go() -> None:
    storage = MemoryStorage()
    storage.fail("append", errno.EACCES)
    with pytest.raises(DiskFault, match="permission is denied"):
        open_journal(storage)
    assert open_journal(storage).next_seq == 1


def test_commit_syncs_before_it_shows() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    data = write(journal, 3)
    assert (journal.position.seq, journal.durable_seq) == (3, 3)
    storage.crash()
    again = open_journal(storage)
    assert read_all(again, storage) == data
    assert not began(again)


def test_a_duration_spaces_syncs_and_shows_only_what_is_synced() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, JournalSettings(fsync=2.0))
    write(journal, 1, 100.0)
    assert journal.position.seq == 1
    assert journal.sync_due_s is None
    write(journal, 1, 101.0)
    write(journal, 1, 101.9)
    assert (journal.position.seq, journal.durable_seq, journal.next_seq) == (1, 1, 4)
    assert journal.sync_due_s == 102.0
    assert journal.sync(102.0).seq == 3
    assert journal.sync_due_s is None
    write(journal, 1, 103.0)
    write(journal, 1, 104.0)
    assert journal.position.seq == 5
    write(journal, 1, 105.0)
    storage.crash(keep=3)
    again = open_journal(storage, JournalSettings(fsync=2.0))
    assert (again.position.seq, again.cut, began(again)) == (5, 3, True)


def test_never_shows_what_is_written_and_survives_a_kill() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, NEVER)
    data = write(journal, 3)
    assert (journal.position.seq, journal.durable_seq, storage.syncs) == (3, 0, 0)
    storage.kill()
    again = open_journal(storage, NEVER)
    assert not began(again)
    assert read_all(again, storage) == data
    assert again.durable_seq == 3


@pytest.mark.parametrize(("boot", "clean", "new"), [("b2", 0, 1), ("", 0, 1), ("b2", 1, 0)])
def test_never_and_another_boot_begin_an_epoch_unless_stopped(
    boot: str, clean: bool, new: bool
) -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, NEVER)
    write(journal, 3)
    if clean:
        journal.close()
    storage.crash()
    again = open_journal(storage, SMALL, boot)
    assert began(again) == bool(new)
    assert again.next_seq == (4 if clean else 1)
    storage.kill()
    # The mark is gone with the mode.
    assert not began(open_journal(storage, SMALL, "b3"))


def test_two_unknown_boots_are_not_the_same() -> None:
    storage = MemoryStorage()
    open_journal(storage, NEVER, "")
    storage.crash()
    assert began(open_journal(storage, NEVER, ""))


def test_writes_in_parts_are_one_write() -> None:
    storage = MemoryStorage(write_limit=7)
    journal = open_journal(storage)
    data = write(journal, 4)
    assert read_all(journal, storage) == data


@pytest.mark.parametrize(
    ("operation", "after", "code", "words"),
    [
        ("write", 0, errno.ENOSPC, "append to .*: the disk is full"),
        ("write", 3, errno.ENOSPC, "append to .*: the disk is full"),
        ("sync", 0, errno.EIO, "sync .*: the disk reports an input/output error"),
        ("write_file", 0, errno.EROFS, "write .*sources: the file system is read-only"),
        ("append", 0, errno.EDQUOT, "create .*ndjson: the disk quota is used up"),
        ("link", 0, errno.EACCES, "create .*: permission is denied"),
        ("sync_names", 0, errno.EIO, "create .*: the disk reports"),
    ],
)
def test_after_a_fault_nothing_more_is_taken_and_nothing_shown_is_lost(
    operation: str, after: int, code: int, words: str
) -> None:
    storage = MemoryStorage(write_limit=50)
    journal = open_journal(storage)
    data = write(journal, 5)
    shown = journal.position
    storage.fail(operation, code, after=after)
    syncs = storage.syncs
    with pytest.raises(DiskFault, match=words):
        write(journal, 3)
    for _ in range(2):
        with pytest.raises(DiskFault, match="takes no more records"):
            write(journal, 1)
    with pytest.raises(DiskFault):
        journal.sync()
    assert storage.syncs == syncs
    assert journal.position == shown
    assert read_all(journal, storage) == data
    journal.close()
    storage.crash()
    again = open_journal(storage)
    assert read_all(again, storage) == data
    assert write(again, 1)


def multi_segment() -> tuple[list[tuple[Path, bytes]], list[bytes]]:
    """Return the segments of a small journal, and all its lines."""
    storage = MemoryStorage()
    journal = open_journal(storage)
    data = b"".join(write(journal, n) for n in (2, 1, 3, 2, 2))
    files = [(path, storage.read(path)) for path in segments(storage)]
    return files, data.splitlines(keepends=True)


def prefixes() -> Iterator[tuple[MemoryStorage, int]]:
    """Yield a disk for every byte prefix of the journal, and the number of whole lines in it."""
    files, _ = multi_segment()
    whole = 0
    for index, (_path, data) in enumerate(files):
        for size in range(len(data) + 1):
            storage = MemoryStorage()
            open_journal(storage).close()
            for earlier, content in files[:index]:
                storage.write(earlier, content)
            storage.write(files[index][0], data[:size])
            storage.links[HERE / "current.ndjson"] = files[index][0].name
            yield storage, whole + data[:size].count(b"\n")
        whole += data.count(b"\n")


def test_every_byte_prefix_recovers_to_a_record_prefix() -> None:
    _, lines = multi_segment()
    for storage, whole in prefixes():
        last = segments(storage)[-1]
        data = storage.read(last)
        journal = open_journal(storage)
        assert journal.position.seq == whole
        assert read_all(journal, storage) == b"".join(lines[:whole])
        assert began(journal) == (journal.cut > 0)
        torn = [p for p in storage.files if p.name.endswith(".torn")]
        if journal.cut:
            assert storage.read(torn[0]) == data[-journal.cut :]
            assert torn[0].name == f"{whole + 1:020}.{journal.epoch}.torn"
            assert journal.epochs[-1].first_seq == whole + 1
            assert len(journal.epochs) == 2
        else:
            assert not torn
        # It goes on from there, and what was rebuilt of the sources is what was lived through.
        write(journal, 2)
        coverage = journal.coverage.to_bytes()
        storage.crash()
        again = open_journal(storage)
        assert again.coverage.to_bytes() == coverage
        assert again.position.seq == whole + 2
        assert not began(again)


@given(st.lists(st.integers(1, 4), max_size=8), st.integers(0, 400), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_a_power_cut_keeps_all_that_was_shown(
    batches: list[int], keep: int, fail_after: int
) -> None:
    storage = MemoryStorage(write_limit=90)
    journal = open_journal(storage)
    storage.fail("write", errno.ENOSPC, after=fail_after)
    shown = b""
    try:
        for count in batches:
            shown += write(journal, count)
    except DiskFault:
        pass
    epochs = len(journal.epochs)
    storage.crash(keep)
    again = open_journal(storage)
    data = read_all(again, storage)
    assert data.startswith(shown)
    assert data[-1:] in (b"", b"\n")
    assert len(again.epochs) == epochs + (again.cut > 0)


def test_damage_is_named_and_nothing_is_touched() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, JournalSettings())
    first = write(journal, 2)
    write(journal, 2)
    storage.kill()
    path = HERE / segment_name(1)
    line = first.index(b"\n") + 1
    storage.files[path].data[line + 30] ^= 1
    before = {name: bytes(file.data) for name, file in storage.files.items()}
    with pytest.raises(DamagedData) as caught:
        open_journal(storage)
    message = str(caught.value)
    assert f"{path}: line 2 at byte {line} is damaged: the checksum does not match" in message
    assert "up to 2 had been synced" in message
    assert "Restore the file" in message
    assert {name: bytes(file.data) for name, file in storage.files.items()} == before


def test_a_damaged_segment_moved_aside_begins_an_epoch() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    write(journal, 5)
    write(journal, 3)
    journal.close()
    storage.files[HERE / "aside"] = storage.files.pop(HERE / segment_name(6))
    again = open_journal(storage)
    assert (again.next_seq, began(again)) == (6, True)
    assert again.epoch_reason == f"{segment_name(6)} was taken away"
    assert again.epochs[-1].first_seq == 6
    write(again, 1)
    storage.kill()
    assert not began(open_journal(storage))


def test_all_segments_moved_aside_begin_an_epoch() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    write(journal, 3)
    journal.close()
    del storage.files[HERE / segment_name(1)]
    again = open_journal(storage)
    assert (again.next_seq, began(again), len(again.epochs)) == (1, True, 2)
    assert again.epoch_reason == "there were no segments any more"


def test_a_bad_line_behind_d_is_cut_and_kept_as_torn() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, JournalSettings())
    first = write(journal, 2)
    second = write(journal, 2)
    storage.kill()
    storage.files[HERE / segment_name(1)].data[len(first) + 40] ^= 1
    again = open_journal(storage, JournalSettings())
    assert (again.position.seq, again.cut) == (2, len(second))
    assert again.epoch_reason == f"{len(second)} unsynced bytes were set aside"
    assert read_all(again, storage) == first
    torn = next(p for p in storage.files if p.name.endswith(".torn"))
    assert len(storage.read(torn)) == len(second)


@pytest.mark.parametrize("step", range(8))
def test_a_recovery_that_is_interrupted_is_made_again(step: int) -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    data = write(journal, 3)
    storage.crash()
    storage.files[HERE / segment_name(1)].data += b"half a line"
    operations = ["write_file", "write_file", "truncate", "append", "sync", "link", "sync_names"]
    operation = operations[step] if step < 7 else "write_file"
    storage.fail(operation, errno.EIO, after=1 if step == 1 else 0)
    if operation == "link":
        storage.links.clear()
    if step < 7:
        with pytest.raises(DiskFault):
            open_journal(storage)
        storage.crash(keep=100)
    else:
        storage = MemoryStorage(files=storage.files, links=storage.links)
    again = open_journal(storage)
    assert read_all(again, storage) == data
    assert len(again.epochs) > 1
    assert again.epochs[-1].first_seq == 4


@pytest.mark.parametrize("harm", ["missing", "bad", "all missing"])
def test_lost_sources_are_rebuilt_from_earlier_segments(harm: str) -> None:
    storage = MemoryStorage()
    journal = open_journal(storage)
    for _ in range(8):
        write(journal, 2)
    coverage = journal.coverage.to_bytes()
    journal.close()
    beside = sorted(p for p in storage.files if p.name.endswith(".sources"))
    assert len(beside) > 2
    remove_indexes(storage)
    before = storage.read(beside[-1])
    for path in beside if harm == "all missing" else beside[-1:]:
        if harm == "bad":
            storage.files[path].data[5] ^= 1
        else:
            del storage.files[path]
    again = open_journal(storage)
    assert again.coverage.to_bytes() == coverage
    assert storage.read(beside[-1]) == before
    # The slow way reads closed segments, which have nothing to hide.
    again.close()
    remove_indexes(storage)
    del storage.files[beside[-1]]
    storage.files[segments(storage)[-2]].data[3] ^= 1
    with pytest.raises(DamagedData, match="line 1 at byte 0"):
        open_journal(storage)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is missing, but there are segments"),
        ("format = 2", "format 2 is not known"),
        ("format = 1", "list of epochs"),
        ("format = 1\nepochs = []", "no epoch"),
        ("format = 1\nepochs = [{epoch = 'a'}]", "list of epochs"),
        ("nonsense", "restore it from a copy"),
    ],
)
def test_a_manifest_that_does_not_read(text: str | None, words: str) -> None:
    storage = MemoryStorage()
    open_journal(storage).close()
    if text is None:
        del storage.files[HERE / MANIFEST]
    else:
        storage.write(HERE / MANIFEST, text.encode())
    with pytest.raises(DamagedData, match=words):
        open_journal(storage)


def test_on_a_real_disk(tmp_path: Path) -> None:
    directory, storage = tmp_path / "state" / "journal", DiskStorage()
    journal = open_journal(storage, directory=directory)
    with pytest.raises(Unreachable, match="another hypermux"):
        open_journal(storage, directory=directory)
    data = b"".join(write(journal, n) for n in (3, 4, 2))
    for path in (directory.parent, directory):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in directory.iterdir():
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert (directory / "current.ndjson").resolve().name == segment_name(journal.position.segment)
    assert {p.name for p in directory.iterdir()} >= {LOCK, MANIFEST, sources_name(1)}
    assert not [p for p in directory.iterdir() if p.name.endswith(".new")]
    journal.close()
    with (directory / "current.ndjson").open("ab") as file:
        file.write(b"torn")
    again = open_journal(storage, directory=directory)
    assert (again.cut, began(again)) == (4, True)
    assert read_all(again, storage) == data
    assert write(again, 1)
    again.close()
    assert not began(open_journal(storage, directory=directory))


def test_a_real_disk_says_what_is_wrong(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(DiskFault, match="cannot open the journal in"):
        open_journal(DiskStorage(), directory=blocked / "journal")


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    storage, path = DiskStorage(), tmp_path / "a"
    storage.write(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            storage.write(path, b"new" * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_the_memory_answers_as_the_disk_does(kind: str, tmp_path: Path) -> None:
    storage: Storage = MemoryStorage() if kind == "memory" else DiskStorage()
    here = tmp_path / "new" / "directory"
    storage.prepare(here)
    storage.prepare(here)
    lock = storage.lock(here / "lock")
    with pytest.raises(BlockingIOError):
        storage.lock(here / "lock")
    lock.close()
    storage.lock(here / "lock").close()
    file = storage.append(here / "a")
    write_all(file, b"one two ")
    file.sync()
    file.close()
    file = storage.append(here / "a")
    write_all(file, b"three")
    reader = storage.open(here / "a")
    assert (reader.read_at(4, 3), reader.read_at(8, 99), reader.read_at(13, 1)) == (
        *(b"two", b"three"),
        b"",
    )
    storage.truncate(here / "a", 3)
    write_all(file, b"!")
    assert storage.read(here / "a") == b"one!"
    file.close()
    reader.close()
    assert storage.target(here / "link") is None
    storage.link(here / "link", "b")
    storage.link(here / "link", "a")
    assert storage.target(here / "link") == "a"
    storage.sync_names(here)
    assert storage.read(here / "link") == b"one!"
    storage.write(here / "a", b"new")
    assert storage.read(here / "a") == b"new"
    assert sorted(set(storage.names(here)) - {"lock"}) == ["a", "link"]
    for call in (storage.read, storage.open):
        with pytest.raises(FileNotFoundError):
            call(here / "none")
    with pytest.raises(FileNotFoundError):
        storage.truncate(here / "none", 0)


def test_a_power_cut_in_the_memory() -> None:
    storage = MemoryStorage()
    file = storage.append(HERE / "a")
    write_all(file, b"synced")
    file.sync()
    write_all(file, b" but not this")
    storage.crash()
    assert storage.names(HERE) == []
    file = storage.append(HERE / "a")
    storage.sync_names(HERE)
    write_all(file, b"synced")
    file.sync()
    write_all(file, b" but not this")
    storage.crash(keep=4)
    assert storage.read(HERE / "a") == b"synced but"
    with pytest.raises(OSError, match="gone"):
        write_all(file, b"x")


def test_what_may_only_be_in_memory_is_written_again_at_a_start() -> None:
    """After a failed sync the kernel reads back what is not on the disk, and calls it clean."""

    class Noting(MemoryStorage):
        def rewrite(self, path: Path, start: int, end: int) -> None:
            again.append((start, end))
            super().rewrite(path, start, end)

    again: list[tuple[int, int]] = []
    storage = Noting()
    journal = open_journal(storage, JournalSettings())
    first = write(journal, 3)
    storage.fail("sync", errno.EIO)
    with pytest.raises(DiskFault):
        write(journal, 2)
    kept = bytes(storage.files[HERE / segment_name(1)].data)
    storage.kill()
    open_journal(storage, JournalSettings())
    # The second batch says that the first was synced: what is behind it is in doubt.
    assert again == [(len(first), len(kept))]
    assert bytes(storage.files[HERE / segment_name(1)].data) == kept


BIG = JournalSettings(segment_size=1 << 20)


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make marks often."""
    monkeypatch.setattr("hypermux.downstream.journal.MARK_SIZE", 300)
    monkeypatch.setattr("hypermux.downstream.journal.MARK_RATIO", 0)


@pytest.mark.usefixtures("marks")
@pytest.mark.parametrize("fate", ["kill", "crash", "torn", "close"])
def test_a_start_from_a_mark_finds_what_one_without_finds(fate: str) -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, BIG)
    data = b"".join(write(journal, n) for n in (3, 5, 2, 7, 1, 4))
    if fate == "torn":
        storage.files[HERE / segment_name(1)].data += b"half a line"
    if fate == "close":
        journal.close()
    elif fate == "crash":
        storage.crash()
    else:
        storage.kill()
    index = journal.indexes.open
    again = open_journal(storage, BIG)
    assert read_all(again, storage) == data
    assert again.coverage == journal.coverage
    assert again.cut == (len(b"half a line") if fate == "torn" else 0)
    found = again.indexes.open
    assert (found.last_seq, found.size, found.crc) == (index.last_seq, index.size, index.crc)
    write(again, 3)
    storage.kill()
    remove_indexes(storage)
    last = open_journal(storage, BIG)
    assert last.coverage == again.coverage
    assert last.next_seq == again.next_seq


@pytest.mark.usefixtures("marks")
def test_before_a_mark_any_changed_byte_is_damage() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, BIG)
    for _ in range(6):
        write(journal, 3)
    journal.close()
    path = HERE / segment_name(1)
    size = len(storage.files[path].data)
    for offset in range(0, size, 41):
        storage.files[path].data[offset] ^= 1
        with pytest.raises(DamagedData, match=r"line \d+ at byte \d+ is damaged"):
            open_journal(storage, BIG)
        storage.files[path].data[offset] ^= 1
    assert open_journal(storage, BIG).next_seq == 19


@pytest.mark.usefixtures("marks")
def test_records_that_a_mark_knows_and_the_file_has_no_more_begin_an_epoch() -> None:
    storage = MemoryStorage()
    journal = open_journal(storage, BIG)
    for _ in range(3):
        first = write(journal, 4)
    journal.close()
    file = storage.files[HERE / segment_name(1)]
    del file.data[len(file.data) - len(first) :]
    again = open_journal(storage, BIG)
    assert (again.next_seq, again.epoch_reason) == (9, "records up to 12 were taken away")


def test_a_copy_begins_an_epoch_however_whole_it_is(tmp_path: Path) -> None:
    """Or the numbers that the original went on with would come again, and readers skip records."""

    def open_it(directory: Path, name: str) -> Journal:
        journal = Journal.open(
            directory,
            DiskStorage(),
            evolve(SMALL, keep_free=0),
            new_epoch=lambda: name,
            now_ns=10**18,
            which=which_file,
        )
        write(journal, 3)
        journal.close()
        return journal

    original, backup, place = tmp_path / "original", tmp_path / "backup", tmp_path / "moved"
    assert open_it(original, "e1").epoch == "e1"
    shutil.copytree(original, backup)
    seen = Cursor(open_it(original, "e2").epoch, 6)
    assert seen.epoch == "e1"
    # Moved within a file system it is the same; and a file may get a removed one's number.
    original.rename(place)
    assert open_it(place, "e3").epoch == "e1"
    shutil.rmtree(place)
    shutil.copytree(backup, place)
    restored = open_it(place, "e4")
    assert (restored.epoch, restored.epoch_reason) == (
        "e4",
        "these files were copied: the original may have gone on",
    )
    found = resolve_cursor(seen, restored.epochs, restored.next_seq)
    assert isinstance(found, Rewritten)
    assert (found.after, found.count) == (3, 3)
    assert open_it(place, "e5").epoch == "e4"
