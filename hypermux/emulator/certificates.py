"""The emulator's own certificate authority, made with trustme (an optional dependency)."""

from __future__ import annotations

import ssl
from pathlib import Path

from hypermux.emulator.files import replace
from hypermux.model.errors import ConfigurationFault, Problem

NAMES = ("localhost", "127.0.0.1", "::1")
CA_FILE = "emulator-ca.pem"
KEY_FILE = "emulator-ca-key.pem"


def server_context(directory: Path, *, keep: bool) -> tuple[ssl.SSLContext, Path]:
    """Return the server's TLS context and the path of the authority's certificate, written there.

    With `keep` the authority's key stays in the directory too and a later start uses it again, so
    that clients' accounts files stay good. Raises ConfigurationFault when trustme is missing or
    the kept authority does not read, DiskFault when the files cannot be written.
    """
    try:
        import trustme
    except ImportError:
        raise ConfigurationFault(
            [
                Problem(
                    "hypermux emulate",
                    "TLS",
                    "needs trustme: pip install 'hypermux[emulator]', or use --plain",
                )
            ]
        ) from None
    ca_path, key_path = directory / CA_FILE, directory / KEY_FILE
    if keep and ca_path.exists() and key_path.exists():
        try:
            authority = trustme.CA.from_pem(ca_path.read_bytes(), key_path.read_bytes())
        except (ValueError, OSError) as problem:
            message = f"the kept authority does not read: remove it and {KEY_FILE} for a new one"
            raise ConfigurationFault([Problem(str(ca_path), "--state", message)]) from problem
    else:
        authority = trustme.CA(organization_name="hypermux emulator")
        if keep:
            replace(key_path, authority.private_key_pem.bytes())
        replace(ca_path, authority.cert_pem.bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*NAMES).configure_cert(context)
    return context, ca_path
