"""Pins: the SHA-256 of the key that a server has to show, whoever signed its certificate.

What is hashed is the certificate's SubjectPublicKeyInfo, as in RFC 7469 and curl's
--pinnedpubkey: it stays the same when a certificate is renewed with the same key.

A pin names a key, and a TLS handshake proves that the server holds the key that it shows. So a
pinned server has proved who it is as well as a verified one has, authorities or not.

The key is found by walking over the certificate's DER, a handful of elements of which only the
lengths matter. The walk takes the one strict form alone (definite and shortest lengths, the tags
that must be there): what a more lenient parser could read in another way, it refuses, so that no
certificate can show one key here and another to TLS.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from attrs import define

FORM = 'write "sha256:" and the hash of the key, in base64 or hex'

_PREFIX = re.compile(r"sha256(?::|//)", re.IGNORECASE)
# 32 bytes as hex, in pairs that colons may separate as in openssl's fingerprints; as base64.
_HEX = re.compile(r"[0-9A-Fa-f]{2}(?::?[0-9A-Fa-f]{2}){31}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{43}=?")

_INTEGER, _SEQUENCE, _VERSION = 0x02, 0x30, 0xA0
# Serial number, then: signature algorithm, issuer, validity, subject.
_BEFORE_KEY = (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE)


def parse(text: str) -> str:
    """Return a pin in its usual form, `sha256:` and base64.

    Hex is read too, and curl's `sha256//`. Raises ValueError, with what would be right.
    """
    prefix = _PREFIX.match(text)
    if prefix is None:
        raise ValueError(f"is not a pin: {FORM}")
    digits = text[prefix.end() :]
    if _HEX.fullmatch(digits):
        return _written(bytes.fromhex(digits.replace(":", "")))
    if _BASE64.fullmatch(digits):
        plain = digits.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            digest = base64.b64decode(f"{plain}=", validate=True)
        except binascii.Error:  # 43 characters always decode
            digest = b""
        # The last character has two bits to spare: only one way to write a hash is right.
        if _written(digest) == f"sha256:{plain}=":
            return f"sha256:{plain}="
    raise ValueError(f"is not the hash of a key, 44 characters of base64 or 64 of hex: {FORM}")


def of_certificate(der: bytes) -> str:
    """Return the pin of the key in an X.509 certificate. Raises ValueError for anything else."""
    return _written(hashlib.sha256(public_key_info(der)).digest())


def public_key_info(der: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of an X.509 certificate, as DER. Raises ValueError."""
    outer = _Walk(der)
    certificate = _Walk(outer.content(_SEQUENCE))
    if outer.left:
        raise ValueError("not a certificate: something follows it")
    body = _Walk(certificate.content(_SEQUENCE))
    if body.next_is(_VERSION):
        body.content(_VERSION)
    for tag in _BEFORE_KEY:
        body.content(tag)
    return body.element(_SEQUENCE)


def _written(digest: bytes) -> str:
    return f"sha256:{base64.b64encode(digest).decode()}"


@define(eq=False)
class _Walk:
    """Goes over the elements in a piece of DER, one after the other."""

    data: bytes
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def next_is(self, tag: int) -> bool:
        return self.left > 0 and self.data[self.at] == tag

    def content(self, tag: int) -> bytes:
        """Return the content of the next element and go past it."""
        start, end = self._bounds(tag)
        self.at = end
        return self.data[start:end]

    def element(self, tag: int) -> bytes:
        """Return the whole next element and go past it."""
        begin = self.at
        self.at = self._bounds(tag)[1]
        return self.data[begin : self.at]

    def _bounds(self, tag: int) -> tuple[int, int]:
        """Return where the content of the next element starts and ends."""
        data, at = self.data, self.at
        if self.left < 2 or data[at] != tag:
            raise ValueError("not a certificate: something else stands in its place")
        length, start = data[at + 1], at + 2
        if length >= 0x80:
            # 0x80 alone would be BER's indefinite length. Three bytes hold any real certificate.
            start += length - 0x80
            written = data[at + 2 : start]
            length = int.from_bytes(written, "big")
            shortest = 1 <= len(written) <= 3 and written[0] and length >= 0x80
            if start - at - 2 != len(written) or not shortest:
                raise ValueError("not a certificate in DER: a length is not written as it must be")
        if start + length > len(data):
            raise ValueError("not a certificate: it ends too early")
        return start, start + length
