"""One tree of errors under `HypermuxError`, each with the exit code it ends the program with.

Exit codes follow sysexits(3) where it has a name for the case.

    HypermuxError            70  our own fault
    |- UsageFault            64  the command line
    |- DamagedData           65  a journal that does not read back
    |- Unreachable           69  nothing answered, or not ready
    |- DiskFault             74  the disk refused
    |- Undelivered           75  stopped before all was delivered
    |- AccessRefused         77  credentials refused
    |- ConfigurationFault    78  the accounts file or what it names
    `- ConnectionFailed          one attempt at a source ended; `core.lifecycle` judges it
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from attrs import frozen


class HypermuxError(Exception):
    """The root: one clear sentence for the user, and the process exit code."""

    exit_code = 70


class UsageFault(HypermuxError):
    """The command line asks for something that makes no sense."""

    exit_code = 64


class DamagedData(HypermuxError):
    """Data on disk does not read back: names file, line and offset."""

    exit_code = 65


class Unreachable(HypermuxError):
    """Nothing answered where something should."""

    exit_code = 69


class DiskFault(HypermuxError):
    """The disk refused a write, a sync or a directory change."""

    exit_code = 74


class Undelivered(HypermuxError):
    """The program had to stop before everything it held was delivered."""

    exit_code = 75


class AccessRefused(HypermuxError):
    """A server refused the credentials."""

    exit_code = 77


@frozen
class Problem:
    """One thing wrong in a configuration: where it stands, what is there, what would be right.

    `value` is text to show; whoever makes a Problem keeps secrets out of it.
    """

    file: str
    key: str
    message: str
    value: str | None = None

    def __str__(self) -> str:
        shown = f" (is {self.value})" if self.value is not None else ""
        return f"{self.file}: {self.key}: {self.message}{shown}"


class ConfigurationFault(HypermuxError):
    """Every problem of a configuration at once."""

    exit_code = 78

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class FailureKind(StrEnum):
    """What ended a connection attempt, in the transport's terms."""

    SHORTAGE = "shortage"  # this computer has no descriptor or memory left for it
    RESOLVE = "resolve"  # the name has no address
    CONNECT = "connect"  # refused, unreachable, no such socket, permission denied
    TIMEOUT = "timeout"  # a stage of the dial took too long
    TLS = "tls"  # certificate or TLS handshake
    HTTP = "http"  # an answer other than the expected one; `code` is its status
    CLOSE = "close"  # a close frame; `code` is its code
    EOF = "eof"  # the stream ended without a goodbye
    RESET = "reset"  # the connection broke: what was on its way is lost
    SILENT = "silent"  # a ping went unanswered
    PROTOCOL = "protocol"  # the peer does not speak the protocol
    CREDENTIAL = "credential"  # our own key could not be read
    INTERNAL = "internal"  # a fault of hypermux itself
    ACCESS = "access"  # who we are is refused on the way there: by ssh's server, by a proxy
    SETUP = "setup"  # what the way there needs is missing: a program, a proxy's consent to CONNECT


@frozen
class Failure:
    """One failed or ended attempt, as the transport saw it; `core.verdicts` gives it meaning.

    `detail` is one plain sentence without secrets. `code` is an HTTP status or a WebSocket close
    code. `retry_after_s` comes from `Retry-After`, in seconds; `retry_at_ns` is the moment that it
    names where nothing says what time the server had then. `date_ns` is the server's clock
    from the `Date` header of one who proved who it is, in nanoseconds since 1970.
    """

    kind: FailureKind
    detail: str
    code: int | None = None
    retry_after_s: float | None = None
    date_ns: int | None = None
    body: str | None = None
    retry_at_ns: int | None = None


class ConnectionFailed(HypermuxError):
    """An attempt at a source ended; raised by transports only."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.detail)
