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
