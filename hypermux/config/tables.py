"""The shape of accounts.toml: which keys each table has, and how each is read.

Bounds say what could not be meant; they are wide, because an operator knows better. Sections are
read right into settings, accounts into an `AccountTable`, because defaults and paths still have to
be put in.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from math import inf
from typing import Any, Literal

from attrs import Factory, evolve, fields, frozen

from hypermux.config import http_table, socket_table
from hypermux.config.credentials import access_key_fault, secret_key_fault
from hypermux.config.settings import (
    MIB,
    BackoffSettings,
    BufferSettings,
    ConnectionSettings,
    JournalSettings,
    LimitSettings,
    LogSettings,
    MergeSettings,
    OnQuiet,
    RetainSettings,
)
from hypermux.config.shape import (
    Key,
    Reader,
    Wrong,
    choice,
    duration,
    flag,
    hidden,
    integer,
    mapping,
    name,
    rate,
    sequence,
    size,
    table,
    text,
)
from hypermux.core import patterns, pins
from hypermux.model.accounts import Cap, Proxy, RegionSigning, Secret, Upstream

_connections = integer(1, 1_000_000)
_connect_rate = rate("1/h", "100000/s")


@frozen
class AccountTable:
    """`[accounts.NAME]` or `[defaults]` as written; None is what is not there."""

    upstream: Upstream | None = None
    enabled: bool | None = None
    access_key: str | None = None
    secret_key: Secret | None = None
    secret_key_file: str | None = None
    secret_key_env: str | None = None
    credential_process: tuple[str, ...] | None = None
    endpoint: str | None = None
    regions: tuple[str, ...] | None = None
    endpoints: Mapping[str, str] | None = None
    region_signing: RegionSigning | None = None
    hosts: Mapping[str, str] | None = None
    filters: Mapping[str, tuple[str, ...]] | None = None
    exclude_events: tuple[str, ...] | None = None
    redact: tuple[str, ...] | None = None
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    tls_verify: bool | None = None
    pin: tuple[str, ...] | None = None
    proxy: Proxy | Literal["none"] | None = None
    limits: Cap | None = None
    expect_event_within: float | None = None  # seconds; inf is "never"
    on_quiet: OnQuiet | None = None


@frozen
class _SegmentTable:
    size: int = 128 * MIB
    age_s: float = 86400.0


@frozen
class _JournalTable:
    fsync: Literal["commit", "never"] | float = "commit"
    segment: _SegmentTable = Factory(_SegmentTable)
    retain: RetainSettings = Factory(RetainSettings)
    keep_free: int = 1024 * MIB
    checkpoint_interval_s: float = 10.0
    compress: Literal["none", "zstd"] = "none"


def _access_key(value: Any) -> str:
    found = text(value)
    if (fault := access_key_fault(found)) is not None:
        raise Wrong.value(fault)
    return found


def _secret_key(value: Any) -> Secret:
    if not isinstance(value, str):
        raise Wrong.value("is not text: write it in quotes")
    if (fault := secret_key_fault(value)) is not None:
        raise Wrong.value(fault)
    return Secret(value)


def _variable(value: Any) -> str:
    found = text(value)
    if not found.isidentifier() or not found.isascii():
        raise Wrong.value('is not the name of an environment variable: write "PROD_SECRET_KEY"')
    return found


def _command(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        argv = sequence(text)(value)
    else:
        try:
            argv = tuple(shlex.split(text(value)))
        except ValueError:
            raise Wrong.value("has a quotation mark without its other half") from None
    if not argv:
        raise Wrong.value('is empty: write ["/usr/bin/get-keys", "prod"]')
    return argv


def _url(value: Any) -> str:
    found = text(value)
    # A password is not told from a host by its looks: such a URL is never shown.
    if "@" in found:
        raise Wrong.value("an endpoint has no user name or password: write no @")
    if "?" in found or "#" in found:
        raise Wrong.value("an endpoint has no query or fragment", found)
    if not found.startswith("unix:") and (not found.isascii() or " " in found):
        raise Wrong.value("an endpoint is printable ASCII without spaces", found)
    return found


def _host(value: Any) -> str:
    """Read where an engine is. Over ssh there is a user, whom a password would follow."""
    found = text(value)
    user = found.removeprefix("ssh://").partition("@")[0]
    if found.startswith("ssh://") and "@" in found and ":" not in user:
        _url(found.replace("@", "", 1))
        return found
    return _url(value)


def _pin(value: Any) -> str:
    found = text(value)
    try:
        return pins.parse(found)
    except ValueError as error:
        raise Wrong.value(str(error), found) from None


def _pins(value: Any) -> tuple[str, ...]:
    found = sequence(_pin)(value) if isinstance(value, list) else (_pin(value),)
    if not found:
        raise Wrong.value(f"pins nothing: {pins.FORM}")
    return found


def _proxy(value: Any) -> Proxy | Literal["none"]:
    found = text(value)
    if found == "none":
        return "none"
    try:
        return Proxy.parse(found)
    except ValueError as error:
        raise Wrong.value(f"is not right: {error}") from None


def _pattern(value: Any) -> str:
    # Not `text`: white space and control characters can be meant.
    if not isinstance(value, str) or not value:
        raise Wrong.value('is not a regular expression in quotes, such as "(?i)password=[^ ]+"')
    if (wrong := patterns.fault(value)) is not None:
        raise Wrong.value(wrong)
    return value


def _filter_value(value: Any) -> str:
    # Empty text is a value: the label with the empty key.
    return "" if value == "" else text(value)


def _window(value: Any) -> float | None:
    if value == "auto":
        return None
    if isinstance(value, str) and not value[:1].isdigit():
        raise Wrong.value('is neither "auto" nor a duration such as "200ms"', value)
    return duration("1ms", "60s")(value)


def _expect_within(value: Any) -> float:
    if value == "never":
        return inf
    if isinstance(value, str) and not value[:1].isdigit():
        raise Wrong.value('is neither "never" nor a duration such as "1h"', value)
    return duration("1s", "365d")(value)


def _rotate_after(value: Any) -> float | None:
    if value == "never":
        return None
    if isinstance(value, str) and not value[:1].isdigit():
        raise Wrong.value('is neither "never" nor a duration such as "20h"', value)
    return duration("1s", "365d")(value)


def _fsync(value: Any) -> Literal["commit", "never"] | float:
    if value in ("commit", "never"):
        return "commit" if value == "commit" else "never"
    if isinstance(value, str) and not value[:1].isdigit():
        raise Wrong.value('is none of "commit", "never" and a duration such as "100ms"', value)
    return duration("1ms", "1min")(value)


_cap = table(
    Cap,
    max_connections=Key("max_connections", _connections),
    connect_rate=Key("connect_rate", _connect_rate),
)


def _cap_over(default: Cap) -> Reader[Cap]:
    """Return a reader of limits in which a missing key keeps the default's value."""

    def read(value: Any) -> Cap:
        found = _cap(value)
        given = {k: v for k in ("max_connections", "connect_rate") if (v := getattr(found, k))}
        return evolve(default, **given)

    return read


