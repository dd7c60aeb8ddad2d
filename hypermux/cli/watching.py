"""What `hypermux watch` runs when there is no accounts file: one account, or Docker hosts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define

from hypermux.cli import handshake, stderr
from hypermux.config import contexts, credentials
from hypermux.config.settings import Account, Settings, SocketSettings, Source
from hypermux.core import pins
from hypermux.core.filters import Filters
from hypermux.core.signing import DEFAULT_REGION, sign_upgrade
from hypermux.core.verdicts import Judgement, Verdict
from hypermux.core.wording import printable
from hypermux.model.accounts import (
    CredentialSource,
    Endpoint,
    RegionSigning,
    SourceId,
    Tls,
)
from hypermux.model.errors import (
    AccessRefused,
    Failure,
    FailureKind,
    HypermuxError,
    Unreachable,
    UsageFault,
)

# Where engines listen when nobody says: Docker's, then Podman's for the system and for a user.
_DOCKER_SOCKET = "/var/run/docker.sock"
_PODMAN_SOCKET = "/run/podman/podman.sock"


def one_account(
    endpoint: Endpoint,
    region: str,
    credential: CredentialSource,
    *,
    tls: Tls,
    filters: Filters,
    region_signing: RegionSigning,
) -> Settings:
    """Return settings for a single source, as the original command had it."""
    source = Source(
        SourceId("watch", region), "hyper", endpoint, credential, filters, tls, region_signing
    )
    return _settings(Account("watch", "hyper", (source,), Path("-")))


def hyper_endpoint(addr: str, path: str, *, plain: bool) -> Endpoint:
    """Return the endpoint of HOST:PORT. Raises UsageFault with what would be right."""
    scheme = "ws" if plain else "wss"
    if not addr.isascii() or not addr.isprintable() or " " in addr or "/" in addr:
        raise UsageFault(f"--addr {addr!r}: write HOST:PORT; --path takes the path")
    if not path.startswith("/") or "?" in path or "#" in path:
        raise UsageFault(f"--path {path}: a path begins with / and has no query (see --filter)")
    try:
        return Endpoint.parse(f"{scheme}://{addr}{path}")
    except ValueError as error:
        raise UsageFault(f"--addr {addr}: {error}") from None


def pins_of(given: Sequence[str], *, plain: bool) -> tuple[str, ...]:
    """Return pins in their usual form. Raises UsageFault with what would be right."""
    if given and plain:
        raise UsageFault("--pin is for TLS, and --plain is without")
    try:
        return tuple(map(pins.parse, given))
    except ValueError as error:
        raise UsageFault(f"--pin {error}") from None


def region_of(host: str) -> str:
    """Return the region that a host `REGION.hyper.sh` names, else the original client's default."""
    region, dot, rest = host.partition(".")
    return region if dot and rest.lower() == "hyper.sh" else DEFAULT_REGION


def docker_hosts(urls: Sequence[str], *, filters: Filters) -> Settings:
    """Return settings for Docker or Podman engines. Raises UsageFault."""
    sources: dict[str, Source] = {}
    for url in urls:
        engine = docker_engine(url)
        endpoint = engine.endpoint
        described = url.startswith(contexts.PREFIX)
        region = url.removeprefix(contexts.PREFIX) if described else endpoint.host or "local"
        if region in sources:
            region = endpoint.address
        if region in sources:
            raise UsageFault(f"--docker: {url} is named twice")
        sources[region] = Source(
            SourceId("docker", region),
            "docker",
            endpoint,
            filters=filters,
            tls=engine.tls,
        )
    account = Account("docker", "docker", tuple(sources.values()), Path("-"))
    return _settings(account)


def docker_engine(url: str) -> contexts.Engine:
    """Return the engine of a URL or `context:NAME`. Raises UsageFault with what would be right."""
    try:
        if url.startswith(contexts.PREFIX):
            engine = contexts.resolve(url.removeprefix(contexts.PREFIX))
        else:
            engine = contexts.of_environment(Endpoint.parse(url))
    except ValueError as error:
        raise UsageFault(f"--docker {url}: {error}") from None
    if engine.endpoint.scheme not in ("unix", "tcp", "ssh", "http", "https"):
        raise UsageFault(
            f"--docker {url}: write unix:///PATH, tcp://HOST:PORT, ssh://USER@HOST or context:NAME"
        )
    return engine


