"""What holds for every command: how it ends when it is interrupted, or nobody reads on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from journals import made

# Ctrl-C in the middle of loading MODULE.
INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.argv[:] = ["hypermux", "tail"]
from hypermux.cli import main
main()
"""


@pytest.mark.parametrize("module", ["click", "hypermux.cli.tail"])
def test_an_interrupt_while_loading_shows_no_traceback(module: str) -> None:
    code = INTERRUPTED.replace("MODULE", repr(module))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, b"", b"")


def unread(*arguments: str | Path) -> tuple[int, bytes]:
    """Run a command whose stdout nobody reads any more; return its exit code and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        command = [sys.executable, "-m", "hypermux", *arguments]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, timeout=60)
    return done.returncode, done.stderr


def test_a_reader_that_has_gone_is_no_fault(tmp_path: Path) -> None:
    made(tmp_path, 300)
    assert unread("--help") == (0, b"")
    assert unread("journal", "ls", "--dir", tmp_path) == (0, b"")

    broken = tmp_path / "accounts.toml"
    broken.write_text('[accounts.a]\nupstream = "docker"\nenabled = false\n')
    code, words = unread("check", "-c", broken)
    assert code == 78
    assert b"nothing to run" in words


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_verdict_of_an_audit_stands_when_nobody_reads_it(tmp_path: Path, form: str) -> None:
    made(tmp_path, 300)
    assert unread("audit", "--dir", tmp_path, "-o", form, "--since", "100", "--until", "200") == (
        0,
        b"",
    )
    assert unread("audit", "--dir", tmp_path, "-o", form) == (1, b"")


def shell(text: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell line in which `hypermux` is the command."""
    line = f'hypermux() {{ {sys.executable} -m hypermux "$@"; }}; {text}'
    return subprocess.run(
        ["bash", "-c", line], env={**os.environ, **environment}, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_where_nobody_can_be_told_the_exit_code_is_right(tmp_path: Path, stderr: str) -> None:
    broken = tmp_path / "accounts.toml"
    broken.write_text("x")
    for arguments, code in (("nonsense", 64), (f"check -c {broken}", 78), ("tail --since x", 64)):
        done = shell(f"hypermux {arguments} {stderr}")
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    made(tmp_path, 30)
    whole = shell(f"hypermux journal cat --dir {tmp_path}")
    done = shell(f"hypermux journal cat --dir {tmp_path} <&- 2>&-")
    assert whole.returncode == done.returncode == 0
    assert whole.stdout == done.stdout != b""


def test_a_locale_that_lacks_a_character() -> None:
    done = shell("hypermux watch --help", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"sha256:\\u2026" in done.stdout
