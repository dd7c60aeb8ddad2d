"""Signing of requests: `HYPER-HMAC-SHA256`, a variant of AWS Signature Version 4.

Where it departs from the standard it follows the original signer to the byte, oddities
included, because servers verify with the same code:

- the canonical URI has no leading slash;
- the canonical query is decoded as a form first (`+` is a space), and a parameter with a raw `;`
  or a `%` that is no escape is left out;
- ports 80 and 443 are stripped from the signed host by looking at its second `:` field, which an
  IPv6 address misleads.

A signature is valid for five minutes: sign right before the request is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

from attrs import field, frozen

from hypermux.model.accounts import Credential, Endpoint

ALGORITHM = "HYPER-HMAC-SHA256"
DEFAULT_REGION = "us-west-1"

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z", re.ASCII)


@frozen
class Signed:
    """A signed request: each stage of the signature, and `headers`, those to add to the request.

    `authorization` and `headers` let their holder in for five minutes: they stay out of repr.
    """

    canonical_request: str
    string_to_sign: str
    signature: str = field(repr=False)
    authorization: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)


def wire_path(path: str) -> str:
    """Return a configured path as it goes on the wire: escapes kept, the rest made safe."""
    return quote(path, safe="/%:@!$&'()*+,;=~")


def canonical_uri(path: str) -> str:
    """Return the path as it is signed: decoded, no empty segments, each percent-encoded."""
    segments = unquote_to_bytes(path).split(b"/")
    return "/".join(quote(segment, safe="") for segment in segments if segment)


def canonical_query(raw_query: str) -> str:
    """Return the query as it is signed: form-decoded, sorted by key, percent-encoded."""
    pairs: list[tuple[bytes, bytes]] = []
    for part in raw_query.split("&"):
        if not part or ";" in part or _BROKEN_ESCAPE.search(part):
            continue
        key, _, value = part.replace("+", " ").partition("=")
        pairs.append((unquote_to_bytes(key), unquote_to_bytes(value)))
    pairs.sort(key=lambda pair: pair[0])  # stable: the order of one key's values is kept
    return "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs)


def signed_host(host: str) -> str:
    """Return the `Host` header's value as it is signed: without port 80 or 443."""
    fields = host.split(":")
    return fields[0] if len(fields) > 1 and fields[1] in ("80", "443") else host


def legacy_region(host: str) -> str:
    """Return the region that the original client derives from the host as dialled, with its port.

    It looks for `X.hyper.sh`, which a host with a port never is: `eu-central-1.hyper.sh:443`
    signs as `us-west-1`. That fault is what makes the rule worth reproducing.
    """
    label = host.removesuffix(".hyper.sh")
    return label if label != host and label and "." not in label else DEFAULT_REGION


def format_date(now_utc_s: float) -> str:
    """Return seconds since 1970 as `YYYYMMDDTHHMMSSZ`."""
    return datetime.fromtimestamp(int(now_utc_s), UTC).strftime("%Y%m%dT%H%M%SZ")


def parse_date(text: str) -> float:
    """Return seconds since 1970 of `YYYYMMDDTHHMMSSZ`. Raises ValueError with the right form."""
    found = _DATE.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        year, month, day, hour, minute, second = map(int, found.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        raise ValueError("a date is written YYYYMMDDTHHMMSSZ, as in 20161013T162254Z") from None


def signing_key(credential: Credential, date: str, region: str) -> bytes:
    """Return the key of one day (`date` begins YYYYMMDD) and region."""
    key = b"HYPER" + credential.secret_key.reveal().encode()
    for part in (date[:8], region, "hyper", "hyper_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def sign(
    *,
    method: str,
    host: str,
    path: str,
    raw_query: str,
    body: bytes = b"",
    credential: Credential,
    region: str,
    now_utc_s: float,
    extra_headers: Iterable[tuple[str, str]] = (),
) -> Signed:
    """Sign a request as of `now_utc_s`, seconds since 1970.

    `host` is what the `Host` header will say, `path` and `raw_query` are as on the wire. Of
    `extra_headers`, which the caller sends itself, those that belong to the signature are signed.
    """
    date = format_date(now_utc_s)
    payload_hash = hashlib.sha256(body).hexdigest()
    added = (
        ("Content-Type", "application/json"),
        ("X-Hyper-Date", date),
        ("X-Hyper-Content-Sha256", payload_hash),
    )
    signed = {name.lower(): value for name, value in extra_headers if _belongs(name.lower())}
    signed |= {name.lower(): value for name, value in added}
    signed["host"] = signed_host(host)
    names = sorted(signed)
    signed_names = ";".join(names)
    canonical_request = "\n".join(
        (
            method,
            canonical_uri(path),
            canonical_query(raw_query),
            *(f"{name}:{signed[name].strip()}" for name in names),
            "",
            signed_names,
            payload_hash,
        )
    )
    scope = f"{date[:8]}/{region}/hyper/hyper_request"
    request_hash = hashlib.sha256(canonical_request.encode()).hexdigest()
    string_to_sign = "\n".join((ALGORITHM, date, scope, request_hash))
    key = signing_key(credential, date, region)
    signature = hmac.digest(key, string_to_sign.encode(), "sha256").hex()
    authorization = (
        f"{ALGORITHM} Credential={credential.access_key}/{scope},"
        f" SignedHeaders={signed_names}, Signature={signature}"
    )
    headers = (*added, ("Authorization", authorization))
    return Signed(canonical_request, string_to_sign, signature, authorization, headers)


def _belongs(name: str) -> bool:
    return name == "content-md5" or name.startswith("x-hyper-")


def sign_upgrade(
    endpoint: Endpoint, query: str, *, credential: Credential, region: str, now_utc_s: float
) -> Signed:
    """Sign the request that opens `endpoint` with a percent-encoded query, as of `now_utc_s`."""
    return sign(
        method="GET",
        host=endpoint.netloc,
        path=wire_path(endpoint.path),
        raw_query=query,
        credential=credential,
        region=region,
        now_utc_s=now_utc_s,
    )
