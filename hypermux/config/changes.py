"""From one configuration to the next: what changes, in words, and what of it can count at once.

A source that both have is touched only as far as its change asks for:

    a key is kept elsewhere       the credential is renewed; the connection stays until then
    what we do with its events    counts from the next event on; the connection stays
    anything else                 it is connected anew: what the server sends depends on it

An engine's events are remembered as they were recorded: with another `redact` none would be known
again, so that is connected anew as well, with nothing remembered.

Of the settings those of `_AT_ONCE` count at once. All others are built into what is running: they
keep their value until a restart, and that is said. No word here shows a secret, nor a value that
may hold one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from hypermux.config.settings import Settings, Source
from hypermux.config.units import format_duration, format_rate, format_size
from hypermux.model.accounts import Cap, SourceId

# Keys of a source that say what is done with its events here.
_OURS = frozenset({"exclude_events", "redact", "expect_event_within_s", "on_quiet"})
_CREDENTIAL = "credential"
_AT_ONCE = (
    "limits",
    "connection",
    "log",
    "socket.mode",
    "socket.group",
    "socket.allow_uids",
    "socket.allow_gids",
    "socket.max_subscribers",
    "socket.stall_timeout_s",
    "http.token",
    "http.ready_when",
)
# Not settings: the accounts are compared one by one, the others are about the file.
_APART = frozenset({"file", "accounts", "warnings"})
# Where an attribute's name is not the key's, less its unit.
_KEYS = {
    "journal.segment_size": "journal.segment.size",
    "journal.segment_age_s": "journal.segment.age",
    "http.token": "http.token_file",
}
_SIZES = frozenset({"size", "per_source", "segment_size", "max_message_size", "keep_free"})
# A list of hundreds of sources tells a person no more than its beginning and its length.
_NAMES_SHOWN = 8
# The text of one record, about a screen.
MAX_TEXT = 2000


@frozen
class SourceChange:
    """A source as it will be, and the keys that are different."""

    source: Source
    keys: tuple[str, ...]

    @property
    def reconnects(self) -> bool:
        """Whether what the server sends depends on it, or what is remembered of that."""
        ours = _OURS - {"redact"} if self.source.upstream == "docker" else _OURS
        return bool(set(self.keys) - ours - {_CREDENTIAL})

    @property
    def renews(self) -> bool:
        """Whether its key is kept elsewhere now."""
        return _CREDENTIAL in self.keys


@frozen
class SettingChange:
    """One setting: its key, and both values for people."""

    key: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.key} = {self.after} (was {self.before})"


@frozen
class Changes:
    """What it takes to get from one configuration to the next.

    `settings` are those in force afterwards. `limits`: whether any limit is another.
    """

    settings: Settings
    added: tuple[Source, ...] = ()
    removed: tuple[SourceId, ...] = ()
    changed: tuple[SourceChange, ...] = ()
    at_once: tuple[SettingChange, ...] = ()
    restart: tuple[SettingChange, ...] = ()
    limits: bool = False

    @property
    def sentences(self) -> tuple[str, ...]:
        """What counts from now on, for people."""
        found = []
        if self.added:
            found.append(f"added {_names([source.id for source in self.added])}")
        if self.removed:
            found.append(f"removed {_names(self.removed)}")
        ways: dict[tuple[tuple[str, ...], bool], list[SourceId]] = {}
        for change in self.changed:
            ways.setdefault((change.keys, change.reconnects), []).append(change.source.id)
        for (keys, reconnects), ids in ways.items():
            how = ", connected anew" if reconnects else ""
            shown = ", ".join(key.removesuffix("_s") for key in keys)
            found.append(f"changed {_names(ids)}: {shown}{how}")
        found += [str(change) for change in self.at_once]
        return tuple(found)

    @property
    def needs_restart(self) -> tuple[str, ...]:
        """What keeps its value until a restart, for people."""
        return tuple(
            f"{change.key} stays {change.before}: {change.after} takes a restart"
            for change in self.restart
        )

    @property
    def text(self) -> str:
        """Return all of it in one bounded text."""
        parts = [*(self.sentences or ("nothing changed",)), *self.needs_restart]
        text = "; ".join(parts)
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def compare(old: Settings, new: Settings) -> Changes:
    """Return the way from `old`, which is in force, to `new`."""
    before = {source.id: source for source in old.sources}
    after = {source.id: source for source in new.sources}
    changed = [
        SourceChange(source, keys)
        for name, source in after.items()
        if name in before and (keys := _different(before[name], source))
    ]
    settings = [*_settings(old, new)]
    caps = [
        SettingChange(f"accounts.{name}.limits", _cap(was), _cap(now))
        for name in sorted({*old.account_caps, *new.account_caps})
        if (was := old.account_caps.get(name, Cap())) != (now := new.account_caps.get(name, Cap()))
    ]
    return Changes(
        settings=_in_force(old, new, ""),
        added=tuple(source for name, source in after.items() if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(changed),
        at_once=(
            *(change for path, change in settings if _at_once(path)),
            *caps,
        ),
        restart=tuple(change for path, change in settings if not _at_once(path)),
        limits=bool(caps) or old.limits != new.limits,
    )


def _different(old: Source, new: Source) -> tuple[str, ...]:
    if old == new:  # most of them, and much faster
        return ()
    return tuple(
        field.name
        for field in attrs.fields(Source)
        if getattr(old, field.name) != getattr(new, field.name)
    )


def _settings(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, SettingChange]]:
    """Yield the settings that are different, each by its path of attributes."""
    for field in attrs.fields(type(new)):
        if not path and field.name in _APART:
            continue
        here = f"{path}.{field.name}" if path else field.name
        was, now = getattr(old, field.name), getattr(new, field.name)
        if attrs.has(type(was)) and type(was) is type(now) and not isinstance(was, Cap):
            yield from _settings(was, now, here)
        elif was != now:
            yield here, SettingChange(_key(here), _shown(field.name, was), _shown(field.name, now))


def _in_force(old: Any, new: Any, path: str) -> Any:
    """Return `new` with the values of `old` for what needs a restart."""
    kept: dict[str, Any] = {}
    for field in attrs.fields(type(new)):
        if not path and field.name in _APART:
            continue
        here = f"{path}.{field.name}" if path else field.name
        was, now = getattr(old, field.name), getattr(new, field.name)
        if _at_once(here) or was == now:
            continue
        within = any(name.startswith(f"{here}.") for name in _AT_ONCE)
        kept[field.name] = _in_force(was, now, here) if within else was
    return attrs.evolve(new, **kept)


def _at_once(path: str) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in _AT_ONCE)


def _key(path: str) -> str:
    return _KEYS.get(path, path.removesuffix("_s"))


def _shown(name: str, value: Any) -> str:
    """Return a setting's value as it is written."""
    match value:
        case None:
            return "none"
        case Cap():
            return _cap(value)
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(str, value))}]"
        case str() | Path():
            return f'"{value}"'
        case float() if name == "connect_rate":
            return f'"{format_rate(value)}"'
        case float():
            return f'"{format_duration(value)}"'
        case int() if name == "mode":
            return f'"{value:04o}"'
        case int() if name in _SIZES:
            return f'"{format_size(value)}"'
        case _:
            return str(value)


def _cap(cap: Cap) -> str:
    rate = cap.connect_rate
    parts = [
        None if cap.max_connections is None else f"max_connections = {cap.max_connections}",
        None if rate is None else f'connect_rate = "{format_rate(rate)}"',
    ]
    return f"{{ {', '.join(part for part in parts if part)} }}" if any(parts) else "none"


def _names(ids: Sequence[SourceId]) -> str:
    shown = ", ".join(map(str, ids[:_NAMES_SHOWN]))
    more = len(ids) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
