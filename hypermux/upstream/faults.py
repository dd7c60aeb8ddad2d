"""What goes wrong with sockets and TLS, in plain words: each says what it means and what to do."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Sequence

import trio

from hypermux.core.wording import printable
from hypermux.model.accounts import Endpoint
from hypermux.model.errors import Failure, FailureKind

# Our own want, which says nothing about the peer, a file or a certificate, and passes.
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


def broken(exc: trio.BrokenResourceError, *, opened: bool) -> Failure:
    """Return what a failed read or write means, before or after the stream was `opened`.

    With TLS 1.3 a client certificate that the server misses shows at the first read only.
    """
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLError) and not opened:
        return Failure(FailureKind.TLS, f"handshake: {_tls_words(cause)}")
    if isinstance(cause, OSError) and cause.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return Failure(FailureKind.SILENT, "the host does not answer any more (TCP keepalive)")
    words = os_words(cause) if isinstance(cause, OSError) else "the peer is gone"
    if opened:
        return Failure(FailureKind.RESET, words)
    return Failure(FailureKind.EOF, f"handshake: the connection broke: {words}")


def handshake_failure(endpoint: Endpoint, exc: Exception) -> Failure:
    """Return what a TLS handshake's error means (tls; eof where trying again may help)."""
    cause = exc.__cause__ if isinstance(exc, trio.BrokenResourceError) else exc
    name = endpoint.address
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Failure(FailureKind.TLS, f"{name}: {_certificate_words(endpoint.host, cause)}")
    ended = cause is None or isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    # A server that is only just starting or stopping says this; its certificate is not at fault.
    ended = ended or (isinstance(cause, ssl.SSLError) and "INTERNAL_ERROR" in str(cause.reason))
    if ended or (isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError)):
        words = _tls_words(cause) if isinstance(cause, OSError) else "the connection ended"
        return Failure(FailureKind.EOF, f"TLS handshake with {name}: {words}")
    words = _tls_words(cause) if isinstance(cause, ssl.SSLError) else printable(str(cause))
    return Failure(FailureKind.TLS, f"{name}: {words}")


def _certificate_words(host: str, exc: ssl.SSLCertVerificationError) -> str:
    reason = {
        9: "is not valid yet (or this computer's clock is slow)",
        10: "has expired",
        18: "is self-signed: name it as `ca` to trust it",
        19: "comes from an authority that is not trusted: name that authority's file as `ca`",
        20: "comes from an authority that is not trusted: name that authority's file as `ca`",
        21: "comes from an authority that is not trusted: name that authority's file as `ca`",
        62: f"is not for the name {host}",
        64: f"is not for the address {host}",
    }.get(exc.verify_code, f"does not verify: {exc.verify_message}")
    return f"the server's certificate {reason}"


def _tls_words(exc: OSError) -> str:
    if not isinstance(exc, ssl.SSLError):
        return os_words(exc)
    reason = str(exc.reason or "")
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return "the server ended the connection"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "the server does not speak TLS on this port"
    if "CERTIFICATE_REQUIRED" in reason:
        return "the server wants a client certificate: give client_cert and client_key"
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        return f"the server does not accept the client certificate ({_lower(reason)})"
    if "HANDSHAKE_FAILURE" in reason:
        return "the server refused the TLS handshake (perhaps for want of a client certificate)"
    return f"TLS failed ({_lower(reason) if reason else printable(str(exc))})"


def _lower(reason: str) -> str:
    return reason.lower().replace("_", " ")


def connect_failure(name: str, errors: Sequence[OSError]) -> Failure:
    """Return why none of the addresses of `name` could be connected to.

    Our own want of descriptors or memory says nothing about them.
    """
    short = next((error for error in errors if error.errno in SHORTAGES), None)
    if short is not None:
        return shortage(short, f"connecting to {name}")
    words = "; ".join(dict.fromkeys(map(os_words, errors)))
    return Failure(FailureKind.CONNECT, f"{name}: {words}")


def shortage(exc: OSError, doing: str) -> Failure:
    """Return the failure of having too little for what was begun."""
    return Failure(FailureKind.SHORTAGE, f"{os_words(exc)} (while {doing})")


def resolve_failure(host: str, exc: Exception) -> Failure:
    """Return why `host` has no address. The resolver does not tell when it lacked a descriptor."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as short:
        if short.errno in SHORTAGES:
            return shortage(short, f"looking up {host}")
    return Failure(FailureKind.RESOLVE, resolve_words(host, exc))


def resolve_words(host: str, exc: Exception) -> str:
    """Return why `host` has no address."""
    if isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN:
        return f"the name server did not answer for {host}"
    if isinstance(exc, (socket.gaierror, UnicodeError)):
        return f"the name {host} has no address"
    return f"the name {host} could not be looked up: {printable(str(exc))}"


def os_words(exc: OSError) -> str:
    """Return an operating system error in plain words."""
    known = {
        errno.ECONNREFUSED: "connection refused: nothing listens there",
        errno.EHOSTUNREACH: "no route to the host",
        errno.ENETUNREACH: "no route to the network",
        errno.ETIMEDOUT: "the host does not answer",
        errno.ECONNRESET: "the peer reset the connection",
        errno.EPIPE: "the peer closed the connection",
        errno.ENOENT: "no such file",
        errno.EACCES: "permission denied",
        errno.EMFILE: "too many open files: raise `ulimit -n`",
        errno.ENFILE: "the system has too many open files",
        errno.ENOMEM: "the system is out of memory",
        errno.ENOBUFS: "the system is out of memory for connections",
    }
    return known.get(exc.errno or 0) or printable(exc.strerror or str(exc))


def unix_failure(path: str, exc: Exception) -> Failure:
    """Return why the unix socket `path` could not be connected to."""
    if isinstance(exc, OSError) and exc.errno in SHORTAGES:
        return shortage(exc, f"connecting to {path}")
    return Failure(FailureKind.CONNECT, unix_words(path, exc))


def unix_words(path: str, exc: Exception) -> str:
    """Return why the unix socket `path` cannot be connected to, and what to type."""
    podman = "podman" in path
    start = "systemctl --user start podman.socket" if podman else "sudo systemctl start docker"
    if not isinstance(exc, OSError):
        return f"{path}: {printable(str(exc))}"
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no socket {path}: start the engine, e.g. `{start}`"
    if exc.errno == errno.ECONNREFUSED:
        return f"nothing listens on {path}: start the engine, e.g. `{start}`"
    if exc.errno in (errno.EACCES, errno.EPERM):
        hint = (
            "run as its owner, or use your own: `systemctl --user start podman.socket`"
            if podman
            else "`sudo usermod -aG docker $USER`, then log in again"
        )
        return f"no permission for {path}: {hint}"
    return f"{path}: {os_words(exc)}"
