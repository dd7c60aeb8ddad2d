"""From an account's table and the defaults to its sources."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf
from pathlib import Path

import attrs
from attrs import define, evolve, field, frozen

from hypermux.config import contexts, credentials, files
from hypermux.config.places import MAX_SOCKET_PATH, fits_a_socket
from hypermux.config.settings import Account, Source
from hypermux.config.shape import key_path, nearest, show, unknown
from hypermux.config.tables import AccountTable
from hypermux.core.filters import DOCKER_FIELDS, HYPER_FIELDS, FilterError, Filters
from hypermux.model.accounts import (
    Cap,
    CredentialSource,
    Endpoint,
    Proxy,
    SourceId,
    Tls,
    Upstream,
    uses_tls,
)
from hypermux.model.errors import Problem

LOCAL_DOCKER = {"local": contexts.DEFAULT_HOST}
SECRET_WAYS = ("secret_key", "secret_key_file", "secret_key_env")
_KEY_WAYS = (*SECRET_WAYS, "credential_process")
_WAYS = "access_key with one of secret_key_file, secret_key_env, secret_key"
_HYPER_ONLY = ("access_key", *_KEY_WAYS, "endpoint", "endpoints", "regions", "region_signing")
_SCHEMES = {"hyper": ("wss", "ws"), "docker": ("unix", "tcp", "ssh", "https", "http")}
_OPEN = "anyone on the way can read and change the stream"
_FORMS = {
    "hyper": '"wss://{region}.example.com:443/events/ws"',
    "docker": '"unix:///var/run/docker.sock", "tcp://HOST:2376" or "ssh://USER@HOST"',
}


@frozen
class Part:
    """One table of account keys in one file: an account's own, or the defaults.

    `bad` are its keys that have been reported already; `mode` the file's permission bits.
    """

    file: Path
    path: tuple[str, ...]
    table: AccountTable = field(factory=AccountTable)
    bad: frozenset[str] = frozenset()
    mode: int = 0o600

    def has(self, key: str) -> bool:
        """Say whether the key stands in this table, right or wrong."""
        return getattr(self.table, key) is not None or key in self.bad

    def problem(self, *path: str | int, message: str, value: str | None = None) -> Problem:
        """Make a problem of something in this table."""
        return Problem(str(self.file), key_path((*self.path, *path)), message, value)


def shared_secret(part: Part) -> Problem | None:
    """Return the problem of a secret inside a file that others can read, if there is one."""
    proxy = part.table.proxy
    if part.has("secret_key"):
        key = "secret_key"
    elif isinstance(proxy, Proxy) and proxy.login is not None:
        key = "proxy"
    else:
        return None
    if not files.shared(part.file, part.mode):
        return None
    what = "is a secret" if key == "secret_key" else "has a password"
    command = files.private_command(part.file)
    return part.problem(key, message=f"{what} in a file that others can read: type  {command}")


def assemble(
    name: str,
    own: Part,
    defaults: Part,
    note: Callable[[Problem], None],
    warn: Callable[[str], None],
) -> Account:
    """Put an account together; what is wrong goes to `note`, and what is risky to `warn`.

    With any problem noted the account is not fit for use: it only serves to find more of them.
    """
    return _Assembly(name, own, defaults, note, warn).account()


@define(eq=False)
class _Assembly:
    name: str
    own: Part
    defaults: Part
    note: Callable[[Problem], None]
    warn: Callable[[str], None]
    merged: AccountTable = field(init=False)
    # Keys of the defaults that do not count here, because of what the account says itself.
    dropped: frozenset[str] = field(init=False)
    # How the hosts are secured that a Docker context describes.
    described: dict[str, Tls] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        dropped: set[str] = set()
        if any(self.own.has(key) for key in _KEY_WAYS):
            # One way to the keys replaces every other: the defaults' way is not a second one.
            dropped.update(_KEY_WAYS)
        if self.own.has("credential_process"):
            dropped.add("access_key")
        self.dropped = frozenset(dropped)
        inherited = evolve(self.defaults.table, **dict.fromkeys(dropped))
        given = {
            a.name: value
            for a in attrs.fields(AccountTable)
            if (value := getattr(self.own.table, a.name)) is not None
        }
        self.merged = evolve(inherited, **given)

    def _part(self, key: str) -> Part:
        """Return the table that a key's value comes from; the account's own when it has none."""
        if self.own.has(key) or key in self.dropped or not self.defaults.has(key):
            return self.own
        return self.defaults

    def _stated(self, key: str) -> bool:
        """Say whether a key is there for this account, right or wrong."""
        return self._part(key).has(key)

    def _problem(self, key: str, *path: str | int, message: str, value: str | None = None) -> None:
        self.note(self._part(key).problem(key, *path, message=message, value=value))

    def _is_bad(self, key: str) -> bool:
        return key in self._part(key).bad

    def account(self) -> Account:
        upstream: Upstream = self.merged.upstream or "hyper"
        enabled = self.merged.enabled is not False
        # What a wrong `upstream` would make of the other keys is guesswork.
        sources = self._sources(upstream, enabled) if not self._is_bad("upstream") else ()
        cap = self.merged.limits or Cap()
        return Account(self.name, upstream, sources, self.own.file, enabled, cap)

    def _sources(self, upstream: Upstream, enabled: bool) -> tuple[Source, ...]:
        misplaced = ("hosts",) if upstream == "hyper" else _HYPER_ONLY
        other = "docker" if upstream == "hyper" else "hyper"
        for key in misplaced:
            if self.own.has(key):
                message = f'belongs to upstream = "{other}"; this account is "{upstream}"'
                self.note(self.own.problem(key, message=message))
        credential = self._credential(enabled) if upstream == "hyper" else None
        endpoints = self._routers() if upstream == "hyper" else self._hosts()
        filters = self._filters(upstream)
        tls = self._tls(enabled, endpoints)
        secured = {region: self._described(region, tls, enabled) for region in endpoints}
        self._check_way(endpoints, secured)
        return tuple(
            Source(
                SourceId(self.name, region),
                upstream,
                endpoint,
                credential,
                filters,
                secured[region],
                self.merged.region_signing or "explicit",
                self.merged.exclude_events or (),
                self.merged.redact or (),
                expect_event_within_s=self._expected_within(),
                on_quiet=self.merged.on_quiet or "report",
            )
            for region, endpoint in endpoints.items()
        )

    def _expected_within(self) -> float:
        within_s = self.merged.expect_event_within
        if (
            within_s is None
            and self.own.has("on_quiet")
            and not self._is_bad("expect_event_within")
        ):
            message = 'is of no use alone: write expect_event_within = "1h" too'
            self._problem("on_quiet", message=message)
        return inf if within_s is None else within_s

    # Credentials

    def _credential(self, enabled: bool) -> CredentialSource:
        self._check_ways()
        merged = self.merged
        file = merged.secret_key_file
        if file is not None:
            file = self._path("secret_key_file", file)
            if enabled and (fault := credentials.secret_file_fault(file)) is not None:
                self._problem("secret_key_file", message=fault)
        argv = merged.credential_process
        if argv is not None and "/" in argv[0]:
            argv = (self._path("credential_process", argv[0]), *argv[1:])
        return CredentialSource(
            merged.access_key, merged.secret_key, file, merged.secret_key_env, argv
        )

    def _check_ways(self) -> None:
        """Note a credential that is incomplete, or stated in two ways."""
        ways = [key for key in SECRET_WAYS if self._stated(key)]
        access_key = self._stated("access_key")
        if self._stated("credential_process"):
            for extra in [*ways, *(["access_key"] if access_key else [])]:
                self._problem(extra, message="is one too many: credential_process gives both keys")
        elif len(ways) > 1:
            message = f"is one too many beside {ways[0]}: write one of {', '.join(SECRET_WAYS)}"
            self._problem(ways[1], message=message)
        elif not ways and not access_key:
            message = f"has no credential: write {_WAYS}, or credential_process"
            self.note(self.own.problem(message=message))
        elif not ways:
            self._problem("access_key", message=f"is not enough: write {_WAYS}")
        elif not access_key:
            self._problem(ways[0], message="is not enough: write the access_key that belongs to it")

    # Where to connect

    def _routers(self) -> dict[str, Endpoint]:
        regions = self.merged.regions
        if not regions:
            if not self._is_bad("regions"):
                self._problem("regions", message='has no region: write regions = ["us-west-1"]')
            regions = ()
        for index, region in enumerate(regions):
            if region in regions[:index]:
                self._problem("regions", index, message="is there twice", value=show(region))
        overrides = self.merged.endpoints or {}
        template = self.merged.endpoint
        found: dict[str, Endpoint] = {}
        for region in regions:
            if region in overrides:
                endpoint = self._endpoint(overrides[region], "endpoints", region, place=region)
            elif template is not None:
                endpoint = self._endpoint(template, "endpoint", place=region)
            else:
                if not self._is_bad("endpoint") and not self._is_bad("endpoints"):
                    message = f"is missing (for {region}): write {_FORMS['hyper']}"
                    self._problem("endpoint", message=message)
                continue
            if endpoint is not None:
                found[region] = endpoint
        if self.own.table.endpoints is not None and not self._is_bad("regions"):
            for region in self.own.table.endpoints:
                if region not in regions:
                    hint = nearest(region, regions)
                    message = "is not among the account's regions" + (
                        f"; did you mean {hint}?" if hint else ""
                    )
                    self.note(self.own.problem("endpoints", region, message=message))
        return found

    def _hosts(self) -> dict[str, Endpoint]:
        hosts = self.merged.hosts
        if hosts is None:
            if self._is_bad("hosts"):
                return {}
            hosts = LOCAL_DOCKER
        elif not hosts:
            message = 'has no host: write { local = "unix:///var/run/docker.sock" }'
            self._problem("hosts", message=message)
        found = ((host, self._endpoint(url, "hosts", host, upstream="docker"))
                 for host, url in hosts.items())  # fmt: skip
        return {host: endpoint for host, endpoint in found if endpoint is not None}

    def _described(self, region: str, tls: Tls, enabled: bool) -> Tls:
        """Return how one endpoint is secured: as its context says, else as the account does."""
        own = self.described.get(region)
        if own is None:
            return tls
        if enabled and not (own.verify or tls.pins):
            self._warn(f"the Docker context of {region} verifies no certificate: {_OPEN}")
        return evolve(own, pins=tls.pins)

    def _endpoint(
        self, url: str, *path: str, place: str | None = None, upstream: Upstream = "hyper"
    ) -> Endpoint | None:
        filled = url if place is None else url.replace("{region}", place)
        try:
            if upstream == "docker" and url.startswith(contexts.PREFIX):
                engine = contexts.resolve(url.removeprefix(contexts.PREFIX))
                endpoint, self.described[path[1]] = engine.endpoint, engine.tls
            else:
                endpoint = Endpoint.parse(filled)
            if endpoint.scheme not in _SCHEMES[upstream]:
                raise ValueError(f"is not for {upstream}: write {_FORMS[upstream]}")
            if "{" in filled or "}" in filled:
                raise ValueError("only {region} can be filled in")
            if endpoint.scheme == "unix" and not fits_a_socket(endpoint.path):
                raise ValueError(f"is longer than the {MAX_SOCKET_PATH} bytes that a socket allows")
            if isinstance(proxy := self.merged.proxy, Proxy) and not endpoint.to_socket:
                endpoint = evolve(endpoint, proxy=proxy)
        except ValueError as error:
            self._problem(path[0], *path[1:], message=str(error), value=show(url))
            return None
        return endpoint

    # What to ask for, and how the connection is secured

    def _filters(self, upstream: Upstream) -> Filters:
        fields = HYPER_FIELDS if upstream == "hyper" else DOCKER_FIELDS
        wanted = dict(self.merged.filters or {})
        for name in [name for name in wanted if name not in fields]:
            del wanted[name]
            self._problem("filters", name, message=unknown(f"filter of {upstream}", name, fields))
        try:
            return Filters.from_mapping(wanted, fields=fields)
        except FilterError as error:
            self._problem("filters", message=str(error))
            return Filters()

    def _tls(self, enabled: bool, endpoints: dict[str, Endpoint]) -> Tls:
        merged = self.merged
        paths: dict[str, str | None] = {}
        for key in ("ca", "client_cert", "client_key"):
            value = getattr(merged, key)
            paths[key] = path = None if value is None else self._path(key, value)
            if path is not None and enabled:
                self._examine(key, path)
        if merged.client_key is not None and not self._stated("client_cert"):
            self._problem("client_key", message="is not enough: write client_cert too")
        tls = Tls(
            merged.tls_verify is not False,
            paths["ca"],
            paths["client_cert"],
            paths["client_key"],
            merged.pin or (),
        )
        if (
            enabled
            and not tls.verify
            and not tls.pins
            and any(
                uses_tls(endpoint, tls)
                for region, endpoint in endpoints.items()
                if region not in self.described
            )
        ):
            self._warn(f"tls_verify = false: {_OPEN}")
        return tls

    def _check_way(self, endpoints: dict[str, Endpoint], secured: dict[str, Tls]) -> None:
        """Note what the account says of a way that none of its endpoints is reached by."""
        if not endpoints:
            return
        if self.own.table.pin is not None and not any(
            uses_tls(endpoint, secured[region]) for region, endpoint in endpoints.items()
        ):
            self._problem("pin", message="is for TLS, which no endpoint of this account uses")
        if isinstance(self.own.table.proxy, Proxy) and all(
            endpoint.to_socket for endpoint in endpoints.values()
        ):
            message = "is for TCP: nothing here goes through it (ssh has its own ProxyJump)"
            self._problem("proxy", message=message)

    def _examine(self, key: str, path: str) -> None:
        try:
            mode = files.examine(path)
        except files.Unreadable as error:
            self._problem(key, message=str(error), value=show(path))
            return
        if key == "client_key" and files.shared(path, mode):
            self._warn(f"others can read its client_key: type  {files.private_command(path)}")

    def _warn(self, text: str) -> None:
        self.warn(f"{self.own.file}: {key_path(self.own.path)}: {text}")

    def _path(self, key: str, value: str) -> str:
        return resolve(self._part(key).file, value)


def resolve(file: Path, value: str) -> str:
    """Return a path of the configuration: `~` is the home, relative ones start at the file."""
    return os.path.normpath(file.parent / os.path.expanduser(value))
