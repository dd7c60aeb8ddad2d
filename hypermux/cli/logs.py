"""The log: stderr only, one line an event, for people or as JSON."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

import msgspec

from hypermux.cli import stderr
from hypermux.core.wording import printable

# A log line that is longer tells nobody more.
MAX_LINE = 2000


class _Human(logging.Formatter):
    """`12:00:01 warning prod/us-west-1: refused`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = printable(record.getMessage(), MAX_LINE)
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            text = "\n".join([text, *(printable(line, MAX_LINE) for line in trace)])
        return f"{clock} {record.levelname.lower()} {text}"


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
        }
        if record.exc_info:
            fields["exception"] = _clean(self.formatException(record.exc_info))
        return msgspec.json.encode(fields).decode()


def _clean(text: str) -> str:
    """Return `text` without lone surrogates: a path need not be UTF-8, JSON has to be."""
    return text.encode("utf-8", "replace").decode()


class _Handler(logging.Handler):
    """Hands lines to the one writer of stderr, which never waits."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr.say(self.format(record))


def configure(level: str, form: Literal["auto", "human", "json"]) -> None:
    """Send the log to stderr. "auto" is for people on a terminal and JSON elsewhere."""
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    handler = _Handler()
    handler.setFormatter(_Human() if human else _Json())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The WebSocket library logs peers' misbehaviour that arrives here as a verdict anyway.
    logging.getLogger("trio-websocket").setLevel(logging.ERROR)
