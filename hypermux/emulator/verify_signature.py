"""Whether a request's signature holds, worked out again from what came over the wire.

Written from the protocol's description alone and sharing nothing with the client's signer, so
that one mistake cannot be made twice. The rules (a variant of AWS Signature Version 4):

- signed headers: content-type, content-md5, host and every x-hyper-*, lower case, sorted;
- the signed host loses the ports 80 and 443; the signed path loses its leading slash;
- the query is form-decoded, sorted by key and percent-encoded again;
- a signature holds for 5 minutes after its date. A date in the future is not refused: the real
  service checked against the past only.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from attrs import field, frozen

from hypermux.model.accounts import Secret

ALGORITHM = "HYPER-HMAC-SHA256"
VALID_FOR_S = 300

_AUTHORIZATION = re.compile(
    ALGORITHM + r" Credential=(?P<key>[^/,\s]+)/(?P<day>[0-9]{8})/(?P<region>[^/,\s]+)"
    r"/hyper/hyper_request, ?SignedHeaders=(?P<names>[^,\s]+)"
    r", ?Signature=(?P<signature>[0-9a-f]{64})"
)
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
_HEX_PAIR = re.compile(rb"%([0-9A-Fa-f]{2})")


class SignatureRefused(Exception):
    """The signature does not hold; the text is what the 401 says."""


@frozen
class Request:
    """A request as received: method, request target, headers in order, body."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target up to its query, still percent-encoded."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """Return the first header of that name (given in lower case), None when absent."""
        return next((value for key, value in self.headers if key.lower() == name), None)


@frozen
class Claim:
    """Who signed and for which region, by the Authorization header's own word."""

    access_key: str
    day: str
    region: str
    signed_names: str
    signature: str = field(repr=False)


def read_claim(request: Request) -> Claim:
    """Read the Authorization header, believing nothing. Raises SignatureRefused."""
    header = request.header("authorization")
    if header is None:
        raise SignatureRefused("no Authorization header")
    match = _AUTHORIZATION.fullmatch(header.strip())
    if match is None:
        raise SignatureRefused("the Authorization header is malformed")
    return Claim(match["key"], match["day"], match["region"], match["names"], match["signature"])


def verify(request: Request, secret_of: Callable[[str], Secret | None], now_ns: int) -> Claim:
    """Return the claim when its signature holds at `now_ns` (UTC). Raises SignatureRefused.

    `secret_of` gives the secret of an access key, None when the key is unknown.
    """
    claim = read_claim(request)
    secret = secret_of(claim.access_key)
    if secret is None:
        raise SignatureRefused("the access key is unknown")
    date = request.header("x-hyper-date")
    if date is None:
        raise SignatureRefused("no X-Hyper-Date header")
    signed_at_s = _parse_date(date)
    if date[:8] != claim.day:
        raise SignatureRefused("the scope's day is not that of X-Hyper-Date")
    payload_hash = hashlib.sha256(request.body).hexdigest()
    if request.header("x-hyper-content-sha256") != payload_hash:
        raise SignatureRefused("X-Hyper-Content-Sha256 is not the body's")
    signed = _signed_headers(request)
    names = ";".join(name for name, _ in signed)
    if claim.signed_names != names:
        raise SignatureRefused(f"the signed headers have to be {names}")
    scope = f"{claim.day}/{claim.region}/hyper/hyper_request"
    canonical = canonical_request(request, signed, payload_hash)
    text = "\n".join((ALGORITHM, date, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = b"HYPER" + secret.reveal().encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), claim.signature):
        raise SignatureRefused("the signature does not match")
    if now_ns > (signed_at_s + VALID_FOR_S) * 1_000_000_000:
        raise SignatureRefused("the signature has expired")
    return claim


def canonical_request(
    request: Request, signed: Sequence[tuple[str, str]], payload_hash: str
) -> str:
    """Return the text whose hash is signed."""
    path, _, query = request.target.partition("?")
    lines = [request.method, _canonical_path(path), _canonical_query(query)]
    lines += [f"{name}:{value}" for name, value in signed]
    lines += ["", ";".join(name for name, _ in signed), payload_hash]
    return "\n".join(lines)


def query_values(query: str) -> list[tuple[bytes, bytes]]:
    """Form-decode a raw query: `+` is a space; a pair that does not decode is left out.

    So does Go's url.ParseQuery, which the service was built on: a pair with a raw `;` or a `%`
    that is no escape vanishes, from the signature as well as from what the server sees.
    """
    values = []
    for pair in query.encode("latin-1").split(b"&"):
        if not pair or b";" in pair:
            continue
        name, _, value = pair.partition(b"=")
        try:
            values.append((unescape(name, plus=True), unescape(value, plus=True)))
        except ValueError:
            continue
    return values


def unescape(text: bytes, *, plus: bool = False) -> bytes:
    """Percent-decode strictly. Raises ValueError on a `%` that is no escape."""
    if text.count(b"%") != len(_HEX_PAIR.findall(text)):
        raise ValueError("a % that is no escape")
    if plus:
        text = text.replace(b"+", b" ")
    return _HEX_PAIR.sub(lambda match: bytes([int(match[1], 16)]), text)


def _escape(text: bytes) -> str:
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text)


def _canonical_path(path: str) -> str:
    try:
        decoded = unescape(path.encode("latin-1"))
    except ValueError as problem:
        raise SignatureRefused("the path does not decode") from problem
    return "/".join(_escape(segment) for segment in decoded.split(b"/") if segment)


def _canonical_query(query: str) -> str:
    pairs = sorted(query_values(query), key=lambda pair: pair[0])  # stable: values keep their order
    return "&".join(f"{_escape(name)}={_escape(value)}" for name, value in pairs)


def _signed_headers(request: Request) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for name, value in request.headers:
        name = name.lower()
        if name in ("content-type", "content-md5", "host") or name.startswith("x-hyper-"):
            found.setdefault(name, []).append(value.strip())
    if "host" in found:
        # The field behind the first colon, as the original looks at it: an IPv6 host's port is
        # not there.
        fields = found["host"][0].split(":")
        if len(fields) > 1 and fields[1] in ("80", "443"):
            found["host"] = [fields[0]]
    return [(name, ",".join(found[name])) for name in sorted(found)]


def _parse_date(text: str) -> int:
    if not re.fullmatch("[0-9]{8}T[0-9]{6}Z", text):
        raise SignatureRefused("X-Hyper-Date is written YYYYMMDDTHHMMSSZ")
    try:
        parsed = datetime.strptime(text, "%Y%m%dT%H%M%SZ")
    except ValueError as problem:
        raise SignatureRefused("X-Hyper-Date is no date") from problem
    return int(parsed.replace(tzinfo=UTC).timestamp())
