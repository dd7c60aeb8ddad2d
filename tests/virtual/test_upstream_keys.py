"""The key ring in virtual time: real files, and programs that are functions."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from hypermux.config import credentials
from hypermux.config.settings import Source
from hypermux.core.recording import rfc3339
from hypermux.model.accounts import Credential, CredentialSource, Endpoint, SourceId
from hypermux.model.errors import ConfigurationFault, Problem
from hypermux.upstream.filewatch import POLL_S
from hypermux.upstream.keys import KeyRing

S = 1_000_000_000
START_NS = 1_700_000_000 * S
ENDPOINT = Endpoint.parse("wss://router.test/events/ws")


@define(eq=False)
class Vault:
    """What a credential process asks; `answers` are tried in turn, the last one again and again."""

    answers: list[Callable[[], dict[str, str]]]
    asked_at: list[float] = field(factory=list)
    takes_s: float = 0.0

    def run(self, argv: tuple[str, ...]) -> bytes:
        self.asked_at.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return json.dumps(answer()).encode()


def broken() -> dict[str, str]:
    fault = Problem("credential", "credential_process", "the program ended with exit code 1")
    raise ConfigurationFault([fault])


def utc_ns() -> int:
    return START_NS + round(trio.current_time() * 1e9)


def lasting(seconds: float, key: str = "canary-secret") -> Callable[[], dict[str, str]]:
    def answer() -> dict[str, str]:
        end = rfc3339(utc_ns() + int(seconds * S))
        return {"AccessKeyId": "AK", "SecretAccessKey": key, "Expiration": end}

    return answer


def source(credential: CredentialSource, region: str = "us", account: str = "prod") -> Source:
    return Source(SourceId(account, region), "hyper", ENDPOINT, credential)


PROCESS = source(CredentialSource(process=("get-keys",)))


@define(eq=False)
class World:
    ring: KeyRing
    changes: list[tuple[float, str]]

    def secret(self, account: str = "prod") -> str | None:
        credential = self.ring.current(account)
        return None if credential is None else credential.secret_key.reveal()


@asynccontextmanager
async def world(*sources: Source) -> AsyncIterator[World]:
    changes: list[tuple[float, str]] = []

    async def run_directly(function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    ring = KeyRing(
        utc_ns,
        random.Random(1),
        lambda account, _: changes.append((trio.current_time(), account)),
        run_directly,
    )
    ring.watch.run_sync = run_directly
    ring.use(sources)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.run)
        await trio.testing.wait_all_tasks_blocked()
        yield World(ring, changes)
        nursery.cancel_scope.cancel()


async def test_a_link_of_before_a_reload_brings_no_old_key_back(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLD", "old-secret")
    monkeypatch.setenv("NEW", "new-secret")
    old = source(CredentialSource("AK", secret_key_env="OLD"))
    new = source(CredentialSource("AK", secret_key_env="NEW"))
    gone = source(CredentialSource("AK", secret_key_env="OLD"), account="gone")
    async with world(old, gone) as w:
        w.ring.use([new])
        found = await w.ring.get(old)
        assert found is not None
        assert found.secret_key.reveal() == "new-secret"
        await w.ring.refresh()
        assert w.secret() == "new-secret"
        assert await w.ring.get(gone) is not None, "its link is about to be ended"
        assert w.ring.current("gone") is None


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Vault:
    vault = Vault([lasting(3600)])
    monkeypatch.setattr(credentials, "_run", vault.run)
    return vault


def keyed(path: Path, secret: str = "first") -> Source:
    path.write_text(secret)
    path.chmod(0o600)
    return source(CredentialSource("AK", secret_key_file=str(path)))


async def test_a_rewritten_file_is_noticed(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    account = keyed(path)
    async with world(account) as w:
        first = await w.ring.get(account)
        assert first is not None
        await trio.sleep(60)
        assert w.changes == []
        path.write_text("second")
        await trio.sleep(POLL_S + 0.1)
        assert [name for _, name in w.changes] == ["prod"]
        assert w.secret() == "second"
        assert await w.ring.get(account) != first
        # The same again is no news, however new the file is.
        path.write_text("second\n")
        await trio.sleep(60)
        assert len(w.changes) == 1


async def test_files_are_replaced_in_every_way(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """By rename, and through a symlink of a directory, as mounted secrets are."""
    for number in (1, 2):
        (tmp_path / f"v{number}").mkdir()
        keyed(tmp_path / f"v{number}" / "key", f"number {number}")
    (tmp_path / "data").symlink_to("v1")
    (tmp_path / "key").symlink_to("data/key")
    account = source(CredentialSource("AK", secret_key_file=str(tmp_path / "key")))
    async with world(account) as w:
        await w.ring.get(account)
        assert w.secret() == "number 1"
        (tmp_path / "new").symlink_to("v2")
        os.replace(tmp_path / "new", tmp_path / "data")
        await trio.sleep(POLL_S + 0.1)
        assert w.secret() == "number 2"
        keyed(tmp_path / "fresh", "number 3")
        os.replace(tmp_path / "fresh", tmp_path / "v2" / "key")
        await trio.sleep(POLL_S + 0.1)
        assert w.secret() == "number 3"
        # Of the same size and with the old one's time.
        times = os.stat(tmp_path / "v2" / "key")
        (tmp_path / "v2" / "key").write_text("number 4")
        os.utime(tmp_path / "v2" / "key", ns=(times.st_atime_ns, times.st_mtime_ns))
        await trio.sleep(POLL_S + 0.1)
        assert w.secret() == "number 4"
        assert len(w.changes) == 3


async def test_a_refused_key_is_read_again_and_told_of_when_it_differs(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    account = keyed(path)
    async with world(account) as w:
        first = await w.ring.get(account)
        assert not w.ring.refused(account, first), "there is no other one"
        again = await w.ring.get(account)
        assert again == first
        assert w.changes == []
        assert not w.ring.refused(account, first), "another region has read it since"
        assert w.ring.current("prod") is again
        assert not w.ring.refused(account, again)
        path.write_text("second")
        await trio.sleep(POLL_S + 0.1)
        assert len(w.changes) == 1
        # A dial that was on its way with the old one need not wait for a probe.
        assert w.ring.refused(account, first)
        assert w.secret() == "second"


async def test_a_file_that_cannot_be_read_and_then_can(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    account = keyed(path)
    path.chmod(0o644)
    async with world(account) as w:
        with pytest.raises(ConfigurationFault, match="others can read"):
            await w.ring.get(account)
        assert w.ring.trouble("prod") is not None
        assert "others can read" in str(w.ring.trouble("prod"))
        await trio.sleep(600)
        assert w.changes == []
        path.chmod(0o600)
        await trio.sleep(POLL_S + 0.1)
        assert [name for _, name in w.changes] == ["prod"]
        assert (w.secret(), w.ring.trouble("prod")) == ("first", None)


async def test_a_key_that_vanishes_is_used_on(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    account = keyed(path)
    async with world(account) as w:
        await w.ring.get(account)
        path.unlink()
        await trio.sleep(600)
        assert w.secret() == "first"
        told = [r.message for r in caplog.records if "no new key" in r.message]
        assert len(told) == 1, "said once"
        assert "there is no such file" in told[0]
        keyed(path, "second")
        await trio.sleep(POLL_S + 0.1)
        assert w.secret() == "second"
        assert len(w.changes) == 1


async def test_a_key_is_renewed_before_it_ends(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    vault.answers = [lasting(3600, "one"), lasting(3600, "two")]
    async with world(PROCESS) as w:
        began = trio.current_time()
        first = await w.ring.get(PROCESS)
        assert first is not None
        await trio.sleep(3600 - 451)
        assert w.changes == []
        assert len(vault.asked_at) == 1
        await trio.sleep(152)
        assert w.secret() == "two"
        assert len(w.changes) == 1
        assert w.changes[0][0] < began + 3600 - 299
        # The connection that was made with the first one is the connection's own matter.
        assert not w.ring.refused(PROCESS, first) or w.secret() == "two"


async def test_the_same_key_with_a_later_end_is_no_news(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    async with world(PROCESS) as w:
        await w.ring.get(PROCESS)
        await trio.sleep(24 * 3600)
        assert w.changes == []
        assert 24 <= len(vault.asked_at) <= 29


async def test_a_renewal_that_fails_is_tried_on_and_said_once(
    autojump_clock: trio.testing.MockClock, vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    vault.answers = [lasting(3600, "one"), *[broken] * 5, lasting(3600, "two")]
    caplog.set_level(logging.INFO)
    async with world(PROCESS) as w:
        await w.ring.get(PROCESS)
        await trio.sleep(3600 - 200)
        assert w.secret() == "two"
        assert [name for _, name in w.changes] == ["prod"]
    told = [r.message for r in caplog.records if r.name == "hypermux.keys"]
    assert len(told) == 2, told
    assert "no new key: " in told[0]
    assert "going on with the present one, which ends at 2023-11-14T23:13:20" in told[0]
    assert told[1] == "prod: its key can be read again"
    assert "canary" not in caplog.text


async def test_a_key_that_is_over_is_not_used(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    vault.answers = [lasting(100, "one"), broken]
    async with world(PROCESS) as w:
        assert await w.ring.get(PROCESS) is not None
        await trio.sleep(85)
        assert await w.ring.get(PROCESS) is not None
        await trio.sleep(6)
        with pytest.raises(ConfigurationFault, match="exit code 1"):
            await w.ring.get(PROCESS)
        await trio.sleep(3600)
        assert len(vault.asked_at) < 80 + 60, "a program a minute at the most"
        vault.answers = [lasting(1000, "two")]
        await trio.sleep(61)
        assert w.secret() == "two"
        assert len(w.changes) == 1


async def test_a_program_that_fails_at_the_start_is_asked_again_by_itself(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    vault.answers = [broken, broken, broken, lasting(3600)]
    async with world(PROCESS) as w:
        with pytest.raises(ConfigurationFault):
            await w.ring.get(PROCESS)
        await trio.sleep(30)
        assert [name for _, name in w.changes] == ["prod"]
        assert len(vault.asked_at) == 4


async def test_a_key_that_was_over_when_it_came_is_for_the_server_to_judge(
    autojump_clock: trio.testing.MockClock, vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    vault.answers = [lasting(-3600, "one")]
    async with world(PROCESS) as w:
        assert await w.ring.get(PROCESS) is not None
        assert "ended at 2023-11-14T21:13:20" in caplog.text
        await trio.sleep(600)
        assert await w.ring.get(PROCESS) is not None
        assert w.changes == []
        assert len(vault.asked_at) < 40


async def test_a_wall_clock_that_jumps_over_the_end_is_noticed(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    vault.answers = [lasting(36_000, "one"), lasting(72_000, "two")]
    async with world(PROCESS) as w:
        await w.ring.get(PROCESS)
        before = w.ring.utc_ns
        w.ring.utc_ns = lambda: before() + 40_000 * S
        await trio.sleep(2)
        assert w.secret() == "two"


async def test_a_key_that_a_dial_was_given_is_told_of_when_it_was_taken(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    vault.answers = [lasting(36_000, key) for key in ("one", "two", "three", "four")]
    async with world(PROCESS) as w:
        for _ in range(2):
            refused = await w.ring.get(PROCESS)
            w.ring.accepted(PROCESS, refused)  # the first one is no news, the second one is
            assert not w.ring.refused(PROCESS, refused)
        assert len(w.changes) == 1
        third = await w.ring.get(PROCESS)
        assert len(w.changes) == 1, "nobody knows yet whether it is any better"
        w.ring.accepted(PROCESS, refused)
        assert len(w.changes) == 1
        w.ring.accepted(PROCESS, third)
        w.ring.accepted(PROCESS, third)
        assert len(w.changes) == 2


async def test_new_keys_that_are_over_move_nobody(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    """Our clock is wrong by more than they last: each look finds another one."""
    vault.answers = [lasting(-3600, f"number {number}") for number in range(1000)]
    async with world(PROCESS) as w:
        await w.ring.get(PROCESS)
        await trio.sleep(3600)
        assert len(vault.asked_at) > 50
        assert w.changes == []


async def test_an_operator_asks(autojump_clock: trio.testing.MockClock, vault: Vault) -> None:
    vault.answers = [lasting(3600, "one"), lasting(3600, "two")]
    async with world(PROCESS) as w:
        await w.ring.get(PROCESS)
        await w.ring.refresh()
        assert w.secret() == "two"
        assert len(w.changes) == 1
        vault.answers = [broken]
        await w.ring.refresh()
        assert w.secret() == "two", "a failure takes nothing away"


async def test_accounts_come_and_go_and_change(
    autojump_clock: trio.testing.MockClock, vault: Vault, tmp_path: Path
) -> None:
    account = keyed(tmp_path / "key")
    async with world(account) as w:
        await w.ring.get(account)
        moved = evolve(account, credential=CredentialSource(process=("get-keys",)))
        w.ring.use([moved])
        credential = await w.ring.get(moved)
        assert credential is not None
        assert credential.secret_key.reveal() == "canary-secret"
        (tmp_path / "key").write_text("not looked at any more")
        await trio.sleep(60)
        assert w.secret() == "canary-secret"
        w.ring.use([])
        assert w.ring.current("prod") is None


async def test_one_reads_for_all_regions(
    autojump_clock: trio.testing.MockClock, vault: Vault
) -> None:
    async with world(PROCESS) as w:
        found: list[Credential | None] = []

        async def get(region: str) -> None:
            region_source = evolve(PROCESS, id=SourceId("prod", region))
            found.append(await w.ring.get(region_source))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(partial(get, f"r{number}"))
        assert len(vault.asked_at) == 1
        assert len(set(map(id, found))) == 1
