"""HTTP of a running service, asked by curl: the stream, metrics, health."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from processes import FAST, Place, emulator, end, place, run, service, wait_until
from prometheus_client.parser import text_string_to_metric_families as parse

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def curl(where: Place, *arguments: str) -> str:
    command = ["curl", "-sS", "-N", "--max-time", "20", "--unix-socket", str(where.socket)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode in (0, 28), done.stderr
    return done.stdout


def counters(where: Place) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(curl(where, "http://x/metrics"))
        for sample in family.samples
        if family.type in ("counter", "histogram") or "in_flight" in sample.name
    }


def total(where: Place, name: str) -> float:
    return sum(v for (n, _), v in counters(where).items() if n == f"hypermux_{name}")


def until(condition: Callable[[], Any], what: str) -> None:
    wait_until(condition, what)


def test_the_stream_metrics_and_health(tmp_path: Any) -> None:
    with emulator(tmp_path, "--accounts", "2", "--regions", "us,eu", "--rate", "50") as emulated:
        port = free_port()
        where = place(tmp_path, emulated.accounts, f'{FAST}\n[http]\nlisten = "127.0.0.1:{port}"\n')
        with service(where) as child:
            code = ("-o", "/dev/null", "-w", "%{http_code}")
            until(lambda: curl(where, *code, "http://x/readyz") == "200", "all connected")
            assert json.loads(curl(where, "http://x/readyz"))["connected"] == 4
            assert json.loads(curl(where, "http://x/livez"))["live"] is True

            until(lambda: total(where, "events_recorded_total") > 100, "records")
            before = counters(where)
            lines = curl(where, "http://x/records?after=start&follow=false").splitlines()
            assert json.loads(lines[0])["kind"] == "subscribed"
            assert json.loads(lines[-1])["kind"] == "end"
            seqs = [json.loads(line)["seq"] for line in lines[1:-1]]
            assert seqs == list(range(1, len(seqs) + 1))
            three = "http://x/records?after=start&kinds=event&limit=3"
            events = curl(where, "-H", "Accept: text/event-stream", three).split("\n\n")
            place_id = events[3].partition("\n")[0].removeprefix("id: ")
            assert events[3].split("\n")[1] == "event: event"
            more = curl(where, "-H", "Accept: text/event-stream", "-H",
                        f"Last-Event-ID: {place_id}", three)  # fmt: skip
            assert more.startswith(f"id: {place_id}\nevent: subscribed\n")

            there = f"http://localhost:{port}"
            over_tcp = subprocess.run(
                ["curl", "-sS", "--max-time", "20", *code, f"{there}/readyz",
                 "--next", "-sS", *code, "-X", "POST", f"{there}/reload",
                 "--next", "-sS", *code, "-H", "Host: evil.example.com", f"{there}/metrics",
                 "--next", "-sS", *code, f"{there}/v1.43/_ping"],
                capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
            assert over_tcp.stdout == "200404421200"

            token = tmp_path / "token"
            token.touch(0o600)
            token.write_text("correct-horse-battery")
            text = where.config.read_text()
            more = '[http]\nready_when = "any"\ntoken_file = "token"'
            where.config.write_text(text.replace("[http]", more))
            assert run("reload", "--socket", where.socket).returncode == 0
            assert json.loads(curl(where, "http://x/readyz"))["ready_when"] == "any"
            bearer = f"Authorization: Bearer {token.read_text()}"
            asked = subprocess.run(
                ["curl", "-sS", "--max-time", "20", *code, f"{there}/status",
                 "--next", "-sS", *code, "-H", bearer, f"{there}/status"],
                capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
            assert asked.stdout == "401200"
            emulated.stop()
            until(lambda: total(where, "reconnects_total") >= 4, "connections lost")
            after = counters(where)
            assert all(after[key] >= value for key, value in before.items()
                       if "in_flight" not in key[0])  # fmt: skip
            assert total(where, "reloads_total") == 1
            events_of = {
                kind: total(where, f"events_{kind}")
                for kind in ("received_total", "synthetic_total", "recorded_total",
                             "duplicate_total", "filtered_total", "lost_total", "in_flight")
            }  # fmt: skip
            came = events_of.pop("received_total") + events_of.pop("synthetic_total")
            assert came == sum(events_of.values()) > 100
            assert curl(where, *code, "http://x/readyz") == "503"
            assert len(json.loads(curl(where, "http://x/readyz"))["missing"]) == 4
            assert curl(where, *code, "http://x/livez") == "200"
            assert end(child) == 0
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            taken = run("run", "-c", where.config)
            assert taken.returncode == 69
            assert f"something else listens at 127.0.0.1:{port}" in taken.stderr


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
