from __future__ import annotations

from pathlib import Path

import pytest

from hypermux.config import accounts_file
from hypermux.config.forecast import Forecast, forecast


def plan(tmp_path: Path, hosts: int, limits: str = "", accounts: int = 1) -> Forecast:
    path = tmp_path / "accounts.toml"
    text = f"[limits]\n{limits}\n"
    for number in range(accounts):
        urls = ", ".join(f'h{n} = "tcp://10.0.{number}.{n}:2375"' for n in range(hosts))
        text += f'[accounts.a{number}]\nupstream = "docker"\nhosts = {{ {urls} }}\n'
    path.write_text(text)
    return forecast(accounts_file.load(path))


def test_the_slowest_rate_decides(tmp_path: Path) -> None:
    one = plan(tmp_path, 20)
    assert one.connected == 20
    assert one.seconds == pytest.approx(4.0, abs=0.01)
    assert one.slowest == "5/s of account a0"
    three = plan(tmp_path, 20, accounts=3)
    assert three.seconds == pytest.approx(6.0, abs=0.01)
    assert three.slowest == "10/s of the process"


def test_who_stays_without_a_slot(tmp_path: Path) -> None:
    full = plan(tmp_path, 5, "max_connections = 3")
    assert full.connected == 3
    assert [why for _, why in full.surplus] == ["waits for a slot of the process"] * 2
    capped = plan(tmp_path, 3, "per_account = { max_connections = 2 }", accounts=2)
    assert capped.connected == 4
    assert [str(source) for source, _ in capped.surplus] == ["a0/h2", "a1/h2"]
    (of_process,) = full.full
    assert (of_process.name, of_process.sources, of_process.engines) == ("the process", 5, 3)
    assert [f.name for f in capped.full] == ["account a0", "account a1"]
    assert full.open_files == 3 + 2000 + 64
    over_tcp = plan(tmp_path, 5, "max_connections = 3\n[http]\nlisten = '127.0.0.1:8787'")
    assert over_tcp.open_files == full.open_files + 1000
    assert plan(tmp_path, 3, "max_connections = 4").full == ()


def test_nothing_to_connect(tmp_path: Path) -> None:
    none = plan(tmp_path, 0, accounts=0)
    assert (none.connected, none.seconds, none.surplus) == (0, 0.0, ())


def test_a_thousand_sources_are_planned_quickly(tmp_path: Path) -> None:
    rates = "per_account = { max_connections = 1000, connect_rate = '100/s' }"
    many = plan(tmp_path, 250, f"connect_rate = '7/s'\n{rates}", accounts=4)
    assert many.connected == 1000
    assert many.seconds == pytest.approx(1000 / 7, rel=0.01)
    assert many.open_files == 1000 + 2000 + 64
