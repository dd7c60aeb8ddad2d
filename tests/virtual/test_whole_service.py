"""Ten thousand messages through the emulator's own server, and what reads back, by other code.

That a seed gives the same journal in every process is the simulator's to show.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from whole_service import World

VERIFY = Path(__file__).parent.parent.parent / "scripts" / "verify"


@pytest.mark.slow
def test_a_busy_hour_reads_back_as_it_was_sent(tmp_path: Path) -> None:
    world = World(1)
    world.run()
    world.write(tmp_path)
    assert len(world.manifest) >= 10_000
    checked = subprocess.run(
        [sys.executable, VERIFY, tmp_path, tmp_path / "manifest", tmp_path / "accepts"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
