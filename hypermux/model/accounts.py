"""Accounts, credentials, endpoints and the names of sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from attrs import field, frozen

Upstream = Literal["hyper", "docker"]
RegionSigning = Literal["explicit", "legacy"]

_DEFAULT_PORTS = {"ws": 80, "wss": 443, "tcp": 2375, "http": 80, "https": 443}
_TLS_SCHEMES = frozenset({"wss", "https"})


class Secret:
    """Text that will not print: not in repr, str, format or a pickle. `reveal()` gives it back."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text; call it only where the secret is used."""
        return self._text

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> str:
        raise TypeError("a Secret does not pickle")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@frozen
class Credential:
    """An access key and its secret key."""

    access_key: str
    secret_key: Secret = field(repr=False)


@frozen(order=True, cache_hash=True)
class SourceId:
    """The name of a source: account and region. Orders as the merge breaks ties."""

    account: str
    region: str

    def __str__(self) -> str:
        return f"{self.account}/{self.region}"


@frozen
class Endpoint:
    """Where a source is: scheme, host, port and path; for `unix` the path alone matters."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read `wss://host:port/path`, `tcp://host:port`, `unix:///path` and their like.

        Raises ValueError with one sentence that says what would be right.
        """
        parts = urlsplit(url)
        if parts.scheme == "unix":
            path = parts.netloc + parts.path
            if not path.startswith("/"):
                raise ValueError("a unix endpoint is written unix:///absolute/path.sock")
            return cls("unix", "", 0, path)
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError(
                "an endpoint is written wss://HOST[:PORT]/PATH, or with ws, tcp, https, unix"
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("an endpoint has no user name, query or fragment")
        if not parts.hostname:
            raise ValueError("the endpoint has no host")
        try:
            port = parts.port
        except ValueError:
            raise ValueError("the port is a number from 1 to 65535") from None
        # urlsplit lower-cases `hostname`; the original signer keeps the host's case.
        host = parts.netloc.rpartition("@")[2]
        host = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
        if port is None:
            port = _DEFAULT_PORTS[parts.scheme]
        if not 0 < port < 65536:
            raise ValueError("the port is a number from 1 to 65535")
        return cls(parts.scheme, host, port, parts.path or "/")

    @property
    def secure(self) -> bool:
        """Whether the connection is made over TLS by the scheme alone."""
        return self.scheme in _TLS_SCHEMES

    @property
    def netloc(self) -> str:
        """`host:port`, the port left out when it is the scheme's own; IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def address(self) -> str:
        """What limits count by: `host:port`, or the socket's path."""
        if self.scheme == "unix":
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        return f"{self.scheme}://{self.netloc}{self.path if self.scheme != 'tcp' else ''}"


@frozen
class Tls:
    """How a connection is secured. Paths are absolute; `verify = False` accepts any certificate."""

    verify: bool = True
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None


def uses_tls(endpoint: Endpoint, tls: Tls) -> bool:
    """Say whether a connection is made over TLS: by its scheme, or as Docker's CLI does on tcp://.

    The Docker Engine's tcp:// is TLS exactly when a certificate says so.
    """
    return endpoint.secure or (endpoint.scheme == "tcp" and bool(tls.ca or tls.client_cert))


@frozen
class CredentialSource:
    """Where an account's keys come from; exactly one of the `secret_*` or `process` ways is set.

    `config.credentials.load` turns it into a `Credential`.
    """

    access_key: str | None = None
    secret_key: Secret | None = field(default=None, repr=False)
    secret_key_file: str | None = None
    secret_key_env: str | None = None
    process: tuple[str, ...] | None = None


@frozen
class Cap:
    """A limit on connections: how many at once, and how many dials per second. None: no limit."""

    max_connections: int | None = None
    connect_rate: float | None = None

    def or_else(self, common: Cap) -> Cap:
        """Return this limit with what it leaves open taken from `common`."""
        return Cap(
            common.max_connections if self.max_connections is None else self.max_connections,
            common.connect_rate if self.connect_rate is None else self.connect_rate,
        )


@frozen
class Limits:
    """Every limit on connections: the process's, each account's and each endpoint's.

    `account_caps` are accounts' own limits: a value set there replaces `per_account`'s.
    `connect_burst` holds for every rate.
    """

    whole: Cap = Cap()
    connect_burst: int = 1
    per_account: Cap = Cap()
    per_endpoint: Cap = Cap()
    account_caps: Mapping[str, Cap] = field(factory=dict)

    def of_account(self, account: str) -> Cap:
        """Return what holds for one account."""
        return self.account_caps.get(account, Cap()).or_else(self.per_account)
