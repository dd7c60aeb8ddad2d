"""The signer against vectors made by the original one, and its oddities one by one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypermux.core import signing
from hypermux.model.accounts import Credential, Secret

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "sign-vectors.json").read_text(encoding="utf-8")
)
KEYS = Credential("AK", Secret("canary-secret"))


@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
def test_every_vector_agrees_at_every_stage(vector: dict[str, str]) -> None:
    credential = Credential(vector["access_key"], Secret(vector["secret_key"]))
    signed = signing.sign(
        method=vector["method"],
        host=vector["host"],
        path=vector["path"],
        raw_query=vector["raw_query"],
        body=vector["body"].encode(),
        credential=credential,
        region=vector["region"],
        now_utc_s=signing.parse_date(vector["date"]),
    )
    key = signing.signing_key(credential, vector["date"], vector["region"])

    assert signing.canonical_uri(vector["path"]) == vector["canonical_uri"]
    assert signing.canonical_query(vector["raw_query"]) == vector["canonical_query"]
    assert signed.canonical_request == vector["canonical_request"]
    digest = hashlib.sha256(signed.canonical_request.encode()).hexdigest()
    assert digest == vector["canonical_request_sha256"]
    assert signed.string_to_sign == vector["string_to_sign"]
    assert key.hex() == vector["signing_key"]
    assert signed.signature == vector["signature"]
    assert signed.authorization == vector["authorization"]
    assert signed.headers == (
        ("Content-Type", "application/json"),
        ("X-Hyper-Date", vector["date"]),
        ("X-Hyper-Content-Sha256", vector["content_sha256"]),
        ("Authorization", vector["authorization"]),
    )


def test_the_vectors_are_all_there() -> None:
    assert len(VECTORS) == 21


@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
def test_the_legacy_rule_gives_the_region_of_every_vector(vector: dict[str, str]) -> None:
    assert signing.legacy_region(vector["host"]) == vector["region"]


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("eu-central-1.hyper.sh", "eu-central-1"),
        ("eu-central-1.hyper.sh:443", "us-west-1"),
        ("a.b.hyper.sh", "us-west-1"),
        ("hyper.sh", "us-west-1"),
        (".hyper.sh", "us-west-1"),
        ("eu-central-1.hyper.sh.example", "us-west-1"),
        ("127.0.0.1:8443", "us-west-1"),
        ("lab", "us-west-1"),
    ],
)
def test_the_legacy_region_of_a_host(host: str, region: str) -> None:
    assert signing.legacy_region(host) == region


@pytest.mark.parametrize(
    ("path", "signed"),
    [
        ("", ""),
        ("/", ""),
        ("//events//ws/", "events/ws"),
        ("/a%20b/c+d", "a%20b/c%2Bd"),
        ("/%C3%A9", "%C3%A9"),
        ("/~x_y-z.", "~x_y-z."),
    ],
)
def test_the_canonical_uri(path: str, signed: str) -> None:
    assert signing.canonical_uri(path) == signed


@pytest.mark.parametrize(
    ("query", "signed"),
    [
        ("", ""),
        ("&&", ""),
        ("a", "a="),
        ("b=1&a=2&b=0", "a=2&b=1&b=0"),
        ("a=x+y", "a=x%20y"),
        ("a=100%&b=1", "b=1"),
        ("a=1;b=2&c=3", "c=3"),
        ("a=%FF", "a=%FF"),
        ("a=b=c", "a=b%3Dc"),
    ],
)
def test_the_canonical_query(query: str, signed: str) -> None:
    assert signing.canonical_query(query) == signed


@pytest.mark.parametrize(
    ("host", "signed"),
    [
        ("h", "h"),
        ("h:80", "h"),
        ("h:443", "h"),
        ("h:8443", "h:8443"),
        ("H:443", "H"),
        ("[::1]:443", "[::1]:443"),
    ],
)
def test_the_signed_host(host: str, signed: str) -> None:
    assert signing.signed_host(host) == signed


def test_only_headers_of_the_signature_are_signed() -> None:
    signed = signing.sign(
        method="GET",
        host="h",
        path="/",
        raw_query="",
        credential=KEYS,
        region="r",
        now_utc_s=0.9,
        extra_headers=[("Content-MD5", " x "), ("X-Hyper-Foo", "1"), ("User-Agent", "u")],
    )
    names = signed.canonical_request.split("\n")[-2]
    assert names == "content-md5;content-type;host;x-hyper-content-sha256;x-hyper-date;x-hyper-foo"
    assert "\ncontent-md5:x\n" in signed.canonical_request
    assert "user-agent" not in signed.canonical_request
    assert "\nx-hyper-date:19700101T000000Z\n" in signed.canonical_request


def test_nothing_that_lets_in_is_printed() -> None:
    signed = signing.sign(
        method="GET", host="h", path="/", raw_query="", credential=KEYS, region="r", now_utc_s=0
    )
    assert signed.signature not in repr(signed)
    assert "canary" not in repr(signed) + repr(KEYS)


@pytest.mark.parametrize(
    "text", ["", "20161013", "20161313T000000Z", "20161013t162254z", "20161013T162260Z", "x" * 16]
)
def test_a_bad_date_names_the_right_form(text: str) -> None:
    with pytest.raises(ValueError, match="YYYYMMDDTHHMMSSZ"):
        signing.parse_date(text)


@given(st.integers(0, 253_402_300_799))
def test_dates_round_trip(seconds: int) -> None:
    assert signing.parse_date(signing.format_date(seconds)) == seconds


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_canonical_query_is_its_own_canonical_form(query: str) -> None:
    once = signing.canonical_query(query)
    assert signing.canonical_query(once) == once
