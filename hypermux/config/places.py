"""Where files are when nobody says: the accounts file, the state directory, the socket."""

from __future__ import annotations

import os
from pathlib import Path

from hypermux.model.errors import ConfigurationFault, Problem

FILE_NAME = "accounts.toml"

# sun_path holds 108 bytes, the last one a zero.
MAX_SOCKET_PATH = 107


def _directory(variable: str) -> Path | None:
    """Return an XDG directory; a relative one does not count, as the XDG specification says."""
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else None


def _home(*parts: str) -> Path | None:
    home = os.path.expanduser("~")
    # "/" is what users of services have who have no home.
    return Path(home, *parts) if home.startswith("/") and home != "/" else None


def candidates() -> tuple[Path, ...]:
    """Return where an accounts file is looked for, the first one found wins."""
    user = _directory("XDG_CONFIG_HOME") or _home(".config")
    places = (Path.cwd(), *([user / "hypermux"] if user else []), Path("/etc/hypermux"))
    return tuple(place / FILE_NAME for place in places)


def find() -> Path | None:
    """Return the accounts file: here, the user's, the system's; None when there is none."""
    return next((path for path in candidates() if path.is_file()), None)


def default_state_dir() -> Path:
    """Return where the journal is kept when `state_dir` does not say: XDG state for a user.

    Root is the system and has no state of its own: /var/lib/hypermux, unless XDG_STATE_HOME is
    set. Raises ConfigurationFault for a user without a home.
    """
    if (state := _directory("XDG_STATE_HOME")) is not None:
        return state / "hypermux"
    if os.geteuid() == 0:
        return Path("/var/lib/hypermux")
    if (state := _home(".local", "state")) is not None:
        return state / "hypermux"
    raise ConfigurationFault(
        [Problem(FILE_NAME, "state_dir", "is missing, and there is no home directory: write it")]
    )


def default_socket_path(state_dir: Path | None = None) -> Path:
    """Return where subscribers connect when `[socket] path` does not say.

    The XDG runtime directory, /run/hypermux for root, else in `state_dir` (or the default one).
    """
    if (runtime := _directory("XDG_RUNTIME_DIR")) is not None:
        return runtime / "hypermux" / "hypermux.sock"
    if os.geteuid() == 0:
        return Path("/run/hypermux/hypermux.sock")
    return (state_dir or default_state_dir()) / "hypermux.sock"


def fits_a_socket(path: str | Path) -> bool:
    """Say whether a unix socket can have this path."""
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH
