from __future__ import annotations

import os
import socket
import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hypermux.cli.accounts import command
from hypermux.config import accounts_file
from hypermux.model.errors import ConfigurationFault, DiskFault, UsageFault

MAIN = """include = ["accounts.d/*.toml"]
[defaults]
endpoint = "wss://{region}.example.com/events/ws"
regions = ["us-west-1"]
[accounts.inline]
upstream = "docker"
[socket]
path = "s.sock"
"""


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.toml"
    path.write_text(MAIN)
    key = tmp_path / "prod.key"
    key.write_text("canary-secret")
    key.chmod(0o600)
    return path


def accounts(main: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(command, [arguments[0], "-c", str(main), *arguments[1:]])
    assert "canary" not in result.output + str(result.exception)
    return result


def add_prod(main: Path, *more: str) -> Result:
    key = str(main.parent / "prod.key")
    return accounts(main, "add", "prod", "--access-key", "AK1", "--secret-key-file", key, *more)


def left_over(main: Path) -> list[str]:
    return [path.name for path in main.parent.glob("accounts.d/*")] + [
        path.name for path in main.parent.glob("accounts.d/.*")
    ]


def test_add_list_remove(main: Path) -> None:
    result = add_prod(main)
    file = main.parent / "accounts.d/prod.toml"
    assert result.exception is None
    assert result.output == f"wrote {file}\n`hypermux run` takes it up at its start.\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert tomllib.loads(file.read_text()) == {
        "accounts": {
            "prod": {"access_key": "AK1", "secret_key_file": str(main.parent / "prod.key")}
        }
    }
    assert [str(s.id) for s in accounts_file.load(main).sources] == [
        "inline/local",
        "prod/us-west-1",
    ]
    listed = [line.split() for line in accounts(main, "list").output.splitlines()]
    assert listed[1:] == [
        ["inline", "docker", "1", "yes", str(main)],
        ["prod", "hyper", "1", "yes", str(file)],
    ]
    assert accounts(main, "remove", "prod").output.startswith(f"removed {file}\n")
    assert left_over(main) == []


def test_every_option(main: Path) -> None:
    more = ("--regions", "a, b", "--endpoint", "ws://router:8080/events/ws")
    assert add_prod(main, *more).exception is None
    prod = accounts_file.load(main).accounts[1]
    assert [str(s.id) for s in prod.sources] == ["prod/a", "prod/b"]
    assert prod.sources[0].endpoint.port == 8080
    other = ("--access-key", "A", "--secret-key-env", "SECRET")
    assert accounts(main, "add", "env", *other).exception is None
    assert accounts(main, "add", "run", "--credential-process", "get-keys dev").exception is None
    hosts = ("--docker", "b1=unix:///b1.sock", "--docker", "b2=tcp://10.0.0.7:2375")
    assert accounts(main, "add", "ci", *hosts).exception is None
    assert [a.name for a in accounts_file.load(main).accounts] == [
        "inline", "ci", "env", "prod", "run"
    ]  # fmt: skip


def test_a_main_file_that_does_not_include_the_directory(main: Path) -> None:
    main.write_text(MAIN.partition("\n")[2])
    result = add_prod(main)
    assert isinstance(result.exception, ConfigurationFault)
    assert 'include = ["accounts.d/*.toml"]' in str(result.exception)
    assert not (main.parent / "accounts.d").exists()


def test_nothing_is_written_that_would_not_load(main: Path) -> None:
    for arguments in (
        ("add", "x"),
        ("add", "x", "--access-key", "A", "--secret-key-file", "/nonexistent"),
        ("add", "x", "--docker", "a=wss://x"),
        ("add", "inline", "--docker", "a=unix:///x"),
    ):
        assert isinstance(accounts(main, *arguments).exception, ConfigurationFault), arguments
    (main.parent / "prod.key").chmod(0o644)
    assert "chmod 600" in str(add_prod(main).exception)
    assert left_over(main) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "../evil", "--docker", "a=unix:///x"),
        ("add", "x", "--docker", "unix:///x"),
        ("add", "x", "--docker", "a=unix:///x", "--docker", "a=unix:///y"),
        ("add", "x", "--docker", "a=unix:///x", "--regions", "r"),
        ("add", "x", "--access-key", "A", "--secret-key", "hush"),
        ("remove", "../accounts"),
        ("remove", "inline"),
        ("remove", "inlin"),
    ],
)
def test_what_makes_no_sense(main: Path, arguments: tuple[str, ...]) -> None:
    fault = accounts(main, *arguments).exception
    assert isinstance(fault, UsageFault)
    assert "hush" not in str(fault)
    assert main.read_text() == MAIN


def test_an_account_is_not_written_over(main: Path) -> None:
    add_prod(main)
    before = (main.parent / "accounts.d/prod.toml").read_text()
    assert isinstance(add_prod(main, "--regions", "x").exception, UsageFault)
    assert (main.parent / "accounts.d/prod.toml").read_text() == before


def test_only_its_own_files_are_removed(main: Path) -> None:
    file = main.parent / "accounts.d/two.toml"
    file.parent.mkdir()
    file.write_text('[accounts.two]\nupstream = "docker"\n[accounts.three]\nupstream = "docker"')
    result = accounts(main, "remove", "two")
    assert isinstance(result.exception, UsageFault)
    assert "edit it by hand" in str(result.exception)
    assert file.exists()


def test_an_account_with_problems_can_be_removed(main: Path) -> None:
    add_prod(main)
    (main.parent / "prod.key").unlink()
    assert isinstance(accounts(main, "list").exception, ConfigurationFault)
    assert accounts(main, "remove", "prod").exception is None
    assert accounts(main, "list").exception is None


def test_a_running_service_has_to_be_told(main: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(main.parent / "s.sock"))
        server.listen()
        assert "`hypermux reload`" in add_prod(main).output
    # Its socket is still there, and nobody behind it.
    assert "at its start" in accounts(main, "remove", "prod").output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to everything")
def test_a_service_of_somebody_else_is_a_running_one(main: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(main.parent / "s.sock"))
        server.listen()
        (main.parent / "s.sock").chmod(0)
        assert "`hypermux reload`" in add_prod(main).output


def test_a_service_with_no_room_for_another_reader_is_a_running_one(
    main: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(self: socket.socket, path: str) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "socket", type("Busy", (socket.socket,), {"connect": connect}))
    assert "`hypermux reload`" in add_prod(main).output


def test_a_directory_that_is_a_file(main: Path) -> None:
    (main.parent / "accounts.d").write_text("")
    assert isinstance(add_prod(main).exception, DiskFault)
