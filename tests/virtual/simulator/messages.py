"""What upstreams say: events of both dialects, repeats, and what is no event at all.

Every message bears a name of its own, `#SOURCE-NUMBER#`, that is found again in its record.
"""

from __future__ import annotations

import json
import random
import re

from attrs import define, field, frozen

NAME = re.compile(rb"#[0-9a-z./]+-[0-9]+#")
_ACTIONS = ("create", "start", "die", "destroy", "exec_start", "health_status: healthy")
# What a limit of 16 KiB on messages does not let through.
HUGE = 20_000


@frozen
class Made:
    """A message: `event` when it is to be recorded as one, `text` when it is no binary frame."""

    name: str
    raw: bytes
    event: bool
    text: bool = True


@define(eq=False)
class Maker:
    """Makes one source's messages. `clock_error_s`: what its events' times are off by."""

    tag: str
    rng: random.Random
    dialect: str = "a"
    clock_error_s: float = 0.0
    _number: int = 0
    _last: Made | None = field(default=None)

    def make(self, kind: str, now_s: float) -> Made:
        """Return a message of a kind.

        event, repeat (the last one's bytes again), old (an hour old), timeless, unicode; binary,
        latin, huge, deep, words: no events.
        """
        if kind == "repeat" and self._last is not None:
            return self._last
        self._number += 1
        name = f"#{self.tag}-{self._number}#"
        made = self._make(kind, name, now_s + self.clock_error_s)
        self._last = made if made.event else None
        return made

    def _make(self, kind: str, name: str, time_s: float) -> Made:
        match kind:
            case "binary":
                return Made(name, name.encode() + self.rng.randbytes(40), False, text=False)
            case "latin":
                return Made(name, name.encode() + b" caf\xe9", False)
            case "huge":
                return Made(name, b'{"Action":"%b","x":"%b"}' % (name.encode(), b"y" * HUGE), False)
            case "deep":
                depth = self.rng.choice([200, 5000])
                raw = b'{"Action":"%b","x":%b1%b}' % (name.encode(), b"[" * depth, b"]" * depth)
                return Made(name, raw, False)
            case "words":
                return Made(name, b"not JSON " + name.encode(), False)
        if kind == "old":
            time_s -= self.rng.uniform(0, 3600)
        time_ns = round(time_s * 1e9) + self.rng.randrange(1000)
        return Made(name, self._event(kind, name, max(time_ns, 1)), True)

    def _event(self, kind: str, name: str, time_ns: int) -> bytes:
        action = self.rng.choice(_ACTIONS)
        attributes = {"name": name, "image": "busybox"}
        if kind == "unicode":
            attributes["mood"] = "日本 🙂\u0000"
        tree: dict[str, object]
        if self.dialect == "docker":
            # Of no container: what a journal implies of them is compared with the engine's.
            actor = {"ID": name, "Attributes": attributes}
            tree = {"Type": "volume", "Action": "mount", "Actor": actor, "scope": "local"}
            tree |= {"time": time_ns // 10**9, "timeNano": time_ns}
        elif self.dialect == "a":
            actor = {"ID": "f296", "Attributes": attributes}
            tree = {"status": action, "Type": "container", "Action": action, "Actor": actor}
            if kind != "timeless":
                tree |= {"time": time_ns // 10**9, "timeNano": time_ns}
        else:
            actor = {"Id": "d180", "Attributes": attributes}
            tree = {"Action": "MODIFIED", "Actor": actor, "Status": "Running", "Type": "container"}
            if kind != "timeless":
                tree |= {"Time": time_ns // 10**9, "TimeNano": time_ns}
        ascii_only = kind != "unicode"
        return json.dumps(tree, ensure_ascii=ascii_only, separators=(",", ":")).encode()
