from __future__ import annotations

import resource
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hypermux.cli.check import command
from hypermux.model.errors import ConfigurationFault, UsageFault

TEXT = """
[accounts.prod]
access_key = "AK1"
secret_key_file = "prod.key"
endpoint = "wss://{region}.example.com:8443/events/ws"
regions = ["us-west-1", "eu-red"]
filters = { event = ["start"] }
limits = { max_connections = 1 }
[accounts.ci]
upstream = "docker"
hosts = { build1 = "tcp://[::1]:2375" }
[accounts.old]
upstream = "docker"
enabled = false
"""


def check(tmp_path: Path, text: str = TEXT) -> Result:
    path = tmp_path / "accounts.toml"
    path.write_text(text)
    path.chmod(0o600)
    key = tmp_path / "prod.key"
    key.write_text("canary-secret")
    key.chmod(0o600)
    result = CliRunner().invoke(command, ["-c", str(path)])
    assert "canary" not in result.output + str(result.exception)
    return result


def problems(result: Result) -> list[str]:
    assert isinstance(result.exception, ConfigurationFault)
    return [f"{problem.key}: {problem.message}" for problem in result.exception.problems]


def test_a_good_configuration(tmp_path: Path) -> None:
    result = check(tmp_path)
    assert result.exception is None, result.exception
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines[0] == "account region upstream endpoint filters keys"
    filters = '{"event":{"start":true}}'
    west = "prod us-west-1 hyper wss://us-west-1.example.com:8443/events/ws"
    assert f"{west} {filters} from a file" in lines
    assert "ci build1 docker tcp://[::1]" in lines
    assert "old local docker unix:///var/run/docker.sock disabled" in lines
    assert "account prod: 1 connections" in lines
    assert (
        "2 of 3 sources connect within 200ms, at 10/s of the process; up to 2068 open files"
    ) in lines
    assert "warning: prod/eu-red waits for a slot of account prod" in lines
    assert (
        "warning: account prod has no slot to spare of its 1: 1 of 2 sources wait, and each "
        "connection gives way about every 20h. max_connections = 3 would do"
    ) in lines
    assert lines[-1] == "This configuration is good."


def test_what_the_file_has_wrong_comes_all(tmp_path: Path) -> None:
    result = check(tmp_path, TEXT.replace("regions", "region").replace("hosts", "host"))
    found = problems(result)
    assert any("did you mean regions?" in line for line in found)
    assert any("did you mean hosts?" in line for line in found)


def test_keys_and_certificates_that_do_not_load(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("canary")
    text = TEXT.replace('secret_key_file = "prod.key"', 'secret_key_env = "HM_TEST_UNSET"')
    text = text.replace(
        "hosts =", 'ca = "bad.pem"\nclient_cert = "bad.pem"\nclient_key = "bad.pem"\nhosts ='
    )
    result = check(tmp_path, text)
    assert problems(result) == [
        "accounts.prod.secret_key_env: the environment variable that it names is not set",
        "accounts.ci.ca: has no PEM certificate",
        "accounts.ci.client_cert: with client_key is no PEM certificate with its unprotected key",
    ]
    assert "wrong: see below" in result.output
    assert "is good" not in result.output


def test_too_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    (found,) = problems(check(tmp_path))
    assert "2 sources and 1000 subscribers take 2068 open files, and the hard limit is" in found


def test_warnings_are_shown(tmp_path: Path) -> None:
    result = check(tmp_path, TEXT.replace("filters =", "tls_verify = false\nfilters ="))
    assert "warning: " in result.output
    assert "tls_verify = false" in result.output


def test_no_accounts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if not Path("/etc/hypermux/accounts.toml").exists():
        assert isinstance(CliRunner().invoke(command, []).exception, UsageFault)


@pytest.mark.parametrize(
    ("limits", "rotate_after", "expected"),
    [
        ("max_connections = 4", "20h", "each WebSocket is replaced about every 20h, without a gap"),
        (
            "max_connections = 3",
            "20h",
            "warning: the process has no slot to spare of its 3: each of 2 WebSockets has one "
            "short gap (rotation) about every 20h; 1 engine cannot be asked what was missed in an "
            "outage, nor whether a stream is whole. max_connections = 4 would do",
        ),
        (
            "per_account = { max_connections = 1 }",
            "never",
            "warning: account ci has no slot to spare of its 1: 1 engine cannot be asked what was "
            "missed in an outage, nor whether a stream is whole. max_connections = 2 would do",
        ),
        (
            "max_connections = 2",
            "never",
            "warning: the process has no slot to spare of its 2: 1 of 3 sources wait until others "
            "are lost; 1 engine cannot be asked what was missed in an outage, nor whether a stream "
            "is whole. max_connections = 4 would do",
        ),
        (
            "connect_rate = '1/h'",
            "1h",
            "warning: at 1/h of the process connections cannot be replaced as often as "
            "rotate_after asks for: servers will end them at an age of their own",
        ),
    ],
)
def test_what_has_no_slot_to_spare(
    tmp_path: Path, limits: str, rotate_after: str, expected: str
) -> None:
    text = TEXT.replace("limits = { max_connections = 1 }", "limits = { max_connections = 8 }")
    text += f'[limits]\n{limits}\n[connection]\nrotate_after = "{rotate_after}"\n'
    result = check(tmp_path, text)
    assert result.exception is None, result.exception
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert expected in lines
    told = [line for line in lines if "slot to spare" in line or "without a gap" in line]
    assert told == [line for line in [expected] if "asks for" not in line] or "1/h" in limits


def test_nothing_to_run_is_not_good(tmp_path: Path) -> None:
    result = check(tmp_path, '[accounts.old]\nupstream = "docker"\nenabled = false\n')
    assert isinstance(result.exception, ConfigurationFault)
    assert "nothing to run" in str(result.exception)
    assert "This configuration is good" not in result.output
