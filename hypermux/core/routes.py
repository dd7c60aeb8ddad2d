"""Which handler answers a request.

Routes are tables: path, then method. A table that has a prefix (`/v1.51`) owns every path that
begins with it, and refuses those that it does not know in its own form; without it its paths are
found too. A path that no table has is refused in the form of the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from attrs import evolve, frozen

from hypermux.core.http import HttpRequest, Reply

H = TypeVar("H")


@frozen
class Route(Generic[H]):
    """What answers a request: a handler, or the reply that says why there is none.

    `error` is the form in which this request's other troubles are told.
    """

    answer: H | Reply
    error: Callable[[int, str], Reply]


@frozen
class Table(Generic[H]):
    """Paths, the methods of each, and what answers them.

    `prefix` matches what may stand before each path. `error` makes a reply of a status and a
    sentence: what clients of these routes expect of a refusal.
    """

    routes: Mapping[str, Mapping[str, H]]
    prefix: re.Pattern[str] | None = None
    error: Callable[[int, str], Reply] = Reply.error

    def within(self, path: str) -> str | None:
        """Return the path behind the prefix if `path` has one that is ours."""
        found = self.prefix.match(path) if self.prefix is not None else None
        return None if found is None else path[found.end() :]

    def find(self, path: str, method: str) -> Route[H]:
        """Return what answers `method` on `path`, which has no prefix any more."""
        methods = self.routes.get(path)
        if methods is None:
            return self._refuse(404, f"there is no {path[:200]} here")
        found = methods.get("GET" if method == "HEAD" and "HEAD" not in methods else method)
        if found is not None:
            return Route(found, self.error)
        allowed = [*methods, *(["HEAD"] if "GET" in methods and "HEAD" not in methods else [])]
        sentence = f"{path} takes {' and '.join(allowed)}"
        return self._refuse(405, sentence, ("Allow", ", ".join(allowed)))

    def _refuse(self, status: int, sentence: str, *headers: tuple[str, str]) -> Route[H]:
        reply = self.error(status, sentence)
        return Route(evolve(reply, headers=(*reply.headers, *headers)), self.error)


def route(request: HttpRequest, tables: Sequence[Table[H]]) -> Route[H]:
    """Return what of `tables` answers `request`. HEAD is asked of GET."""
    path = request.path
    for table in tables:
        if (rest := table.within(path)) is not None:
            return table.find(rest, request.method)
    for table in tables:
        if path in table.routes:
            return table.find(path, request.method)
    known = ", ".join(sorted(name for table in tables for name in table.routes))
    error = tables[0].error if tables else Reply.error
    return Route(error(404, f"there is no {path[:200]} here; there are {known}"), error)
