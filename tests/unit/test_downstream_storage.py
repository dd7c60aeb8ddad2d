"""The real disk: what the Storage seam promises of it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from hypermux.downstream import storage
from hypermux.downstream.storage import DiskStorage, is_locked


def test_who_only_looks_at_the_lock_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    looking = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
    # The look ends while the start waits for it.
    monkeypatch.setattr(
        "hypermux.downstream.storage.time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN)
    )
    lock = DiskStorage().lock(path)
    assert is_locked(path)
    lock.close()
    assert not is_locked(path)
    os.close(looking)


def test_a_lock_that_is_held_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOOK_S", 0.02)
    held = DiskStorage().lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        DiskStorage().lock(tmp_path / "lock")
    held.close()
