"""Redaction in the whole service, on a real engine: nothing that matches is kept anywhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import dockerd
import pytest
from processes import end, subscriber, wait_until
from test_resume_live import Watch

pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_what_matches_is_nowhere_and_a_resume_still_knows_it(tmp_path: Path) -> None:
    with dockerd.running_dockerd() as engine:
        watch = Watch.of(engine, tmp_path, r"redact = ['hush-[a-z]+', 'driver=lo\w+']")
        with watch.running() as child:
            engine.volumes("hush-before", 20)
            wait_until(lambda: len(watch.created()) == 20, "the first ones")
            end(child, signal.SIGKILL)
        engine.volumes("hush-down", 20)
        with watch.running():
            wait_until(lambda: len(watch.created()) == 40, "what it missed")
            with subscriber(watch.place.socket, {"after": "start"}) as reader:
                seen = reader.recv(1 << 20)
    names = watch.created()
    assert names == 2 * [f"***-{n:03}" for n in range(20)]
    assert len(watch.created(replayed=True)) == 20
    assert [gap["cause"] for gap in watch.gaps] == ["start"]
    assert {event["Actor"]["Attributes"]["driver"] for event in watch.events()} == {"***"}
    assert b"hush" not in seen
    kept = [Path(where, file) for where, _, files in os.walk(watch.place.state) for file in files]
    assert len(kept) > 1
    for path in (*kept, watch.place.log):
        assert b"hush" not in path.read_bytes(), path