def default_docker() -> str:
    """Return the engine that the Docker CLI would take, else a Podman service that is there.

    Raises UsageFault.
    """
    if host := os.environ.get("DOCKER_HOST"):
        return host
    try:
        context = contexts.current()
    except ValueError as error:
        raise UsageFault(str(error)) from None
    if context != contexts.DEFAULT:
        return f"{contexts.PREFIX}{context}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [_DOCKER_SOCKET, _PODMAN_SOCKET]
    if runtime:
        places.append(f"{runtime}/podman/podman.sock")
    found = next((place for place in places if os.path.exists(place)), _DOCKER_SOCKET)
    return f"unix://{found}"


def _settings(account: Account) -> Settings:
    """Return settings whose state directory is still to be made."""
    nowhere = Path("-")
    return Settings(nowhere, nowhere, SocketSettings(nowhere), (account,))


@define(eq=False)
class Announcer:
    """Tells a person at a terminal how the connections fare.

    When a sole source's first dial fails it calls `give_up`, with the reason in `fatal`: whoever
    typed the command is there to correct it. A connection that was open once is held.
    `told_elsewhere`: the records on stdout show later ups and downs.
    """

    settings: Settings
    debug: bool = False
    told_elsewhere: bool = False
    give_up: Callable[[], None] = lambda: None
    fatal: HypermuxError | None = None
    _opened: bool = False

    @property
    def _sole(self) -> bool:
        return len(self.settings.sources) == 1

    def dialing(self, source: Source) -> None:
        """A dial begins."""
        if self._opened and self.told_elsewhere:
            return
        if self.debug:
            stderr.say(_debug_lines(source))
        self._say(source, f"connecting to {source.endpoint}…")

    def opened(self, source: Source) -> None:
        """A connection is open."""
        if not (self._opened and self.told_elsewhere):
            self._say(source, "connected, watching event now:")
        self._opened = True

    def replaced(self, source: Source) -> None:
        """Another connection has taken the open one's place: nothing that a watcher sees."""

    def failed(self, source: Source, judgement: Judgement, failure: Failure) -> None:
        """A connection or a dial ended."""
        if self._sole and not self._opened and judgement.verdict is not Verdict.SKEWED:
            self.fatal = _fatal(source, judgement, failure)
            self.give_up()
            return
        if not self.told_elsewhere:
            self._say(source, f"{judgement.reason}; trying again")

    def _say(self, source: Source, text: str) -> None:
        tag = "" if self._sole else f"{source.id.region}: "
        stderr.say(printable(f"{tag}{text}", 2000))


def _debug_lines(source: Source) -> str:
    """Return the handshake as command lines, between marker lines; they let in for 5 minutes."""
    assert source.credential is not None
    query, endpoint = source.filters.query(), source.endpoint
    credential = credentials.load(source.credential)
    now_utc_s = time.time()
    signed = sign_upgrade(
        endpoint, query, credential=credential, region=source.signing_region, now_utc_s=now_utc_s
    )
    curl = handshake.curl_command(endpoint, query, signed, tls=source.tls)
    wscat = handshake.wscat_command(endpoint, query, signed, tls=source.tls)
    warning = "whoever has these lines gets in for five minutes"
    return f"----- debug: {warning} -----\n{curl}\n\n{wscat}\n----- end of debug -----"


def _fatal(source: Source, judgement: Judgement, failure: Failure) -> HypermuxError:
    if failure.kind is FailureKind.HTTP:
        body = f"\n{failure.body.strip()}" if failure.body else ""
        if failure.code == 401:
            body += f"\n(signed for region {source.id.region}; --region names another)"
        return AccessRefused(f"the handshake was refused: {failure.detail}{body}")
    if failure.kind is FailureKind.TLS:
        return Unreachable(f"{judgement.reason} (--ca FILE names the authority to trust)")
    return Unreachable(judgement.reason)
