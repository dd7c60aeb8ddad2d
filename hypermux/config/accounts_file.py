"""The accounts file: TOML to `Settings`, with everything that is wrong in it told at once."""

from __future__ import annotations

import glob
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, field

from hypermux.config import files, shape, tables
from hypermux.config.http_table import HttpTable
from hypermux.config.places import (
    MAX_SOCKET_PATH,
    candidates,
    default_socket_path,
    default_state_dir,
    find,
    fits_a_socket,
)
from hypermux.config.settings import Account, HttpSettings, Settings, SocketSettings
from hypermux.config.shape import Fault, Wrong, key_path, nearest, show, unknown
from hypermux.config.socket_table import SocketTable
from hypermux.config.sources import Part, assemble, resolve, shared_secret
from hypermux.model.errors import ConfigurationFault, Problem, UsageFault

__all__ = [
    "default_socket_path",
    "default_state_dir",
    "find",
    "included",
    "load",
    "locate",
    "name_fault",
    "nearest",
    "socket_path",
    "state_dir",
]

# Ten thousand accounts fit in a tenth of it; a larger file is the wrong file.
MAX_FILE_SIZE = 16 << 20

# A secret as short as this is no secret, and hiding it would hide plain words.
_LEAST_SECRET = 6
# These lead to a secret; their values are never shown, but the file's path is, once it is there.
_NOT_SECRET = ("secret_key_file", "secret_key_env")


def locate(given: Path | None = None) -> Path:
    """Return the accounts file: the given one, or the first in the usual places.

    Raises UsageFault when there is none.
    """
    path = given or find()
    if path is None:
        places = ", ".join(str(place) for place in candidates())
        raise UsageFault(f"no accounts file: name one with -c FILE, or write one of {places}")
    return path


def name_fault(text: str) -> str | None:
    """Say why `text` cannot name an account, None when it can."""
    try:
        shape.name(text)
    except Wrong as wrong:
        return wrong.faults[0].message
    return None


def need_sources(settings: Settings) -> None:
    """Raise ConfigurationFault where there is nothing to connect to."""
    if not settings.sources:
        message = "has none that is enabled: there is nothing to run"
        raise ConfigurationFault([Problem(str(settings.file), "accounts", message)])


def load(path: Path, *, pending: Mapping[Path, str] | None = None) -> Settings:
    """Return the settings of an accounts file and what it includes.

    `pending` are files not written yet, read as if they were there and included. Raises
    ConfigurationFault with every problem: file, key, value (never a secret), what would be right.
    """
    reading = _Reading(Path(os.path.abspath(path)), pending or {})
    try:
        settings = reading.settings()
    except ConfigurationFault as fault:  # a place without a default
        reading.problems.extend(fault.problems)
        settings = None
    if reading.problems or settings is None:
        raise ConfigurationFault(reading.told())
    return settings


def socket_path(path: Path) -> Path | None:
    """Return the socket that an accounts file names, whatever else is wrong in the file.

    None when it does not tell: it does not read, or that very part of it is wrong.
    """
    return _Reading(Path(os.path.abspath(path)), {}).socket_path()


def state_dir(path: Path) -> Path | None:
    """Return the state directory that an accounts file names, likewise."""
    return _Reading(Path(os.path.abspath(path)), {}).state_dir()


def included(path: Path, candidate: Path) -> bool:
    """Say whether the accounts file would include `candidate`, which need not exist.

    Raises ConfigurationFault when the accounts file does not read.
    """
    reading = _Reading(Path(os.path.abspath(path)), {})
    patterns = reading.patterns(reading.document(reading.main))
    if reading.problems:
        raise ConfigurationFault(reading.told())
    return any(_glob_matches(pattern, Path(os.path.abspath(candidate))) for pattern in patterns)


def _glob_matches(pattern: str, path: Path) -> bool:
    # Path.match goes component by component from the right; both are absolute.
    same_depth = len(Path(pattern).parts) == len(path.parts)
    return same_depth and path.match(pattern) and not path.name.startswith(".")