account = table(
    AccountTable,
    upstream=Key("upstream", choice("hyper", "docker")),
    enabled=Key("enabled", flag),
    # What stands in a credential's place may be the secret itself: never shown.
    access_key=Key("access_key", hidden(_access_key)),
    secret_key=Key("secret_key", hidden(_secret_key)),
    secret_key_file=Key("secret_key_file", hidden(text)),
    secret_key_env=Key("secret_key_env", hidden(_variable)),
    credential_process=Key("credential_process", hidden(_command)),
    endpoint=Key("endpoint", _url),
    regions=Key("regions", sequence(name)),
    endpoints=Key("endpoints", mapping(_url, names=name)),
    region_signing=Key("region_signing", choice("explicit", "legacy")),
    hosts=Key("hosts", mapping(_host, names=name)),
    filters=Key("filters", mapping(sequence(_filter_value))),
    exclude_events=Key("exclude_events", sequence(text)),
    redact=Key("redact", hidden(sequence(_pattern))),
    ca=Key("ca", text),
    client_cert=Key("client_cert", text),
    client_key=Key("client_key", text),
    tls_verify=Key("tls_verify", flag),
    pin=Key("pin", _pins),
    # It may hold a password, and one that does not parse may hold it anywhere.
    proxy=Key("proxy", hidden(_proxy)),
    limits=Key("limits", _cap),
    expect_event_within=Key("expect_event_within", _expect_within),
    on_quiet=Key("on_quiet", choice("report", "redial")),
)

