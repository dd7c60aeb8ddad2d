"""`hypermux watch` as a person types it: one account, an accounts file, Docker hosts."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dockerd
import pytest
from processes import (
    FAST,
    HYPERMUX,
    Emulator,
    emulator,
    end,
    place,
    process,
    run,
    service,
    wait_until,
)

pytestmark = [pytest.mark.live, pytest.mark.slow]


def single(emulated: Emulator, directory: Path) -> list[str]:
    """Return the options that name the emulator's first account."""
    account = tomllib.loads(emulated.accounts.read_text())["accounts"]["acct-001"]
    secret = directory / "secret"
    secret.write_text(account["secret_key"] + "\n")
    secret.chmod(0o600)
    addr = re.sub(r"^wss://(.*)/events/ws$", r"\1", account["endpoint"])
    return [
        *("--addr", addr, "--access-key", account["access_key"]),
        *("--secret-key-file", str(secret), "--ca", account["ca"]),
    ]


@contextmanager
def watching(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HYPER_", "DOCKER_"))}
    with process(
        *(*HYPERMUX, "watch", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as child:
        yield child


def test_one_account_as_the_original_client_showed_it(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us-west-1", "--rate", "0") as emulated:
        output = tmp_path / "out.ndjson"
        with watching(*single(emulated, tmp_path), "--output", str(output)) as child:
            assert child.stderr is not None
            assert child.stdout is not None
            assert child.stderr.readline().startswith(b"connecting to wss://127.0.0.1:")
            assert child.stderr.readline() == b"connected, watching event now:\n"
            from hypermux.emulator.control import call

            sent = [
                '{"status":"start","id":"f2","time":1476375774,"timeNano":1476375774255155116}',
                '{"status":"die","big":123456789012345678901234567890,  "f":1.10}',
                '{"status":"caf\u00e9"}',
            ]
            where = {"account": "acct-001", "region": "us-west-1"}
            reply = call(emulated.control, {"op": "emit", **where, "events": sent})
            assert reply["ok"], reply
            got = [child.stdout.readline().decode() for _ in sent]
            assert got == [f"{sent[0]}\n", f"{sent[1]}\n", '{"status":"caf\\u00e9"}\n']
            assert end(child, signal.SIGINT) == 0
        records = [json.loads(line) for line in output.read_bytes().splitlines()]
        assert [r["event"]["status"] for r in records if r["kind"] == "event"] == [
            "start",
            "die",
            "caf\u00e9",
        ]


def test_pretty_keeps_integers_exact(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us-west-1", "--rate", "5") as emulated:
        with watching(*single(emulated, tmp_path), "--pretty") as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(40)]
        emulated.stop()
        sent = emulated.manifest.read_text()
    nanos = [line for line in lines if b'"timeNano"' in line]
    assert nanos
    assert all(re.search(rb"(\d{19})", line)[1].decode() in sent for line in nanos)  # type: ignore[index]
    assert lines[0] == b"{\n"


def test_a_pin_instead_of_an_authority(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us-west-1", "--rate", "5") as emulated:
        options = single(emulated, tmp_path)[:-2]
        wrong = run("watch", *options, "--insecure", "--pin", f"sha256:{'00' * 32}")
        assert wrong.returncode == 69
        found = re.search(r"it shows (sha256:\S{44})", wrong.stderr)
        assert found is not None, wrong.stderr
        assert run("watch", *options, "--insecure", "--pin", "nonsense").returncode == 64
        with watching(*options, "--insecure", "--debug", "--pin", found[1]) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.readline().startswith(b"{")
            said = [child.stderr.readline().decode() for _ in range(4)]
        curl = next(line for line in said if line.startswith("curl "))
        assert f"--pinnedpubkey {found[1].replace(':', '//')}" in curl
        once = [*shlex.split(curl), "--max-time", "2"]
        done = subprocess.run(once, capture_output=True, timeout=20)
        assert done.stdout.startswith(b"HTTP/1.1 101"), done
        other = shlex.split(curl.replace(found[1][7:], "A" * 43 + "="))
        assert subprocess.run(other, capture_output=True, timeout=20).returncode == 90


def test_debug_prints_command_lines_that_work(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us-west-1", "--rate", "0") as emulated:
        flt = "label=a='$(touch " + str(tmp_path / "hit") + ")"
        with watching(*single(emulated, tmp_path), "--debug", "--filter", flt) as child:
            assert child.stderr is not None
            text: list[bytes] = []
            while not text or not text[-1].startswith(b"connected"):
                text.append(child.stderr.readline())
                assert text[-1], b"".join(text)
            curl = next(line for line in text if line.startswith(b"curl "))
            assert any(line.startswith(b"wscat ") for line in text)
            assert b" -k " not in curl
            answer = subprocess.run(
                ["sh"], input=curl.replace(b"curl ", b"curl --max-time 2 ", 1), capture_output=True
            )
            assert b"101" in answer.stdout.splitlines()[0]
    assert not (tmp_path / "hit").exists()


def test_refusals_and_missing_keys_have_their_exit_codes(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us-west-1", "--rate", "0") as emulated:
        options = single(emulated, tmp_path)
        (tmp_path / "secret").write_text("wrong\n")
        denied = run("watch", *options)
        assert denied.returncode == 77
        assert "401" in denied.stderr
        assert '{"message"' in denied.stderr
        untrusted = run("watch", *options[:-2])
        assert untrusted.returncode == 69
        assert "authority" in untrusted.stderr
        on_argv = run("watch", *options[:4], "--secret-key", "sesame")
        assert on_argv.returncode == 64
        assert "--secret-key-file" in on_argv.stderr
        assert "sesame" not in on_argv.stderr
        missing = run("watch", *options[:2])
        assert missing.returncode == 64
        assert "HYPER_ACCESS_KEY" in missing.stderr
        bad = run("watch", *options, "--filter", "nonsense=1")
        assert bad.returncode == 64
        for name in ("HYPER_SECRET_KEY", "HYPER_SECRET"):
            by_env = run("watch", *options[:4], *options[-2:], env={name: "wrong"})
            assert by_env.returncode == 77, by_env.stderr
    unreachable = run("watch", *options)
    assert unreachable.returncode == 69
    assert "Traceback" not in "".join(
        result.stderr for result in (denied, untrusted, on_argv, missing, bad, unreachable)
    )


def test_a_service_that_runs_already_is_read_from(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "20") as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where), watching("-c", str(where.config), "-o", "raw") as child:
            assert child.stdout is not None
            assert child.stderr is not None
            assert json.loads(child.stdout.readline())["Type"] == "container"
            assert b"reading from" in child.stderr.readline()
            child.terminate()
            assert child.wait(10) == 0
        emulated.stop()
        answers = [json.loads(line) for line in emulated.accept_log.read_text().splitlines()]
    assert len(answers) == 2, "the connections were doubled"


def test_docker_hosts_that_are_not_there_say_what_to_type(tmp_path: Path) -> None:
    gone = run("watch", "--docker", f"unix://{tmp_path}/no.sock")
    assert gone.returncode == 69
    assert "start" in gone.stderr
    wrong = run("watch", "--docker", "ftp://x")
    assert wrong.returncode == 64
    by_env = run("watch", env={"DOCKER_HOST": f"unix://{tmp_path}/env.sock"}, cwd=tmp_path)
    assert by_env.returncode == 69
    assert "env.sock" in by_env.stderr


def test_docker_and_hyper_in_one_stream(tmp_path: Path) -> None:
    with (
        dockerd.running_dockerd() as engine,
        emulator(tmp_path, "--accounts", "1", "--regions", "us", "--rate", "50") as emulated,
    ):
        where = place(
            tmp_path,
            emulated.accounts,
            FAST,
            "[accounts.ci]",
            'upstream = "docker"',
            f'hosts = {{ build1 = "{engine.url}" }}',
        )
        with service(where) as child:
            wait_until(
                lambda: sum(r.get("state") == "up" for r in where.records) == 2, "both are up"
            )
            engine.import_image()
            for n in range(5):
                engine.run("volume", "create", f"v{n}")
            engine.run("run", "--rm", "--network", "none", dockerd.IMAGE, "/bin/sh", "-c", "true")
            wait_until(
                lambda: ("container", "destroy") in told(where.records),
                "the container's end",
            )
            time.sleep(0.2)  # a repeat, if there were one, would be right behind
            assert end(child) == 0
        emulated.stop()
        records = where.records
    volumes = [e["Actor"]["ID"] for e in docker(records) if e["Type"] == "volume"]
    assert volumes == [f"v{n}" for n in range(5)]
    container = [action for kind, action in told(records) if kind == "container"]
    assert [a for a in container if a in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]
    assert {r["region"] for r in records if r.get("account") == "ci"} == {"build1"}
    in_place = [
        (r.get("at", r["time"]), r["account"], r["region"])
        for r in records
        if "account" in r and not r.get("late")
    ]
    assert in_place == sorted(in_place)


def docker(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the engine's own events."""
    return [r["event"] for r in records if r["kind"] == "event" and r["account"] == "ci"]


def told(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["Type"], event["Action"]) for event in docker(records)]


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us", "--rate", "100") as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        with watching("-c", str(where.config), "-o", "json") as child:
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.readline()
            child.stdout.close()
            assert child.wait(30) == 0
            said = child.stderr.read()
    assert b"Error" not in said
    assert b"Traceback" not in said
