"""Every filter case through scripts/util: `hypermux watch` at an emulator and at a real engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dockerd
import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# One case starts a process and makes one connection; a busy machine may take its time.
WITHIN_S = 300.0


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "HYPERMUX_EMULATOR"}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def util(*arguments: str, root: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "scripts" / "util"), *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN_S,
    )


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an emulator; gives the file that names it."""
    directory = tmp_path_factory.mktemp("emulator")
    accounts = str(directory / "accounts.toml")
    options = ["--port", "0", "--accounts", "1", "--regions", "us-west-1", "--rate", "0"]
    paths = ["--write-accounts", accounts, "--control", str(directory / "control")]
    process = subprocess.Popen(
        [sys.executable, "-m", "hypermux", "emulate", *options, *paths],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        named = directory / "ready.json"
        named.write_text(process.stdout.readline())
        yield str(named)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("name", "size"), [("container", 6), ("image", 7), ("label", 15), ("event", 6)]
)
def test_all_cases(emulator: str, name: str, size: int) -> None:
    done = util("watch", name, "all", HYPERMUX_EMULATOR=emulator)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  as expected\n") == size
    assert done.stderr == ""


def test_all_cases_that_an_engine_can_tell() -> None:
    with dockerd.running_dockerd() as engine:
        engine.import_image()
        engine.run("tag", dockerd.IMAGE, "busybox:latest")
        for name, expected, skipped in (
            ("container", 6, 0),
            ("image", 5, 2),
            ("label", 12, 3),
            ("event", 6, 0),
        ):
            done = util("--docker", engine.url, "watch", name, "all")
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.count("  as expected\n") == expected
            assert done.stdout.count("  skipped: hyper only\n") == skipped
        assert util("--docker", engine.url, "rm").stdout == ""


def test_one_case_with_an_emulator_of_its_own() -> None:
    done = util("watch", "label", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "label 3: a key with its value",
        "  --filter label=test1=one",
        "  die      hyper-test-2",
        "  stop     hyper-test-2",
        "  start    hyper-test-2",
        "  as expected",
    ]
    assert "starting one for this command" in done.stderr


@pytest.mark.parametrize("wrong", [{"1": "all"}, {"2": ["start"]}, {}, {"2": "all", "1": ["stop"]}])
def test_a_wrong_expectation_is_noticed(
    emulator: str, tmp_path: Path, wrong: dict[str, object]
) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "tests" / "cases", tmp_path / "tests" / "cases")
    path = tmp_path / "tests" / "cases" / "label.json"
    listed = json.loads(path.read_text())
    listed["cases"][2]["expect"] = wrong
    path.write_text(json.dumps(listed))
    done = util("watch", "label", "3", root=tmp_path, HYPERMUX_EMULATOR=emulator)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.endswith("  NOT as expected\n")


def test_acting_on_the_containers(emulator: str) -> None:
    def states(*arguments: str) -> list[str]:
        done = util("--emulator", emulator, *arguments)
        assert done.returncode == 0, done.stderr
        return [" ".join(line.split()[2:]) for line in done.stdout.splitlines()]

    states("run")
    assert states("ps") == ["hyper-test running", "hyper-test-2 running"]
    assert states("stop", "1") == ["hyper-test exited", "hyper-test-2 running"]
    assert states("start", "1") == ["hyper-test running", "hyper-test-2 running"]
    assert states("stop", "2") == ["hyper-test running", "hyper-test-2 exited"]
    assert states("stop") == ["hyper-test exited", "hyper-test-2 exited"]
    assert states("start", "1") == ["hyper-test running", "hyper-test-2 exited"]
    assert states("start") == ["hyper-test running", "hyper-test-2 running"]
    again = util("--emulator", emulator, "start", "1")
    assert (again.returncode, again.stderr) == (
        69,
        "util: the emulator refused to start: hyper-test is running already\n",
    )
    assert states("rm", "1") == ["hyper-test-2 running"]
    assert states("run") == ["hyper-test running", "hyper-test-2 running"]
    assert states("rm") == []
    refused = util("--emulator", emulator, "start")
    assert (refused.returncode, refused.stderr) == (
        69,
        "util: there is no such test container: `util run` makes them\n",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "util"), "watch", "label", "all"],
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "  die" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        # Both pipes end when whoever holds them has.
        process.stdout.read()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(30) == 128 + number
    assert list(tmp_path.iterdir()) == []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # gone meanwhile
            assert str(tmp_path) not in command.read_text()
