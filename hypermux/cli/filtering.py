"""`--filter KEY=VALUE[,…]`, the same in every command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypermux.core.filters import DOCKER_FIELDS, FilterError, Filters
from hypermux.model.errors import UsageFault


def read_filters(flags: Sequence[str], fields: Iterable[str] = DOCKER_FIELDS) -> Filters:
    """Return what the flags select, in the words of `fields`. Raises UsageFault."""
    try:
        return Filters.parse_flags(flags, fields=fields)
    except FilterError as error:
        raise UsageFault(f"--filter: {error}") from None
