"""Rotation through the whole service and the real WebSocket library, in virtual time."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest
from whole_service import World


def lines(world: World) -> list[dict[str, object]]:
    found = []
    for path in sorted(world.storage.files):
        if path.suffix == ".ndjson":
            found += [
                json.loads(line) for line in bytes(world.storage.files[path].data).splitlines()
            ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_rotations_lose_nothing_and_double_nothing(seed: int) -> None:
    world = World(
        seed, accounts=3, regions=2, events=1500, rate=30.0, cuts=0, shared=True, rotate_after_s=7.0
    )
    world.run()
    sent: dict[tuple[object, object], dict[str, None]] = defaultdict(dict)
    connections = set()
    for line in map(json.loads, world.manifest):
        sent[line["account"], line["region"]].setdefault(json.dumps(line["event"]))
        connections.add(line["connection"])
    assert len(connections) > 6 * 6
    records = lines(world)
    causes = Counter(r["cause"] for r in records if r["kind"] == "gap")
    assert causes == {"start": 6}
    for source, messages in sent.items():
        recorded = [
            json.dumps(r["event"])
            for r in records
            if r["kind"] == "event" and (r["account"], r["region"]) == source
        ]
        assert recorded == list(messages)
