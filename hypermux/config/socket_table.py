"""`[socket]`: where readers connect, and who may.

    nothing said                 the service's user and root
    group = "readers"            the members of that group, too
    allow_uids, allow_gids       these users, and the members of these groups, too

The kernel looks at the file's permissions, the service at who has connected (supplementary groups
count): both have to let a reader in. So `mode` follows from the other keys where it is not written:
0600, 0660 with a group, and 0666 with a list, because a file has but one group. The modes that let
others in are safe: the service sends away whoever is none of the above.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from hypermux.config.settings import SocketSettings
from hypermux.config.shape import Key, Reader, Wrong, duration, integer, sequence, table, text

# (uid_t)-1 and (gid_t)-1 mean "nobody in particular" to the kernel.
_LARGEST_ID = 2**32 - 2


@frozen
class SocketTable:
    """`[socket]` as written: its path is still relative, its default depends on `state_dir`."""

    path: str | None = None
    mode: int | None = None
    group: int | None = None
    allow_uids: tuple[int, ...] = ()
    allow_gids: tuple[int, ...] = ()
    max_subscribers: int = 1000
    stall_timeout_s: float = 30.0

    def settings(self, path: Path) -> SocketSettings:
        """Return the settings, with the mode that lets in who is allowed."""
        mode = self.mode
        if mode is None:
            listed = self.allow_uids or self.allow_gids
            mode = 0o666 if listed else 0o600 if self.group is None else 0o660
        return SocketSettings(
            path=path,
            mode=mode,
            group=self.group,
            allow_uids=self.allow_uids,
            allow_gids=self.allow_gids,
            max_subscribers=self.max_subscribers,
            stall_timeout_s=self.stall_timeout_s,
        )

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with a `mode` that was written beside the other keys."""
        if self.mode is None:
            return
        if self.group is not None and self.mode & 0o060 != 0o060:
            yield 'keeps socket.group out: write "0660", or leave it out'
        if (self.allow_uids or self.allow_gids) and self.mode & 0o006 != 0o006:
            yield (
                "keeps out whom socket.allow_uids or allow_gids name: leave it out "
                '("0666" then; everybody else is refused all the same)'
            )

    def warnings(self) -> Iterator[str]:
        """Yield what does not do what it looks like."""
        nobody_named = self.group is None and not self.allow_uids and not self.allow_gids
        if nobody_named and self.mode is not None and self.mode & 0o066:
            yield (
                "socket.mode alone lets nobody in: name who may read with socket.group, "
                "allow_uids or allow_gids"
            )


def _mode(value: Any) -> int:
    octal = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 4
    if not octal or set(value) & {"8", "9"}:
        raise Wrong.value('is not a mode: write "0600" or "0660"', value)
    mode = int(value, 8)
    if mode & 0o600 != 0o600 or mode & ~0o777:
        raise Wrong.value('keeps the owner out: write "0600" or "0660"', value)
    return mode


def _id(what: str, look_up: Callable[[str], int]) -> Reader[int]:
    """Return a reader of the numbers and names of `what`."""

    def read(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value <= _LARGEST_ID:
                raise Wrong.value(f"is not the number of a {what}", value)
            return value
        found = text(value)
        try:
            return look_up(found)
        except KeyError:
            hint = f": write {found} without quotes" if found.isdigit() else ""
            raise Wrong.value(f"is not a {what} of this system{hint}", found) from None

    return read


_user = _id("user", lambda name: pwd.getpwnam(name).pw_uid)
_group = _id("group", lambda name: grp.getgrnam(name).gr_gid)

socket = table(
    SocketTable,
    path=Key("path", text),
    mode=Key("mode", _mode),
    group=Key("group", _group),
    allow_uids=Key("allow_uids", sequence(_user)),
    allow_gids=Key("allow_gids", sequence(_group)),
    max_subscribers=Key("max_subscribers", integer(1, 1_000_000)),
    stall_timeout_s=Key("stall_timeout", duration("100ms", "1h")),
)
