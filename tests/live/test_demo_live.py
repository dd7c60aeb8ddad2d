"""scripts/demo, from wherever it is called and however it is ended: it leaves nothing running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from processes import PROJECT, process, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow]


def demo(where: Path) -> list[str]:
    """The demonstration of a checkout in `where`, by the Python of this one."""
    (where / "scripts").mkdir(parents=True)
    shutil.copy(PROJECT / "scripts" / "demo.py", where / "scripts")
    return [sys.executable, str(where / "scripts" / "demo.py")]


def alive(where: Path) -> list[str]:
    """The command lines of the processes that work in `where`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == where:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # another user's, or gone meanwhile
    return found


@pytest.mark.parametrize("name", ['a checkout\'s "path"', "long" * 40])
def test_it_shows_the_stream_and_ends(tmp_path: Path, name: str) -> None:
    where = tmp_path / name
    command = [*demo(where), "--for", "1500ms"]
    for _ in range(2):  # the second finds what the first left
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "container create" in done.stdout
        assert "It ends by itself after 1.5 s." in done.stderr
        assert alive(where) == []
    document = tomllib.loads((where / ".demo" / "accounts.toml").read_text())
    socket = Path(document["socket"]["path"])
    assert not socket.exists()
    # The shown commands run in the shown directory.
    assert subprocess.check_output(
        ["sh", "-c", next(s for s in done.stderr.splitlines() if s.startswith("  cd ")) + "; pwd"],
        text=True,
    ).strip() == str(where)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_all_of_it(tmp_path: Path, number: signal.Signals, status: int) -> None:
    command = demo(tmp_path / "checkout")
    with (
        (tmp_path / "out").open("wb") as out,
        process(*command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT) as child,
    ):
        shown = tmp_path / "out"
        wait_until(lambda: "container" in shown.read_text(), "an event is shown")
        again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert "runs already" in again.stderr
        os.kill(child.pid, number)
        assert child.wait(30) == status
    assert "Traceback" not in shown.read_text()
    assert alive(tmp_path / "checkout") == []


@pytest.mark.parametrize("text", ["10", "soon", ""])
def test_a_wrong_duration_is_one_sentence(tmp_path: Path, text: str) -> None:
    done = subprocess.run(
        [*demo(tmp_path), "--for", text], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert 'write "10s"' in done.stderr
    assert not (tmp_path / ".demo").exists()
