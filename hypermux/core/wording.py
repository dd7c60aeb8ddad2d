"""Text from a server, made fit to stand in a sentence of ours."""

from __future__ import annotations

# Long enough for any honest reason, short enough for one log line.
MAX_QUOTED = 300


def printable(text: str, limit: int = MAX_QUOTED) -> str:
    """Return `text` without control, invisible or direction-changing characters, cut to `limit`.

    They are shown as escapes, so that nothing a server sends can move a terminal's cursor.
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[:limit]
    )
    return shown if len(text) <= limit and len(shown) <= limit else shown[:limit] + "…"
