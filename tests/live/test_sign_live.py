"""What `hypermux sign --format curl` prints, piped into a shell, opens a stream."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from processes import HYPERMUX, PROJECT, Emulator, emulator, process

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here"),
]


def answer(router: Emulator, tmp_path: Path, *arguments: str, host: str | None = None) -> str:
    """Return the status line that the printed command gets."""
    [account] = tomllib.loads(router.accounts.read_text())["accounts"].values()
    key = tmp_path / "key"
    key.write_text(account["secret_key"])
    key.chmod(0o600)
    url = urlsplit(account["endpoint"])
    addr = f"{host}:{url.port}" if host else url.netloc
    command = [
        *(*HYPERMUX, "sign", "--format", "curl", "--addr", addr),
        *("--access-key", account["access_key"], "--secret-key-file", str(key)),
        *arguments,
    ]
    line = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    with process("sh", "-c", f"exec {line}", stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        return curl.stdout.readline().decode().strip()


def test_the_printed_curl_line_opens_a_stream_over_tls(tmp_path: Path) -> None:
    with emulator(tmp_path / "e", "--rate", "50", "--state", tmp_path / "state") as router:
        trust = ["--ca", router.ready["ca"]]
        opened = "HTTP/1.1 101 Switching Protocols"
        selected = ["--filter", 'event=start,label="",label=a b+c', "--filter", "container=it's"]
        assert answer(router, tmp_path, *trust) == opened
        assert answer(router, tmp_path, *trust, *selected) == opened
        assert answer(router, tmp_path, "--insecure", host="LocalHost") == opened
        assert answer(router, tmp_path, *trust, "--region", "other").startswith("HTTP/1.1 401")
        assert answer(router, tmp_path, *trust, "--date", "20161013T162254Z").startswith(
            "HTTP/1.1 401"
        )
        assert answer(router, tmp_path) == "", "an unknown authority must not be trusted"


def test_the_printed_curl_line_opens_a_stream_over_ipv6(tmp_path: Path) -> None:
    with emulator(tmp_path / "e", "--plain", "--host", "::1") as router:
        for host in ("[::1]", "[0:0:0:0:0:0:0:1]"):
            status = answer(router, tmp_path, "--plain", "--filter", "label=a+b", host=host)
            assert status == "HTTP/1.1 101 Switching Protocols"
