"""Accounts, credentials, endpoints and the names of sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

Upstream = Literal["hyper", "docker"]
RegionSigning = Literal["explicit", "legacy"]

_DEFAULT_PORTS = {"ws": 80, "wss": 443, "tcp": 2375, "http": 80, "https": 443, "ssh": 22}
_TLS_SCHEMES = frozenset({"wss", "https"})
# What ssh is started with must not be read as an option, nor mean anything to a shell: that of a
# ProxyCommand here, that of the user there.
_SSH_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?")
_SSH_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_SSH_PATH = re.compile(r"/[A-Za-z0-9_./+@-]+")


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
    """An access key and its secret key, and when it ends: nanoseconds since 1970, None: it lasts.

    Equal is what lets in equally: the same keys, whenever they end.
    """

    access_key: str
    secret_key: Secret = field(repr=False)
    expires_ns: int | None = field(default=None, eq=False)


@frozen(order=True, cache_hash=True)
class SourceId:
    """The name of a source: account and region. Orders as the merge breaks ties."""

    account: str
    region: str

    def __str__(self) -> str:
        return f"{self.account}/{self.region}"


@frozen
class Proxy:
    """An HTTP proxy that is asked with CONNECT; `login` is `user:password`, where it wants them."""

    host: str
    port: int
    login: Secret | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read `http://[user:password@]host:port`.

        Raises ValueError with one sentence that says what would be right, and shows nothing.
        """
        form = "a proxy is written http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError(form) from None
        if parts.scheme != "http":
            raise ValueError(f"only http:// proxies are spoken to: {form}")
        if not host or not port or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(form)
        if parts.username is None:
            return cls(host, port)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        if not parts.username or ":" in unquote(parts.username) or not login.isprintable():
            raise ValueError(f"{form}; write what is no letter or digit as %XX")
        return cls(host, port, Secret(login))

    @property
    def address(self) -> str:
        """`host:port`, IPv6 in brackets."""
        return f"{_bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        return f"http://{self.address}"


@frozen
class Endpoint:
    """Where a source is: scheme, host, port and path, and the proxy on the way there, if any.

    For `unix` the path alone matters. For `ssh` the path is the engine's socket over there, empty
    for the default one; port 0 leaves the port to ssh's own configuration, and so does no `user`.
    """

    scheme: str
    host: str
    port: int
    path: str
    user: str | None = None
    proxy: Proxy | None = None

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
                "an endpoint is written wss://HOST[:PORT]/PATH, or with ws, tcp, https, unix, ssh"
            )
        ssh = parts.scheme == "ssh"
        if (parts.username is not None and not ssh) or parts.query or parts.fragment:
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
            port = 0 if ssh else _DEFAULT_PORTS[parts.scheme]
        elif not 0 < port < 65536:
            raise ValueError("the port is a number from 1 to 65535")
        if not ssh:
            return cls(parts.scheme, host, port, parts.path or "/")
        path = parts.path if parts.path != "/" else ""
        if parts.password is not None:
            raise ValueError("ssh is never given a password: use a key that needs no question")
        user_ok = parts.username is None or _SSH_USER.fullmatch(parts.username)
        if not (user_ok and _SSH_HOST.fullmatch(host) and (not path or _SSH_PATH.fullmatch(path))):
            raise ValueError(
                "an ssh endpoint is written ssh://[USER@]HOST[:PORT][/PATH/TO/docker.sock], "
                "of letters, digits and . _ - alone"
            )
        return cls("ssh", host, port, path, parts.username)

    @property
    def secure(self) -> bool:
        """Whether the connection is made over TLS by the scheme alone."""
        return self.scheme in _TLS_SCHEMES

    @property
    def to_socket(self) -> bool:
        """Whether a unix socket is at the end of the way: then HTTP's path and Host say nothing."""
        return self.scheme in ("unix", "ssh")

    @property
    def netloc(self) -> str:
        """`host:port`, the port left out when it is the scheme's own; IPv6 in brackets."""
        host = _bracketed(self.host)
        return host if self.port in (0, _DEFAULT_PORTS.get(self.scheme)) else f"{host}:{self.port}"

    @property
    def address(self) -> str:
        """What limits count by: `host:port`, or the socket's path. A proxy changes nothing."""
        if self.scheme == "unix":
            return self.path
        return f"{_bracketed(self.host)}:{self.port or _DEFAULT_PORTS[self.scheme]}"

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        user = f"{self.user}@" if self.user else ""
        netloc = self.netloc
        if self.scheme == "ssh" and self.port:
            netloc = f"{_bracketed(self.host)}:{self.port}"
        return f"{self.scheme}://{user}{netloc}{self.path if self.scheme != 'tcp' else ''}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@frozen
class Tls:
    """How a connection is secured. Paths are absolute; `verify = False` accepts any certificate.

    With `pins` (in the form of `core.pins`) the server's key has to be one of these, verified or
    not.
    """

    verify: bool = True
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    pins: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        return tuple(filter(None, (self.ca, self.client_cert, self.client_key)))


def uses_tls(endpoint: Endpoint, tls: Tls) -> bool:
    """Say whether a connection is made over TLS: by its scheme, or as Docker's CLI does on tcp://.

    The Docker Engine's tcp:// is TLS exactly when a certificate, or the pin of one, says so.
    """
    named = tls.ca or tls.client_cert or tls.pins
    return endpoint.secure or (endpoint.scheme == "tcp" and bool(named))


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
