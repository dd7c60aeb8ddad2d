"""Which socket a command talks to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypermux.cli.sockets import find_socket
from hypermux.config import accounts_file
from hypermux.model.errors import ConfigurationFault

# A key's file that is gone, a table that does not exist, an include that does not read.
BROKEN = """
include = ["missing.toml"]
[accounts.prod]
access_key = "AK"
secret_key_file = "gone.key"
regions = ["us"]
[limitz]
x = 1
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file, not there yet, in the first of the usual places."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "accounts.toml"


@pytest.mark.parametrize("asked_for", [True, False], ids=["named", "found"])
def test_a_file_that_is_not_good_still_names_the_socket(config: Path, asked_for: bool) -> None:
    """Or a running service would be called gone, and its `reload` would not say what is wrong."""
    config.write_text(BROKEN + '[socket]\npath = "mine.sock"\n')
    with pytest.raises(ConfigurationFault):
        accounts_file.load(config)
    assert find_socket(config if asked_for else None) == config.with_name("mine.sock")


def test_the_socket_may_follow_from_the_state_dir(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypermux.config.places.os.geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    config.write_text('state_dir = "st"\n' + BROKEN)
    assert find_socket(None) == config.with_name("st") / "hypermux.sock"


@pytest.mark.parametrize(
    "text", ["= no TOML", "[socket]\npath = 7\n", "state_dir = 7\n", "socket = 7\n"]
)
def test_a_file_that_does_not_name_it(config: Path, text: str) -> None:
    """It is the usual one then, unless this very file was asked for."""
    config.write_text(text)
    assert find_socket(None) == accounts_file.default_socket_path()
    with pytest.raises(ConfigurationFault):
        find_socket(config)


def test_it_names_the_state_directory_too(config: Path) -> None:
    """Or `hypermux journal` could not look at a journal whose service's keys it may not read."""
    config.write_text('state_dir = "mine"\n' + BROKEN)
    assert accounts_file.state_dir(config) == config.with_name("mine")
    config.write_text("state_dir = 7\n" + BROKEN)
    assert accounts_file.state_dir(config) is None
