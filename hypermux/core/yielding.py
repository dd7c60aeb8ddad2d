"""Who gives a slot back: where a count was lowered, and to those that have none.

- A count that is lower than what is held: of the account that holds most, the youngest slot, over
  and over until it fits. First in accounts over their own count (there first what is at endpoints
  that are over theirs), then at endpoints, then of the process: what one takes helps the next.
- A source that is due for a new connection gives its slot up only where it is wanted: by somebody
  who holds none, whom this slot alone keeps out, and who would get it: of an account that holds no
  more than the source's own does without it. Else it would get its slot back, after a gap.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from attrs import frozen

from hypermux.core.turns import Line, Place
from hypermux.model.accounts import SourceId


@frozen
class Slot:
    """A slot that a source holds: the line it came through, and the when-th of all it was."""

    line: Line
    number: int


Holding: TypeAlias = Mapping[SourceId, Sequence[Slot]]


def surplus(holding: Holding) -> list[SourceId]:
    """Return which sources must give back all slots that they hold, so that every count fits."""
    held: Counter[Place] = Counter()
    for slots in holding.values():
        held.update(place for slot in slots for place in slot.line.slots)
    accounts = dict.fromkeys(slot.line.account for slots in holding.values() for slot in slots)
    # The process's count is the last of every line, and the first that was counted last of all.
    others = sorted((p for p in held if p not in accounts), key=lambda place: held[place])
    chosen: dict[SourceId, None] = {}
    for place in (*accounts, *others):
        if place.cap is None or held[place] <= place.cap:
            continue
        stacks = _stacks(place, holding, held, chosen)
        while held[place] > place.cap:
            account = max(stacks, key=lambda account: (held[account], stacks[account][-1]))
            source = stacks[account].pop()[-1]
            if not stacks[account]:
                del stacks[account]
            chosen[source] = None
            held.subtract(p for slot in holding[source] for p in slot.line.slots)
    return list(chosen)


def _stacks(
    place: Place, holding: Holding, held: Mapping[Place, int], chosen: Mapping[SourceId, None]
) -> dict[Place, list[tuple[int, int, SourceId]]]:
    """Return who holds a slot of `place`, by account, the first to give it back at the end."""
    stacks = defaultdict(list)
    for source, slots in holding.items():
        youngest = next((slot for slot in reversed(slots) if place in slot.line.slots), None)
        if youngest is not None and source not in chosen:
            over = sum(p.cap is not None and held[p] > p.cap for p in youngest.line.slots)
            stacks[youngest.line.account].append((over, youngest.number, source))
    for stack in stacks.values():
        stack.sort()
    return stacks


def wanted(slot: Slot, lines: Iterable[Line], holding: Holding, now: float) -> bool:
    """Say whether the slot, given back, would go to somebody else who holds none."""
    freed = slot.line
    for line in lines:
        full = [place for place in line.slots if place.full]
        if (
            full
            and all(place in freed.slots and place.held == place.cap for place in full)
            and (line.account is freed.account or line.account.held < freed.account.held)
            and line.pair.stopped_until <= now
            and any(source not in holding for source in line.queue)
        ):
            return True
    return False
