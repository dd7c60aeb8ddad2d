"""`journal.toml`: the journal's format and its epochs."""

from __future__ import annotations

import tomllib
from typing import Any

import tomli_w
from attrs import evolve, frozen

from hypermux.core.recording import parse_rfc3339, rfc3339
from hypermux.core.segments import Epoch

MANIFEST = "journal.toml"

_FORMAT = 1


@frozen
class Manifest:
    """`journal.toml`: the epochs in the order they began, each with its wall time for people.

    `lock` is which lock file its writer held last, in the system's numbers: those of a copy differ.
    `unsynced_boot` is set while a writer runs that leaves syncing to the system: the boot it runs
    under. Found at a start under another boot, records that were shown may be gone.
    """

    epochs: tuple[Epoch, ...]
    began: tuple[str, ...]
    unsynced_boot: str | None = None
    lock: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Read the file. Raises ValueError with what is wrong."""
        data: dict[str, Any] = tomllib.loads(text)
        if data.get("format") != _FORMAT:
            raise ValueError(f"format {data.get('format')} is not known; this is format {_FORMAT}")
        try:
            tables = data["epochs"]
            epochs = tuple(Epoch(str(t["epoch"]), int(t["first_seq"])) for t in tables)
            began = tuple(str(t.get("began", "")) for t in tables)
            lock = tuple(int(number) for number in data.get("lock", ()))
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"the list of epochs is not whole: {exc!r}") from None
        if not epochs:
            raise ValueError("there is no epoch")
        return cls(epochs, began, data.get("unsynced_boot"), lock)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        data: dict[str, Any] = {"format": _FORMAT}
        if self.unsynced_boot is not None:
            data["unsynced_boot"] = self.unsynced_boot
        if self.lock:
            data["lock"] = list(self.lock)
        data["epochs"] = [
            {"epoch": epoch.name, "first_seq": epoch.first_seq, "began": began}
            for epoch, began in zip(self.epochs, self.began, strict=True)
        ]
        return tomli_w.dumps(data).encode()

    @property
    def began_ns(self) -> int:
        """When the journal began (nanoseconds since 1970), 0 when nobody knows."""
        try:
            return parse_rfc3339(self.began[0])
        except ValueError:
            return 0

    def with_epoch(self, name: str, first_seq: int, now_ns: int) -> Manifest:
        """Return the manifest with one more epoch."""
        began = (*self.began, rfc3339(now_ns))
        return evolve(self, epochs=(*self.epochs, Epoch(name, first_seq)), began=began)
