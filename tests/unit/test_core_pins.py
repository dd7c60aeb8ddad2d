"""Pins, checked against openssl and the library that makes the certificates."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import shutil
import ssl
import subprocess

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from hypermux.core import pins

DIGEST = bytes(range(224, 256))
PIN = "sha256:" + base64.b64encode(DIGEST).decode()


@pytest.mark.parametrize(
    "text",
    [
        PIN,
        PIN.rstrip("="),
        PIN.replace(":", "//"),
        PIN.replace("+", "-").replace("/", "_"),
        f"SHA256:{DIGEST.hex()}",
        f"sha256:{DIGEST.hex().upper()}",
        f"sha256:{DIGEST.hex(':')}",
    ],
)
def test_every_spelling_of_a_pin(text: str) -> None:
    assert pins.parse(text) == PIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        PIN[:-2],
        PIN + "=",
        PIN.removeprefix("sha256:"),
        PIN.replace("sha256", "sha1"),
        f"sha256:{DIGEST.hex()[:-2]}",
        f"sha256:{DIGEST.hex()}00",
        f"sha256: {DIGEST.hex()}",
        PIN[:-2] + chr(ord(PIN[-2]) + 1) + "=",  # bits that no hash has
        "sha256:" + "é" * 43,
    ],
)
def test_what_is_no_pin(text: str) -> None:
    with pytest.raises(ValueError, match=r"write \"sha256:\""):
        pins.parse(text)


@given(st.binary(min_size=32, max_size=32))
def test_any_hash_can_be_pinned(digest: bytes) -> None:
    pin = "sha256:" + base64.b64encode(digest).decode()
    assert pins.parse(pin) == pins.parse(f"sha256:{digest.hex()}") == pin


def certificates() -> list[tuple[bytes, bytes]]:
    """Return certificates of several kinds with the SubjectPublicKeyInfo of each."""
    found = []
    for key in (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ):
        # A long name makes the lengths before the key take one, two and three bytes.
        for size in (1, 40, 60):
            name = x509.Name(
                [x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * size)] * (1 + size // 10)
            )
            signer = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
            made = (
                x509.CertificateBuilder()
                .subject_name(name)
                .issuer_name(name)
                .public_key(key.public_key())
                .serial_number(size << 100)
                .not_valid_before(datetime.datetime(2020, 1, 1))
                .not_valid_after(datetime.datetime(2120, 1, 1))
                .sign(key, signer)
            )
            info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            found.append((made.public_bytes(Encoding.DER), info))
    return found


CERTIFICATES = certificates()


def test_the_key_is_found_in_every_kind_of_certificate() -> None:
    for der, info in CERTIFICATES:
        assert pins.public_key_info(der) == info
        digest = hashlib.sha256(info).digest()
        assert pins.of_certificate(der) == pins.parse(f"sha256:{digest.hex()}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_says_the_same() -> None:
    issued = trustme.CA().issue_cert("localhost").cert_chain_pems[0].bytes()
    key = subprocess.run(
        ["openssl", "x509", "-pubkey", "-noout"], input=issued, capture_output=True, check=True
    )
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"],
        input=key.stdout,
        capture_output=True,
        check=True,
    )
    shown = pins.of_certificate(ssl.PEM_cert_to_DER_cert(issued.decode()))
    assert shown == "sha256:" + base64.b64encode(hashlib.sha256(der.stdout).digest()).decode()


def test_a_certificate_cut_anywhere_is_refused() -> None:
    der, _ = CERTIFICATES[0]
    for size in range(len(der)):
        with pytest.raises(ValueError, match="not a certificate"):
            pins.public_key_info(der[:size])
    with pytest.raises(ValueError, match="something follows"):
        pins.public_key_info(der + b"\0")


@pytest.mark.parametrize(
    "der",
    [
        b"\x30\x80\x30\x80\0\0\0\0",  # BER's indefinite length
        b"\x30\x81\x05\x30\x03\x02\x01\x01",  # longer than it must be
        b"\x30\x82\x00\x80" + bytes(128),
        b"\x30\x84\x00\x00\x00\x05\x30\x03\x02\x01\x01",
        b"\x30\xff" + bytes(200),
        b"\x31\x00",
    ],
)
def test_only_strict_der_is_read(der: bytes) -> None:
    with pytest.raises(ValueError, match="not a certificate"):
        pins.public_key_info(der)


@given(st.binary(max_size=200), st.integers(0, 300), st.sampled_from(CERTIFICATES))
def test_no_bytes_raise_anything_else(
    noise: bytes, at: int, certificate: tuple[bytes, bytes]
) -> None:
    der, _ = certificate
    for data in (noise, der[:at] + noise + der[at + len(noise) :]):
        with contextlib.suppress(ValueError):
            pins.of_certificate(data)
