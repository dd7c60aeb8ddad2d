"""What all tests share: a fault of hypermux itself, which it survives, fails the test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


class _Faults(logging.Handler):
    """Keeps what is logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(logging.Formatter().format(record))


@pytest.fixture(autouse=True)
def no_internal_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which hypermux met a fault of its own, unless it is about one."""
    faults, logger = _Faults(), logging.getLogger("hypermux")
    logger.addHandler(faults)
    yield
    logger.removeHandler(faults)
    if request.node.get_closest_marker("internal_faults") is None:
        assert not faults.found, "\n".join(faults.found)