@define(eq=False)
class _Reading:
    """One run over the main file and its includes; problems gather here."""

    main: Path
    pending: Mapping[Path, str]
    problems: list[Problem] = field(factory=list)
    warnings: list[str] = field(factory=list)
    _modes: dict[Path, int] = field(factory=dict)
    _secrets: set[str] = field(factory=set)

    def settings(self) -> Settings | None:
        document = self.document(self.main)
        if document is None:
            return None
        for name in document:
            if name not in tables.ROOT_KEYS:
                self._note(self.main, (name,), unknown("table or key", name, tables.ROOT_KEYS))
        accounts = self._accounts(document)
        sections = {name: self._section(name, document) for name in tables.SECTIONS}
        state_dir = self._state_dir(document)
        socket = self._socket(sections.pop("socket"), state_dir)
        sections["http"] = self._http(sections["http"])
        self._check_sections(sections)
        self._warn_of_copies(accounts)
        if not any(account.enabled for account in accounts):
            self.warnings.append(f"{self.main}: no account is enabled: nothing to connect to")
        return Settings(
            self.main, state_dir, socket, accounts, **sections, warnings=tuple(self.warnings)
        )

    def socket_path(self) -> Path | None:
        document = self.document(self.main)
        if document is None:
            return None
        table = self._section("socket", document)
        try:
            path = self._socket(table, self._state_dir(document)).path
        except ConfigurationFault:  # a place without a default
            return None
        decisive = ("socket", "socket.path", "state_dir")
        return None if any(problem.key in decisive for problem in self.problems) else path

    def state_dir(self) -> Path | None:
        document = self.document(self.main)
        if document is None:
            return None
        try:
            path = self._state_dir(document)
        except ConfigurationFault:
            return None
        return None if any(problem.key == "state_dir" for problem in self.problems) else path

    # Files

    def document(self, path: Path) -> dict[str, Any] | None:
        """Return a file's TOML, None (and a problem noted) when there is none."""
        try:
            if path in self.pending:
                text, mode = self.pending[path], 0o600
            else:
                found = files.read(path, limit=MAX_FILE_SIZE)
                text, mode = found.text, found.mode
        except files.Unreadable as error:
            self.problems.append(Problem(str(path), "file", str(error)))
            return None
        self._modes[path] = mode
        try:
            document = tomllib.loads(text)
        except RecursionError:
            self.problems.append(Problem(str(path), "file", "is nested too deeply"))
            return None
        except ValueError as error:  # TOMLDecodeError, and int() on thousands of digits
            self.problems.append(_not_toml(path, error))
            return None
        self._gather_secrets(document)
        return document

    def patterns(self, document: dict[str, Any] | None) -> tuple[str, ...]:
        """Return the `include` globs, absolute."""
        value = (document or {}).get("include", [])
        try:
            found = shape.sequence(shape.text)(value)
        except Wrong as wrong:
            self._note_all(self.main, ("include",), wrong.faults)
            return ()
        start = Path(glob.escape(str(self.main.parent)), self.main.name)
        return tuple(resolve(start, pattern) for pattern in found)

    def _included(self, document: dict[str, Any]) -> list[Path]:
        """Return the included files, sorted by name; the main file never includes itself."""
        found: dict[str, None] = dict.fromkeys(str(path) for path in self.pending)
        for index, pattern in enumerate(self.patterns(document)):
            matches = glob.glob(pattern)
            if not matches and not glob.has_magic(document["include"][index]):
                message = "there is no such file"
                self._note(self.main, ("include", index), message, show(pattern))
            found.update(dict.fromkeys(matches))
        paths = (Path(path) for path in sorted(found))
        return [path for path in paths if not _same_file(path, self.main)]

    # Accounts

    def _accounts(self, document: dict[str, Any]) -> tuple[Account, ...]:
        defaults = self._part(self.main, ("defaults",), document.get("defaults", {}))
        parts: dict[str, Part] = {}
        self._gather(self.main, document, parts)
        for path in self._included(document):
            inner = self.document(path)
            if inner is None:
                continue
            for name in inner:
                if name != "accounts":
                    message = f"only [accounts.NAME] counts in an included file; see {self.main}"
                    self._note(path, (name,), message)
            self._gather(path, inner, parts)
        for part in (defaults, *parts.values()):
            if (problem := shared_secret(part)) is not None:
                self.problems.append(problem)
        return tuple(
            assemble(name, part, defaults, self.problems.append, self.warnings.append)
            for name, part in parts.items()
        )

    def _gather(self, path: Path, document: dict[str, Any], parts: dict[str, Part]) -> None:
        accounts = document.get("accounts", {})
        if not isinstance(accounts, dict):
            message = "is not a table: write [accounts.NAME]"
            self._note(path, ("accounts",), message)
            return
        for name, values in accounts.items():
            if (fault := name_fault(name)) is not None:
                self._note(path, ("accounts", name), fault)
            part = self._part(path, ("accounts", name), values)
            if name in parts:
                message = f"is an account already, in {parts[name].file}"
                self._note(path, ("accounts", name), message)
            else:
                parts[name] = part

    def _part(self, file: Path, path: tuple[str, ...], values: Any) -> Part:
        mode = self._modes[file]
        if not isinstance(values, dict):
            self._note(file, path, f"is not a table: write [{key_path(path)}]")
            # Nothing is missing where nothing could be read.
            return Part(file, path, bad=frozenset(tables.ACCOUNT_KEYS), mode=mode)
        found, faults = shape.salvage(tables.account, values)
        self._note_all(file, path, faults)
        bad = frozenset(str(fault.path[0]) for fault in faults) & tables.ACCOUNT_KEYS
        return Part(file, path, found, bad, mode)

    def _warn_of_copies(self, accounts: Iterable[Account]) -> None:
        """Warn of two sources that would stream the same: every event would come twice."""
        seen: dict[Any, str] = {}
        for account in accounts:
            for source in account.sources if account.enabled else ():
                keys = source.credential
                who = None if keys is None else (keys.access_key, keys.process)
                # Two regions of one router are two streams, by the signature.
                scope = source.id.region if source.upstream == "hyper" else ""
                what = (source.endpoint, who, source.filters, scope)
                if (other := seen.setdefault(what, str(source.id))) != str(source.id):
                    self.warnings.append(
                        f"{account.file}: {other} and {source.id} stream the same events"
                    )

    # The other tables

    def _section(self, name: str, document: dict[str, Any]) -> Any:
        values = document.get(name, {})
        if not isinstance(values, dict):
            self._note(self.main, (name,), f"is not a table: write [{name}]")
            values = {}
        found, faults = shape.salvage(getattr(tables, name), values)
        self._note_all(self.main, (name,), faults)
        return found

    def _check_sections(self, sections: dict[str, Any]) -> None:
        """Note what is right by itself and cannot work together."""
        backoff, buffer = sections["connection"].backoff, sections["buffer"]
        merge = sections["merge"]
        for wrong, path, message in (
            (backoff.min_s > backoff.max_s, "connection.backoff.min", "is over backoff.max"),
            (buffer.per_source > buffer.size, "buffer.per_source", "is over buffer.size"),
            (
                sections["connection"].max_message_size > buffer.per_source // 2,
                "buffer.per_source",
                "has no room for two messages of connection.max_message_size",
            ),
            (
                merge.window_s is not None and merge.window_s > merge.max_hold_s,
                "merge.window",
                "is over merge.max_hold: no event waits longer than that",
            ),
        ):
            if wrong:
                self._note(self.main, tuple(path.split(".")), message)

    def _state_dir(self, document: dict[str, Any]) -> Path:
        if "state_dir" in document:
            try:
                return Path(resolve(self.main, shape.text(document["state_dir"])))
            except Wrong as wrong:
                self._note_all(self.main, ("state_dir",), wrong.faults)
        return default_state_dir()

    def _socket(self, table: SocketTable, state_dir: Path) -> SocketSettings:
        if table.path is None:
            path = default_socket_path(state_dir)
        else:
            path = Path(resolve(self.main, table.path))
        if not fits_a_socket(path):
            message = f"is longer than the {MAX_SOCKET_PATH} bytes that a socket allows"
            self._note(
                self.main, ("socket", "path"), f"{message}: write a shorter one", show(str(path))
            )
        for fault in table.faults():
            self._note(self.main, ("socket", "mode"), fault)
        self.warnings += [f"{self.main}: {warning}" for warning in table.warnings()]
        return table.settings(path)

    def _http(self, table: HttpTable) -> HttpSettings:
        found, faults = table.settings(partial(resolve, self.main))
        for key, message in faults:
            self._note(self.main, ("http", key), message)
        if found.token is not None:
            self._secrets.add(found.token.reveal())
        return found

    # Problems

    def _note(
        self, file: Path, path: tuple[str | int, ...], message: str, value: str | None = None
    ) -> None:
        self.problems.append(Problem(str(file), key_path(path), message, value))

    def _note_all(self, file: Path, path: tuple[str | int, ...], faults: Iterable[Fault]) -> None:
        for fault in faults:
            self._note(file, (*path, *fault.path), fault.message, fault.value)

    def _gather_secrets(self, document: dict[str, Any]) -> None:
        """Remember every text that stands where a secret belongs, under any table."""
        stack: list[Any] = [document]
        while stack:
            for key, value in stack.pop().items():
                if isinstance(value, dict):
                    stack.append(value)
                elif isinstance(value, str) and (secret := _secret_in(key, value)):
                    # As it is, and as it would be shown.
                    found = {secret, show(secret).strip('"…')}
                    self._secrets |= {text for text in found if len(text) >= _LEAST_SECRET}

    def told(self) -> list[Problem]:
        """Return the problems, each once, in the order found; no secret of the files in any.

        Readers keep secrets out as it is; this holds when one was pasted somewhere else too.
        """
        shown = (
            Problem(
                p.file, self._mask(p.key), self._mask(p.message), p.value and self._mask(p.value)
            )
            for p in self.problems
        )
        return list(dict.fromkeys(shown))

    def _mask(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "<secret>")
        return text


def _secret_in(key: str, value: str) -> str:
    """Return the secret that a key's text is or holds, empty when there is none."""
    if key == "proxy":
        return value.rpartition("@")[0].rpartition(":")[2]
    return value if "secret" in key and key not in _NOT_SECRET else ""


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _not_toml(path: Path, error: ValueError) -> Problem:
    match = re.fullmatch(r"(.*) \(at (.*)\)", str(error), re.DOTALL)
    if match is None:
        return Problem(str(path), "file", "is not TOML")
    place = match[2] if match[2].startswith("line") else "end of the file"
    return Problem(str(path), place, f"is not TOML: {match[1].encode('unicode_escape').decode()}")
