"""`hypermux sign`: what it prints, where keys come from, and what it refuses."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hypermux.cli import handshake
from hypermux.cli.sign import command
from hypermux.core.signing import Signed
from hypermux.model.accounts import Endpoint, Tls
from hypermux.model.errors import ConfigurationFault, HypermuxError

VECTORS = {
    v["name"]: v
    for v in json.loads(
        (Path(__file__).parents[1] / "vectors" / "sign-vectors.json").read_text(encoding="utf-8")
    )
}
VECTOR = VECTORS["brief-filter-percent-port-443"]
FILTERS = ["--filter", 'container=test,label="",label=a b', "--filter", "label=key=test1=test1"]
VARIABLES = ["HYPER_ACCESS_KEY", "HYPER_ACCESS", "HYPER_SECRET_KEY", "HYPER_SECRET"]


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "key file"
    path.write_text(VECTOR["secret_key"] + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments)
    if isinstance(result.exception, HypermuxError):
        return result
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def signed(key_file: Path, *arguments: str, addr: str = VECTOR["host"]) -> str:
    keys = ["--access-key", VECTOR["access_key"], "--secret-key-file", str(key_file)]
    region = [] if "--region" in arguments else ["--region", VECTOR["region"]]
    result = run("--addr", addr, *keys, *region, "--date", VECTOR["date"], *arguments)
    assert result.exit_code == 0, (result.exception, result.output)
    assert VECTOR["secret_key"] not in result.output
    return result.output


def refused(*arguments: str) -> tuple[int, str]:
    result = run(*arguments)
    if isinstance(result.exception, HypermuxError):
        return result.exception.exit_code, str(result.exception)
    assert result.exit_code
    return result.exit_code, result.output


def test_json_is_the_vector_at_every_stage(key_file: Path) -> None:
    tree = json.loads(signed(key_file, *FILTERS, "--format", "json"))
    for stage in ("canonical_request", "string_to_sign", "signature", "authorization"):
        assert tree[stage] == VECTOR[stage]
    assert tree["headers"]["Authorization"] == VECTOR["authorization"]
    assert tree["headers"]["X-Hyper-Date"] == VECTOR["date"]
    assert tree["url"] == f"wss://us-west-1.hyper.sh{VECTOR['request_target']}"


def test_headers_are_those_to_add(key_file: Path) -> None:
    lines = signed(key_file, *FILTERS).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "Content-Type",
        "X-Hyper-Date",
        "X-Hyper-Content-Sha256",
        "Authorization",
    ]
    assert lines[-1] == f"Authorization: {VECTOR['authorization']}"


def test_curl_does_the_upgrade(key_file: Path) -> None:
    words = shlex.split(signed(key_file, *FILTERS, "--format", "curl"))
    assert words[:7] == ["curl", "-sS", "--http1.1", "-i", "-N", "--max-time", "5"]
    assert words[-1] == f"https://us-west-1.hyper.sh{VECTOR['request_target']}"
    sent = dict(word.split(": ", 1) for flag, word in itertools.pairwise(words) if flag == "-H")
    assert sent["Connection"] == "Upgrade"
    assert sent["Upgrade"] == "websocket"
    assert sent["Sec-WebSocket-Version"] == "13"
    assert re.fullmatch(r"[A-Za-z0-9+/]{22}==", sent["Sec-WebSocket-Key"])
    assert sent["Authorization"] == VECTOR["authorization"]
    assert "Host" not in sent
    assert not {"-k", "--cacert"} & set(words)


def test_wscat_gets_the_same_request(key_file: Path) -> None:
    words = shlex.split(signed(key_file, *FILTERS, "--format", "wscat"))
    assert words[:3] == ["wscat", "-c", f"wss://us-west-1.hyper.sh{VECTOR['request_target']}"]
    assert f"Authorization: {VECTOR['authorization']}" in words
    assert "-n" not in words


def test_verification_is_off_only_when_asked(key_file: Path) -> None:
    for form, off, trust in (("curl", "-k", "--cacert"), ("wscat", "-n", "--ca")):
        words = shlex.split(signed(key_file, "--format", form, "--insecure"))
        assert off in words
        words = shlex.split(signed(key_file, "--format", form, "--ca", "/my ca's.pem"))
        assert off not in words
        assert words[words.index(trust) + 1] == "/my ca's.pem"


def test_plain_and_path(key_file: Path) -> None:
    options = ["--plain", "--path", "/a b'/ws", "--format"]
    tree = json.loads(signed(key_file, *options, "json", addr="[::1]:8080"))
    assert tree["url"] == "ws://[::1]:8080/a%20b'/ws"
    assert tree["canonical_request"].startswith("GET\na%20b%27/ws\n\n")
    words = shlex.split(signed(key_file, *options, "curl", addr="[::1]:8080"))
    assert words[-1] == "http://[::1]:8080/a%20b'/ws"
    assert "Host: [::1]:8080" in words


def test_a_host_that_tools_would_rewrite_is_said(key_file: Path) -> None:
    for form in ("curl", "wscat"):
        words = shlex.split(signed(key_file, "--format", form, addr="LAB:8443"))
        assert "Host: LAB:8443" in words


@pytest.mark.parametrize(
    ("addr", "arguments", "region"),
    [
        ("eu-central-1.hyper.sh", [], "eu-central-1"),
        ("eu-central-1.hyper.sh:443", [], "eu-central-1"),
        ("10.0.0.5:8443", [], "us-west-1"),
        ("eu-central-1.hyper.sh:443", ["--region", "lab"], "lab"),
        ("eu-central-1.hyper.sh:443", ["--region-signing", "legacy"], "us-west-1"),
        ("eu-central-1.hyper.sh", ["--region-signing", "legacy"], "eu-central-1"),
    ],
)
def test_the_region(key_file: Path, addr: str, arguments: list[str], region: str) -> None:
    keys = ["--access-key", "AK", "--secret-key-file", str(key_file)]
    result = run("--addr", addr, *keys, *arguments)
    assert f"/{region}/hyper/hyper_request," in result.output


@pytest.mark.parametrize(
    ("access", "secret"),
    [("HYPER_ACCESS_KEY", "HYPER_SECRET_KEY"), ("HYPER_ACCESS", "HYPER_SECRET")],
)
def test_keys_come_from_the_environment(
    key_file: Path, monkeypatch: pytest.MonkeyPatch, access: str, secret: str
) -> None:
    monkeypatch.setenv(access, VECTOR["access_key"])
    monkeypatch.setenv(secret, VECTOR["secret_key"])
    result = run("--addr", "us-west-1.hyper.sh", "--date", VECTOR["date"], *FILTERS)
    assert VECTOR["authorization"] in result.output


def test_a_secret_key_in_argv_is_refused_and_not_repeated(key_file: Path) -> None:
    code, text = refused("--addr", "h", "--access-key", "AK", "--secret-key", "canary-secret")
    assert code == 64
    assert "--secret-key-file" in text
    assert "HYPER_SECRET_KEY" in text
    assert "canary" not in text


def test_missing_keys_are_usage_errors(key_file: Path) -> None:
    code, text = refused("--addr", "h")
    assert (code, "access key is missing" in text) == (64, True)
    code, text = refused("--addr", "h", "--access-key", "AK")
    assert (code, "secret key is missing" in text) == (64, True)


def test_a_secret_file_that_others_can_read_is_refused(key_file: Path) -> None:
    key_file.chmod(0o644)
    result = run("--addr", "h", "--access-key", "AK", "--secret-key-file", str(key_file))
    assert isinstance(result.exception, ConfigurationFault)
    assert "chmod 600" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--addr", "h", "--filter", "evnt=start"], "did you mean 'event'"),
        (["--addr", "h", "--filter", "type=container"], "unknown filter 'type'"),
        (["--addr", "h", "--filter", "start"], "key=value"),
        (["--addr", "h", "--date", "yesterday"], "YYYYMMDDTHHMMSSZ"),
        (["--addr", "h", "--path", "events"], "begins with /"),
        (["--addr", "h", "--path", "/events?a=b"], "--path /events?a=b: a path"),
        (["--addr", "h", "--path", "/events#a"], "has no query"),
        (["--addr", "h", "--region", "a\nb"], "such as us-west-1"),
        (["--addr", "h", "--region", ""], "such as us-west-1"),
        (["--addr", "wss://h"], "HOST:PORT"),
        (["--addr", "h:x"], "port"),
    ],
)
def test_mistakes_are_one_sentence(key_file: Path, arguments: list[str], says: str) -> None:
    keys = ["--access-key", "AK", "--secret-key-file", str(key_file)]
    code, text = refused(*arguments, *keys)
    assert code == 64
    assert says in text


def test_command_lines_survive_a_hostile_address() -> None:
    made = Signed("", "", "", "", (("Authorization", "it's $(x) `y`"),))
    endpoint = Endpoint("wss", "$(touch x);'", 443, "/`a`")
    options: dict[str, Any] = {"tls": Tls(verify=False, ca="; rm")}
    for line in (
        handshake.curl_command(endpoint, "q=$HOME", made, websocket_key="k", **options),
        handshake.wscat_command(endpoint, "q=$HOME", made, **options),
    ):
        assert "\n" not in line
        words = shlex.split(line)
        assert "Authorization: it's $(x) `y`" in words
        assert shlex.join(words) == line
