"""From one configuration to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import evolve

from hypermux.config.changes import _OURS, MAX_TEXT, Changes, compare
from hypermux.config.settings import (
    Account,
    BufferSettings,
    ConnectionSettings,
    JournalSettings,
    LimitSettings,
    LogSettings,
    MergeSettings,
    RetainSettings,
    Settings,
    SocketSettings,
    Source,
)
from hypermux.core.filters import HYPER_FIELDS, Filters
from hypermux.model.accounts import Cap, CredentialSource, Endpoint, Secret, SourceId, Tls

CANARY = "canary-8d1f"


def source(name: str, **changes: Any) -> Source:
    account, _, region = name.partition("/")
    endpoint = Endpoint.parse(f"wss://{region}.example.com:443/events/ws")
    credential = CredentialSource("AK", Secret(CANARY))
    return evolve(Source(SourceId(account, region), "hyper", endpoint, credential), **changes)


def account(*sources: Source, **changes: Any) -> Account:
    name = sources[0].id.account
    return evolve(Account(name, "hyper", sources, Path("a.toml")), **changes)


def settings(*accounts: Account, **changes: Any) -> Settings:
    base = Settings(Path("a.toml"), Path("/state"), SocketSettings(Path("/run/s")), accounts)
    return evolve(base, **changes)


BEFORE = settings(account(source("a/x"), source("a/y")), account(source("b/x")))


def only(changes: Changes, *parts: str) -> bool:
    """Say whether these are the only parts that something is in."""
    every = ("added", "removed", "changed", "at_once", "restart", "limits")
    return {part for part in every if getattr(changes, part)} == set(parts)


def test_nothing() -> None:
    changes = compare(BEFORE, evolve(BEFORE, warnings=("w",)))
    assert only(changes)
    assert changes.text == "nothing changed"
    assert changes.settings.warnings == ("w",)


def test_added_and_removed() -> None:
    after = settings(account(source("a/y")), account(source("c/x"), source("c/y")))
    changes = compare(BEFORE, after)
    assert only(changes, "added", "removed")
    assert [str(s.id) for s in changes.added] == ["c/x", "c/y"]
    assert list(map(str, changes.removed)) == ["a/x", "b/x"]
    assert changes.sentences == ("added c/x, c/y", "removed a/x, b/x")
    assert changes.settings == after


def test_a_disabled_account_is_removed_and_a_moved_file_is_nothing() -> None:
    accounts = (
        evolve(BEFORE.accounts[0], enabled=False),
        evolve(BEFORE.accounts[1], file=Path("b.toml")),
    )
    changes = compare(BEFORE, evolve(BEFORE, accounts=accounts))
    assert only(changes, "removed")
    assert list(map(str, changes.removed)) == ["a/x", "a/y"]


@pytest.mark.parametrize(
    ("change", "reconnects", "renews"),
    [
        ({"endpoint": Endpoint.parse("wss://other:1/x")}, True, False),
        ({"tls": Tls(verify=False)}, True, False),
        ({"filters": Filters.from_mapping({"event": ["die"]}, fields=HYPER_FIELDS)}, True, False),
        ({"region_signing": "legacy"}, True, False),
        ({"upstream": "docker"}, True, False),
        ({"exclude_events": ("exec_*",)}, False, False),
        ({"redact": (CANARY,)}, False, False),
        ({"redact": (CANARY,), "upstream": "docker"}, True, False),
        ({"expect_event_within_s": 60.0}, False, False),
        ({"on_quiet": "redial"}, False, False),
        ({"credential": CredentialSource("AK", Secret("another-" + CANARY))}, False, True),
        ({"credential": CredentialSource("AK2", secret_key_file="/b.key")}, False, True),
        ({"credential": None, "tls": Tls(ca="/ca.pem")}, True, True),
    ],
)
def test_changed_sources(change: dict[str, Any], reconnects: bool, renews: bool) -> None:
    after = settings(account(source("a/x", **change), source("a/y")), account(source("b/x")))
    changes = compare(BEFORE, after)
    assert only(changes, "changed")
    (found,) = changes.changed
    assert found.source == after.sources[0]
    assert (found.reconnects, found.renews) == (reconnects, renews)
    assert set(found.keys) == set(change)
    assert changes.text.startswith("changed a/x: ")
    assert ("connected anew" in changes.text) == reconnects
    assert CANARY not in changes.text + repr(changes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"limits": LimitSettings(connect_rate=0.5, max_connections=7)},
            'limits.max_connections = 7 (was 1000); limits.connect_rate = "30/min" (was "10/s")',
        ),
        (
            {"limits": LimitSettings(per_account=Cap(None, 2.0))},
            'limits.per_account = { connect_rate = "2/s" } '
            '(was { max_connections = 64, connect_rate = "5/s" })',
        ),
        (
            {"connection": ConnectionSettings(ping_interval_s=30.0, max_message_size=1 << 20)},
            'connection.ping_interval = "30s" (was "15s"); '
            'connection.max_message_size = "1MiB" (was "256KiB")',
        ),
        ({"log": LogSettings("debug", "json")}, 'log.level = "debug" (was "info"); '
            'log.format = "json" (was "auto")'),
        ({"socket": SocketSettings(Path("/run/s"), max_subscribers=5)},
            "socket.max_subscribers = 5 (was 1000)"),
        ({"socket": SocketSettings(Path("/run/s"), 0o666, group=7, allow_uids=(1, 2))},
            'socket.mode = "0666" (was "0600"); socket.group = 7 (was none); '
            "socket.allow_uids = [1, 2] (was [])"),
    ],
)  # fmt: skip
def test_settings_that_count_at_once(change: dict[str, Any], sentence: str) -> None:
    after = evolve(BEFORE, **change)
    changes = compare(BEFORE, after)
    assert only(changes, "at_once", *(["limits"] if "limits" in change else []))
    assert changes.text == sentence
    assert changes.settings == after


def test_an_accounts_own_limits_count_at_once() -> None:
    accounts = (evolve(BEFORE.accounts[0], cap=Cap(3, None)), BEFORE.accounts[1])
    changes = compare(BEFORE, evolve(BEFORE, accounts=accounts))
    assert only(changes, "at_once", "limits")
    assert changes.text == "accounts.a.limits = { max_connections = 3 } (was none)"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"state_dir": Path("/new")}, 'state_dir stays "/state": "/new" takes a restart'),
        (
            {"socket": SocketSettings(Path("/new"))},
            'socket.path stays "/run/s": "/new" takes a restart',
        ),
        ({"merge": MergeSettings(1.0)}, 'merge.max_hold stays "2s": "1s" takes a restart'),
        ({"buffer": BufferSettings(1 << 20)}, 'buffer.size stays "64MiB": "1MiB" takes a restart'),
        ({"journal": JournalSettings(retain=RetainSettings(age_s=86400.0), keep_free=1 << 20)},
            'journal.retain.age stays "30d": "1d" takes a restart; '
            'journal.keep_free stays "1GiB": "1MiB" takes a restart'),
        ({"journal": JournalSettings(fsync=0.1, segment_size=1 << 20)},
            'journal.fsync stays "commit": "100ms" takes a restart; '
            'journal.segment.size stays "128MiB": "1MiB" takes a restart'),
    ],
)  # fmt: skip
def test_settings_that_need_a_restart_are_named_and_stay(
    change: dict[str, Any], sentence: str
) -> None:
    changes = compare(BEFORE, evolve(BEFORE, **change))
    assert only(changes, "restart")
    assert changes.text == f"nothing changed; {sentence}"
    assert changes.settings == BEFORE
    # And they are named again at the next reload: what is in force is compared, not the file.
    again = compare(changes.settings, evolve(BEFORE, **change))
    assert again.restart == changes.restart


def test_some_of_a_section_counts_and_some_stays() -> None:
    after = evolve(BEFORE, socket=SocketSettings(Path("/new"), 0o600, 9, 3.0))
    changes = compare(BEFORE, after)
    assert only(changes, "at_once", "restart")
    assert changes.settings.socket == SocketSettings(Path("/run/s"), 0o600, 9, 3.0)


def test_the_keys_that_are_ours_are_keys() -> None:
    assert {field.name for field in attrs.fields(Source)} >= _OURS


def test_a_thousand_sources_are_not_all_named() -> None:
    many = [account(*(source(f"n{n}/r{r}") for r in range(10))) for n in range(100)]
    changes = compare(BEFORE, settings(*many))
    assert "and 992 more" in changes.text
    many = [account(source("a/" + "r" * 60 + str(n), tls=Tls(ca=str(n)))) for n in range(100)]
    assert len(compare(settings(account(source("z/z"))), settings(*many)).text) <= MAX_TEXT
