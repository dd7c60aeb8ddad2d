from __future__ import annotations

import os
from pathlib import Path

import pytest

from hypermux.config import places
from hypermux.model.errors import ConfigurationFault


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain user with a home and nothing else."""
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_a_users_places() -> None:
    assert places.default_state_dir() == Path("/home/me/.local/state/hypermux")
    assert places.default_socket_path() == Path("/home/me/.local/state/hypermux/hypermux.sock")
    assert places.default_socket_path(Path("/s")) == Path("/s/hypermux.sock")
    assert Path("/home/me/.config/hypermux/accounts.toml") in places.candidates()


def test_xdg_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert places.default_state_dir() == Path("/state/hypermux")
    assert places.default_socket_path(Path("/s")) == Path("/run/user/1000/hypermux/hypermux.sock")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert places.default_state_dir() == Path("/home/me/.local/state/hypermux")


def test_roots_places_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.default_state_dir() == Path("/var/lib/hypermux")
    assert places.default_socket_path() == Path("/run/hypermux/hypermux.sock")


def test_a_user_without_a_home_has_to_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    with pytest.raises(ConfigurationFault, match="state_dir: is missing"):
        places.default_state_dir()


def test_the_bound_of_a_socket_path_is_in_bytes() -> None:
    assert places.fits_a_socket("/" + "x" * 106)
    assert not places.fits_a_socket("/" + "x" * 107)
    assert not places.fits_a_socket("/" + "é" * 54)
