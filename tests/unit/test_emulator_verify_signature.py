"""The emulator's own signature check, against the vectors of the original signer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hypermux.emulator.handshake import BadRequest, parse_head
from hypermux.emulator.verify_signature import Request, SignatureRefused, verify
from hypermux.model.accounts import Secret

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors/sign-vectors.json").read_text()
)
FIRST = VECTORS[0]
SECOND_NS = 1_000_000_000


def signed_at_ns(vector: dict[str, Any]) -> int:
    date = datetime.strptime(vector["date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return int(date.timestamp()) * SECOND_NS


def head(vector: dict[str, Any]) -> bytes:
    return "\r\n".join(
        (
            f"{vector['method']} {vector['request_target']} HTTP/1.1",
            f"Host: {vector['host']}",
            "Upgrade: websocket",
            "Content-Type: application/json",
            f"X-Hyper-Date: {vector['date']}",
            f"X-Hyper-Content-Sha256: {vector['content_sha256']}",
            f"Authorization: {vector['authorization']}",
        )
    ).encode()


def request(vector: dict[str, Any], **changes: str) -> Request:
    headers = {
        "Host": vector["host"],
        "Content-Type": "application/json",
        "X-Hyper-Date": vector["date"],
        "X-Hyper-Content-Sha256": vector["content_sha256"],
        "Authorization": vector["authorization"],
    }
    headers.update(changes)
    return Request(
        vector["method"],
        vector["request_target"],
        tuple((name, value) for name, value in headers.items() if value),
        vector["body"].encode(),
    )


def secret_of(key: str) -> Secret | None:
    return Secret(FIRST["secret_key"]) if key == FIRST["access_key"] else None


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_every_vector_verifies(vector: dict[str, Any]) -> None:
    claim = verify(request(vector), secret_of, signed_at_ns(vector))
    assert (claim.access_key, claim.region) == (vector["access_key"], vector["region"])


@pytest.mark.parametrize(
    "vector",
    [v for v in VECTORS if " " not in v["request_target"] and not v["body"]],
    ids=lambda vector: vector["name"],
)
def test_vectors_verify_from_the_wire(vector: dict[str, Any]) -> None:
    verify(parse_head(head(vector)), secret_of, signed_at_ns(vector))


def test_a_raw_space_in_the_target_is_a_bad_request() -> None:
    (vector,) = (v for v in VECTORS if v["name"] == "brief-filter-raw-port-443")
    with pytest.raises(BadRequest, match="request line"):
        parse_head(head(vector))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_wrong_secret_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(SignatureRefused, match="does not match"):
        verify(request(vector), lambda key: Secret("other"), signed_at_ns(vector))


def test_valid_for_five_minutes_and_from_any_future() -> None:
    signed_ns = signed_at_ns(FIRST)
    verify(request(FIRST), secret_of, signed_ns + 300 * SECOND_NS)
    verify(request(FIRST), secret_of, signed_ns - 24 * 3600 * SECOND_NS)
    with pytest.raises(SignatureRefused, match="expired"):
        verify(request(FIRST), secret_of, signed_ns + 301 * SECOND_NS)


ZERO = "0" * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Authorization": ""}, "no Authorization"),
        ({"Authorization": "Basic Zm9vOmJhcg=="}, "malformed"),
        ({"Authorization": FIRST["authorization"].replace(FIRST["access_key"], "X")}, "unknown"),
        ({"Authorization": FIRST["authorization"].replace("content-type;", "")}, "signed headers"),
        ({"Authorization": FIRST["authorization"].replace("/us-west-1/", "/lab/")}, "match"),
        ({"Authorization": FIRST["authorization"].replace("/20161013/", "/20161014/")}, "day"),
        ({"X-Hyper-Date": ""}, "no X-Hyper-Date"),
        ({"X-Hyper-Date": "20161313T000000Z"}, "no date"),
        ({"X-Hyper-Date": "yesterday"}, "is written"),
        ({"X-Hyper-Date": "20161013T162255Z"}, "match"),
        ({"X-Hyper-Content-Sha256": ZERO}, "Sha256"),
        ({"X-Hyper-Extra": "1"}, "signed headers"),
        ({"Content-Type": "text/plain"}, "match"),
        ({"Host": "us-west-1.hyper.sh:8443"}, "match"),
        ({"Host": ""}, "signed headers"),
    ],
)
def test_anything_changed_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SignatureRefused, match=message):
        verify(request(FIRST, **changes), secret_of, signed_at_ns(FIRST))


def test_the_secret_is_in_no_repr() -> None:
    shown = repr(request(FIRST)) + repr(verify(request(FIRST), secret_of, signed_at_ns(FIRST)))
    assert FIRST["secret_key"] not in shown
    assert FIRST["signature"] not in shown
