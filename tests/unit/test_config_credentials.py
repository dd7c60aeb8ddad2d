from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from hypermux.config import credentials
from hypermux.model.accounts import Credential, CredentialSource, Secret
from hypermux.model.errors import ConfigurationFault

GOOD = Credential("AK", Secret("canary-secret"))


def fault(source: CredentialSource) -> str:
    with pytest.raises(ConfigurationFault) as caught:
        credentials.load(source, file="f.toml", key="accounts.prod")
    text = str(caught.value)
    assert "canary" not in text
    assert caught.value.__cause__ is None
    return text


def program(code: str, *arguments: str) -> CredentialSource:
    # Without site and environment it starts in a tenth of the time.
    return CredentialSource(process=(sys.executable, "-I", "-S", "-c", code, *arguments))


def secret_file(tmp_path: Path, data: bytes, mode: int = 0o600) -> CredentialSource:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(mode)
    return CredentialSource("AK", secret_key_file=str(path))


def test_inline() -> None:
    assert credentials.load(CredentialSource("AK", Secret("canary-secret"))) == GOOD


@pytest.mark.parametrize("data", [b"canary-secret", b"canary-secret\n", b" canary-secret\r\n"])
def test_from_a_file(tmp_path: Path, data: bytes) -> None:
    assert credentials.load(secret_file(tmp_path, data)) == GOOD


@pytest.mark.parametrize(
    ("data", "mode", "message"),
    [
        (b"", 0o600, "the secret key that it leads to is empty"),
        (b" \n", 0o600, "is empty"),
        (b"canary\nsecret", 0o600, "has more than one line"),
        (b"canary\x00secret", 0o600, "has a control character"),
        (b"canary\xffsecret", 0o600, "is not UTF-8"),
        (b"canary" * 20_000, 0o600, "is larger than 65536 bytes"),
        (b"canary-secret", 0o644, "others can read the file that it names: type  chmod 600 "),
        (b"canary-secret", 0o640, "others can read"),
    ],
)
def test_files_that_are_no_key(tmp_path: Path, data: bytes, mode: int, message: str) -> None:
    text = fault(secret_file(tmp_path, data, mode))
    assert text.startswith("f.toml: accounts.prod.secret_key_file: ")
    assert message in text


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    missing = CredentialSource("AK", secret_key_file=str(tmp_path / "canary"))
    assert "there is no such file" in fault(missing)
    assert "not a regular file" in fault(CredentialSource("AK", secret_key_file=str(tmp_path)))


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    source = CredentialSource("AK", secret_key_env="HM_TEST_SECRET")
    assert "is not set" in fault(source)
    monkeypatch.setenv("HM_TEST_SECRET", "canary-secret\n")
    assert credentials.load(source) == GOOD
    monkeypatch.setenv("HM_TEST_SECRET", "")
    assert "is empty" in fault(source)


@pytest.mark.parametrize(
    "names", [("access_key", "secret_key"), ("AccessKeyId", "SecretAccessKey")]
)
def test_from_a_process(names: tuple[str, str]) -> None:
    answer = json.dumps(dict(zip(names, ("AK", "canary-secret"), strict=True)))
    code = "import sys; sys.stderr.write('noise'); print(sys.argv[1])"
    assert credentials.load(program(code, answer)) == GOOD


@pytest.mark.parametrize(
    ("end", "expires_ns"),
    [
        ('"Expiration": "2016-10-13T16:22:54Z"', 1_476_375_774 * 10**9),
        ('"expiration": "2016-10-13T18:22:54.5+02:00"', 1_476_375_774 * 10**9 + 500_000_000),
        ('"Expiration": null', None),
        ('"Version": 1', None),
    ],
)
def test_a_process_says_how_long_its_keys_last(end: str, expires_ns: int | None) -> None:
    answer = f'{{"AccessKeyId": "AK", "SecretAccessKey": "canary-secret", {end}}}'
    loaded = credentials.load(program("import sys; print(sys.argv[1])", answer))
    assert loaded == GOOD, "it lets in like any other"
    assert loaded.expires_ns == expires_ns


@pytest.mark.parametrize("end", ['"canary"', "1476375774", "{}", '"2016-10-13"', '""', "true"])
def test_an_end_that_is_no_time_is_said(end: str) -> None:
    answer = f'{{"access_key": "AK", "secret_key": "s", "Expiration": {end}}}'
    text = fault(program("import sys; print(sys.argv[1])", answer))
    assert "the Expiration that the program prints is not a time like 2016-10-13T16:22:54Z" in text


def test_no_shell_reads_the_arguments() -> None:
    answer = '{"access_key": "AK", "secret_key": "canary-secret", "x": "$HOME; `id`"}'
    assert credentials.load(program("import sys; print(sys.argv[1])", answer)) == GOOD


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('canary-secret')", "must print JSON"),
        ("print('[' * 60000 + 'canary')", "must print JSON"),
        ("print('[\"canary\"]')", "must print JSON"),
        ('print(\'{"access_key": "canary"}\')', "no text SecretAccessKey or secret_key"),
        ('print(\'{"access_key": 5, "secret_key": "canary"}\')', "no text AccessKeyId"),
        ('print(\'{"access_key": "c d", "secret_key": "x"}\')', "access key that the program"),
        ('print(\'{"access_key": "AK", "secret_key": ""}\')', "the program prints is empty"),
        ("import sys; sys.exit('canary')", "ended with exit code 1"),
        ("import os; os.kill(os.getpid(), 9)", "ended with signal 9"),
        ("print('canary' * 20000)", "prints over 65536 bytes"),
    ],
)
def test_processes_that_give_no_keys(code: str, message: str) -> None:
    text = fault(program(code))
    assert text.startswith("f.toml: accounts.prod.credential_process: ")
    assert message in text


def test_a_program_that_is_not_there() -> None:
    source = CredentialSource(process=("/nonexistent/canary",))
    assert "the program does not start: No such file" in fault(source)


def test_a_program_that_hangs_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "PROCESS_DEADLINE_S", 0.3)
    started = time.monotonic()
    # The child holds the pipe open after its parent has ended.
    assert "did not end within 0.3 s" in fault(CredentialSource(process=("sh", "-c", "sleep 9 &")))
    assert "did not end within 0.3 s" in fault(CredentialSource(process=("sleep", "9")))
    assert time.monotonic() - started < 5


def test_half_a_credential() -> None:
    assert "access_key: is missing" in fault(CredentialSource(secret_key_env="X"))
    assert "secret_key_file: is missing" in fault(CredentialSource("AK"))
