"""What the exception is made of that leaves a nursery: a group, and at times of groups."""

from __future__ import annotations

from collections.abc import Iterator

import trio


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of a group, however deep; of any other exception itself."""
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            yield from leaves(part)
    else:
        yield exc


def is_cancellation(exc: BaseException) -> bool:
    """Say whether it is a cancellation and nothing else: otherwise there is a fault in it."""
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaves(exc))
