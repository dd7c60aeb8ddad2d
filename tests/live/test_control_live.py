"""A running service asked and told: curl, `hypermux status`, `hypermux reload`, SIGHUP."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from processes import (
    FAST,
    HYPERMUX,
    Place,
    emulator,
    end,
    place,
    process,
    run,
    service,
    wait_until,
)

pytestmark = pytest.mark.live


def status(where: Place) -> dict[str, Any]:
    done = run("status", "--socket", where.socket, "-o", "json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def states(where: Place) -> dict[str, int]:
    found: dict[str, int] = status(where)["states"]
    return found


def connected(where: Place, count: int) -> bool:
    now = states(where)
    return now.get("proving", 0) + now.get("live", 0) == count == sum(now.values())


def split_accounts(emulated: Path, directory: Path) -> list[Path]:
    """Give each of the emulator's accounts a file of its own, so that one can go."""
    directory.mkdir()
    head, *parts = re.split(r"(?m)^(?=\[accounts\.)", emulated.read_text())
    del head
    files = []
    for part in parts:
        name = re.match(r"\[accounts\.\"?([\w-]+)", part)
        assert name is not None
        file = directory / f"{name[1]}.toml"
        file.write_text(part)
        file.chmod(0o600)
        files.append(file)
    return files


def test_curl_status_and_errors(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "20") as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where) as child:
            wait_until(lambda: connected(where, 2), "both sources")

            def curl(*arguments: str) -> str:
                command = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(where.socket)]
                done = subprocess.run(
                    [*command, *arguments], capture_output=True, text=True, timeout=30, check=True
                )
                return str(done.stdout)

            document = json.loads(curl("http://x/status"))
            assert document["pid"] == child.pid
            assert len(document["sources"]) == 2
            assert all(s["tls"] == "verified" for s in document["sources"])
            head = curl("-I", "http://x/status")
            assert head.startswith("HTTP/1.1 200")
            code = ("-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n")
            # Three in a row over one connection; the last is none.
            answers = curl(
                *code, "http://x/status", "--next", "-sS", "--unix-socket", str(where.socket),
                *code, "http://x/status", "--next", "-sS", "--unix-socket", str(where.socket),
                *code, "http://x/nothing",
            )  # fmt: skip
            assert answers.splitlines() == ["200 1", "200 0", "404 0"]
            assert curl(*code, "-X", "DELETE", "http://x/status").startswith("405")
            assert json.loads(curl("-X", "POST", "http://x/reload"))["accepted"] is True
            shown = run("status", "--socket", where.socket)
            assert shown.returncode == 0
            assert "acct-001/us" in shown.stdout
            assert f"pid {child.pid}" in shown.stdout
            ready = run("status", "--socket", where.socket, "--ready", "--account", "acct-001")
            assert ready.returncode == 0
            assert "acct-002" not in ready.stdout
            none = run("status", "--socket", where.socket, "--ready", "--account", "nobody")
            assert none.returncode == 69
            assert end(child) == 0
        gone = run("status", "--socket", where.socket)
        assert gone.returncode == 69
        assert "hypermux run" in gone.stderr


def test_reload_by_command_and_by_signal(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "3", "--regions", "us", "--rate", "20") as emulated:
        files = split_accounts(emulated.accounts, tmp_path / "accounts.d")
        hidden = files[2].rename(tmp_path / "hidden")
        where = place(tmp_path, tmp_path / "accounts.d" / "*.toml", FAST)
        with service(where) as child:
            wait_until(lambda: connected(where, 2), "two sources")
            hidden.rename(files[2])
            done = run("reload", "--socket", where.socket)
            assert (done.returncode, done.stdout) == (0, "added acct-003/us\n"), done.stderr
            wait_until(lambda: connected(where, 3), "three sources")
            files[0].unlink()
            child.send_signal(signal.SIGHUP)
            wait_until(lambda: connected(where, 2), "two sources again")
            # A file that is not good: nothing changes, and all that is wrong is told.
            good = where.config.read_text()
            where.config.write_text(good.replace("[connection]", "[conection]") + "mode = 7\n")
            done = run("reload", "--socket", where.socket)
            assert done.returncode == 78
            assert "conection" in done.stderr
            assert "socket.mode" in done.stderr
            assert connected(where, 2)
            child.send_signal(signal.SIGHUP)
            wait_until(lambda: "reload by SIGHUP: the configuration is not good" in
                       where.log.read_text(), "the refusal in the log")  # fmt: skip
            where.config.write_text(
                good.replace("[connection]", '[journal]\nfsync = "never"\n[connection]')
            )
            done = run("reload", "--socket", where.socket)
            assert done.returncode == 0
            assert done.stdout == "nothing changed\n"
            assert 'journal.fsync stays "commit"' in done.stderr
            assert end(child) == 0
        reasons = [
            r["reason"] for r in where.records
            if r["kind"] == "state" and r["state"] == "config" and "account" not in r
        ]  # fmt: skip
        me = rf"reload by uid {os.geteuid()} \(pid \d+\): "
        assert len(reasons) == 3
        assert re.fullmatch(me + "added acct-003/us", reasons[0])
        assert reasons[1] == "reload by SIGHUP: removed acct-001/us"
        assert re.fullmatch(me + "nothing changed; journal.fsync stays .*", reasons[2])
        ups = [r for r in where.records if r["kind"] == "state" and r["state"] == "up"]
        assert len(ups) == 3  # what did not change kept its connection


def test_no_secret_reaches_what_is_asked_and_told(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "20") as emulated:
        where = place(tmp_path, emulated.accounts, FAST, '[log]\nlevel = "debug"')
        accounts = emulated.accounts.read_text()
        secrets = re.findall(r'secret_key = "([^"]+)"', accounts)
        assert len(secrets) == 2
        told: list[str] = []
        with service(where) as child:
            wait_until(lambda: connected(where, 2), "both sources")
            canary = "canary" + secrets[0][::-1]
            for text in (
                accounts.replace(secrets[0], canary),
                accounts.replace(f'"{secrets[0]}"', f'["{canary}"]'),
                accounts.replace(f'secret_key = "{secrets[0]}"', f'secret_kee = "{canary}"'),
                accounts,
            ):
                emulated.accounts.write_text(text)
                for command in (("reload",), ("status",), ("status", "-o", "json")):
                    done = run(command[0], "--socket", where.socket, *command[1:])
                    told += [done.stdout, done.stderr]
                child.send_signal(signal.SIGHUP)
            assert connected(where, 2)
            assert end(child) == 0
        everything = b"".join(where.lines) + where.log.read_bytes() + "".join(told).encode()
        assert b"reload by" in everything
        for secret in (*secrets, canary):
            assert secret.encode() not in everything


def test_a_closed_terminal_still_ends_watch(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us", "--rate", "20") as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        command = [*HYPERMUX, "watch", "-c", str(where.config), "-o", "raw"]
        with process(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            assert json.loads(child.stdout.readline())["Type"]
            assert end(child, signal.SIGHUP) == 0


def test_under_nohup_sighup_is_ignored(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us", "--rate", "20") as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where, "nohup") as child:
            wait_until(lambda: connected(where, 1), "the source")
            child.send_signal(signal.SIGHUP)
            assert run("reload", "--socket", where.socket).returncode == 0
            assert connected(where, 1)
            assert "reload by SIGHUP" not in where.log.read_text()
            assert end(child) == 0