_journal = table(
    _JournalTable,
    fsync=Key("fsync", _fsync),
    segment=Key(
        "segment",
        table(
            _SegmentTable,
            size=Key("size", size("64KiB", "1TiB")),
            age_s=Key("age", duration("1s", "365d")),
        ),
    ),
    retain=Key(
        "retain",
        table(
            RetainSettings,
            # Nobody means to keep less than one segment of the smallest size.
            size=Key("size", size("64KiB", "1024TiB")),
            age_s=Key("age", duration("1s", "36500d")),
        ),
    ),
    keep_free=Key("keep_free", size("0B", "1024TiB")),
    checkpoint_interval_s=Key("checkpoint_interval", duration("100ms", "1h")),
    compress=Key("compress", choice("none", "zstd")),
)


def journal(value: Any) -> JournalSettings:
    """Read `[journal]`. Raises Wrong."""
    found = _journal(value)
    return JournalSettings(
        fsync=found.fsync,
        segment_size=found.segment.size,
        segment_age_s=found.segment.age_s,
        retain=found.retain,
        keep_free=found.keep_free,
        checkpoint_interval_s=found.checkpoint_interval_s,
        compress=found.compress,
    )


limits = table(
    LimitSettings,
    max_connections=Key("max_connections", _connections),
    connect_rate=Key("connect_rate", _connect_rate),
    connect_burst=Key("connect_burst", integer(1, 100_000)),
    per_account=Key("per_account", _cap_over(LimitSettings().per_account)),
    per_endpoint=Key("per_endpoint", _cap_over(LimitSettings().per_endpoint)),
)
connection = table(
    ConnectionSettings,
    dial_timeout_s=Key("dial_timeout", duration("100ms", "10min")),
    ping_interval_s=Key("ping_interval", duration("100ms", "1h")),
    pong_timeout_s=Key("pong_timeout", duration("100ms", "10min")),
    backoff=Key(
        "backoff",
        table(
            BackoffSettings,
            min_s=Key("min", duration("10ms", "1h")),
            max_s=Key("max", duration("10ms", "6h")),
            reset_after_s=Key("reset_after", duration("1ms", "1d")),
        ),
    ),
    rotate_after_s=Key("rotate_after", _rotate_after),
    max_message_size=Key("max_message_size", size("1KiB", "64MiB")),
)
merge = table(
    MergeSettings,
    max_hold_s=Key("max_hold", duration("1ms", "60s")),
    window_s=Key("window", _window),
)
buffer = table(
    BufferSettings,
    size=Key("size", size("64KiB", "1TiB")),
    per_source=Key("per_source", size("4KiB", "1TiB")),
)
socket = socket_table.socket
http = http_table.http
log = table(
    LogSettings,
    level=Key("level", choice("debug", "info", "warning", "error")),
    format=Key("format", choice("auto", "human", "json")),
)

SECTIONS = ("limits", "connection", "merge", "buffer", "journal", "socket", "http", "log")
ROOT_KEYS = ("include", "state_dir", "defaults", "accounts", *SECTIONS)
ACCOUNT_KEYS = frozenset(attribute.name for attribute in fields(AccountTable))
