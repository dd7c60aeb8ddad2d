from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VERIFY = HERE.parent.parent / "scripts" / "verify"


def simulate(seed: int, directory: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, HERE / "whole_service.py", str(seed), directory],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_a_seed_gives_the_same_journal_in_every_process(tmp_path: Path) -> None:
    first = simulate(1, tmp_path / "first")
    again = simulate(1, tmp_path / "again")
    other = simulate(2, tmp_path / "other")
    assert first == again
    assert first["digest"] != other["digest"]
    assert isinstance(first["sent"], int)
    assert first["sent"] >= 10_000
    for name in ("first", "other"):
        directory = tmp_path / name
        checked = subprocess.run(
            [sys.executable, VERIFY, directory, directory / "manifest", directory / "accepts"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
