"""The journal against the truth: what was sent, received, connected and dialed.

Each oracle yields sentences that begin with its name. None looks at a counter of hypermux but
`counters`, whose business they are.

    journal    lines are whole, `seq` is contiguous, what was shown is still there byte for byte
    records    every record was sent, as often as sent, with its bytes, at the time it was read
    order      of a source as sent; over all by (at, account, region) but for late ones
    audits     what an engine kept from a stream that goes on is found out
    lost       what was sent and is not recorded lies in a gap or in a `down` that is still open
    outages    one gap for each; see `judge_outages`
    held       nothing waits longer than max_hold for others
    limits     counts and rates, as the dialer and the servers saw them
    dead       a dead peer is given up within 27 s; no other is given up
    denied     refused credentials are not tried hot; `Retry-After` is honoured
    counters   read = recorded + lost, and that is what hypermux counted
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from math import inf

from attrs import define, field

from hypermux.model.accounts import SourceId
from simulator import journal, judge_dials, judge_outages
from simulator.journal import Line
from simulator.messages import NAME
from simulator.plan import refused_s, slowest_s
from simulator.truth import Message
from simulator.world import World

MAX_HOLD_S = 2.0
# Rounds come at least this often when something is due.
ROUND_S = 0.06
PONG_S = 10.0
# An engine is audited at least every minute; then there are two looks.
SECOND_LOOK_S = 5.0
AUDIT_S = 60.0 + SECOND_LOOK_S + 25.0


@define(eq=False)
class Case:
    """A world that has run, and what its journal says."""

    world: World
    lines: list[Line]
    matched: dict[Message, Line] = field(factory=dict)
    # Of each source: the gaps and states that are about connectivity, in order.
    by_source: dict[SourceId, list[Line]] = field(factory=lambda: defaultdict(list))
    # The life that wrote each record, by seq; 0 when none that ever showed anything.
    life_of_line: dict[int, int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        begun = [(life.shown[0][1], life.number) for life in self.world.truth.lives if life.shown]
        # What a life wrote behind the place where a later one began is not there any more.
        kept: list[tuple[int, int]] = []
        for seq, number in begun:
            while kept and kept[-1][0] > seq:
                kept.pop()
            kept.append((seq, number))
        starts = [seq for seq, _ in kept]
        places = {line.seq: bisect_right(starts, line.seq - 1) - 1 for line in self.lines}
        self.life_of_line = {seq: kept[n][1] if n >= 0 else 0 for seq, n in places.items()}

    def is_docker(self, source: SourceId) -> bool:
        """Say whether a source is an engine."""
        return self.world.plan.kinds[source] == "docker"


def judge(world: World) -> list[str]:
    """Return everything that is wrong, the world's own problems first."""
    problems = list(world.problems)
    files = {path: bytes(file.data) for path, file in world.disk.files.items()}
    lines, broken = journal.read(files)
    problems += broken
    case = Case(world, lines)
    for line in lines:
        if line.source is not None:
            case.by_source[line.source].append(line)
    problems += records(case)
    for oracle in (
        shown,
        order,
        lost,
        judge_outages.outages,
        held,
        judge_dials.limits,
        judge_dials.dead,
        judge_dials.denied,
        counters,
        audits,
    ):
        problems += oracle(case)
    return problems


def shown(case: Case) -> Iterator[str]:
    """What any reader was shown is there at the end, byte for byte."""
    world = case.world
    for life in world.truth.lives:
        # Left to the system, what a life wrote may go with the power long after.
        cut = any(later.how == "power" for later in world.truth.lives[life.number - 1 :])
        if life.tail is None or (world.plan.fsync == "never" and cut):
            continue
        name, size, checksum = life.tail
        found = next((f for path, f in world.disk.files.items() if path.name == name), None)
        if found is None or zlib.crc32(bytes(found.data[:size])) != checksum:
            yield f"journal: what life {life.number} had shown of {name} is not there any more"


def as_recorded(raw: bytes) -> bytes:
    """Return the bytes that an event's record holds, by the documented rule."""
    if raw.isascii():
        return raw
    text = raw.decode()
    return b"".join(c.encode() if " " <= c <= "~" else _escaped(c) for c in text)


def _escaped(char: str) -> bytes:
    units = char.encode("utf-16-be")
    return b"".join(b"\\u%b" % units[i : i + 2].hex().encode() for i in range(0, len(units), 2))


def records(case: Case) -> Iterator[str]:
    """Find the message of every record; what is sent more than once is found in order."""
    truth = case.world.truth
    named: dict[str, list[Message]] = defaultdict(list)
    for messages in truth.messages.values():
        for message in messages:
            named[message.name].append(message)
    last: dict[SourceId, int] = {}
    for line in case.lines:
        if line.kind not in ("event", "unparsed"):
            continue
        if line.head.get("synthetic"):
            yield f"records: record {line.seq} is synthetic: no engine here has containers"
            continue
        name = NAME.search(line.raw)
        candidates = [] if name is None else named.get(name[0].decode(), [])
        assert line.source is not None
        free = [m for m in candidates if m not in case.matched and m.read is not None]
        if not free:
            why = "more often than it was read" if candidates else "that was never sent"
            yield f"records: record {line.seq} is of a message {why}: {line.raw[:200]!r}"
            continue
        reached = last.get(line.source, -1)
        # Of several with the same bytes some may be lost: the time tells which this is.
        timed = [m for m in free if _read_at(case, m, line.received)]
        if not timed and (case.is_docker(line.source) or case.world.plan.rotate_s):
            # While an engine is asked what it remembers, its stream is read and held; so is a
            # connection that takes another's place.
            timed = [m for m in free if _read_at(case, m, line.received, judge_outages.RESUME_S)]
        message = next((m for m in timed or free if m.number > reached), free[0])
        case.matched[message] = line
        # What an audit found stands where it was found; no event, it bears no flag of it.
        found = line.head.get("replayed") or (
            line.kind == "unparsed" and case.is_docker(line.source)
        )
        if not found:
            last[line.source] = max(reached, message.number)
        if message.number < reached and not found:
            yield f"order: record {line.seq} of {line.source} is {message.name}, after a later one"
        if message.source != line.source:
            yield f"records: record {line.seq} of {line.source} came from {message.source}"
        if (line.kind == "event") != message.event:
            yield f"records: {message.name} is recorded as {line.kind} (record {line.seq})"
        elif line.event is not None and line.event != as_recorded(message.raw):
            yield f"records: record {line.seq} has other bytes than {message.name} had"
        if not timed:
            yield f"records: record {line.seq} was received at {message.read}, and says otherwise"


def _read_at(case: Case, message: Message, received: int, held_s: float = 0.0) -> bool:
    """Say whether a message was read at the time of a record, or up to `held_s` before it."""
    clock = case.world.truth.clock
    return any(
        clock.between(read)[0] <= received <= clock.between(read + held_s)[1]
        for read in message.reads
    )


def order(case: Case) -> Iterator[str]:
    """Records of sources that are not late stand in the order of their keys."""
    last: tuple[int, str, str] = (0, "", "")
    of_source: dict[SourceId, int] = {}
    for line in case.lines:
        if line.source is None:
            continue
        key = (line.at, line.source.account, line.source.region)
        if line.late and key > last:
            yield f"order: record {line.seq} is flagged late, and is not"
        if not line.late:
            if key < last:
                yield f"order: record {line.seq} is behind its place"
            last = key
        if line.at < of_source.get(line.source, 0):
            yield f"order: record {line.seq}: `at` of {line.source} goes back"
        of_source[line.source] = line.at
        if line.at > line.received:
            yield f"order: record {line.seq} is placed after it was received"


def lost(case: Case) -> Iterator[str]:
    """What is not recorded is admitted: its way from the server to us crosses a gap."""
    truth = case.world.truth
    starts = [life.started for life in truth.lives if life.started is not None]
    for source, messages in truth.messages.items():
        gaps = judge_outages.covered(case, source)
        first = judge_outages.first_began(case, source)
        for message in messages:
            if message in case.matched or message.skipped:
                continue
            # A clock that was set back starts anew behind what the end of a life has lost.
            later = [t for t in starts if t > message.sent]
            # Left to the system, what more than one life had written may go with the power.
            moments = [message.sent, *(later if case.world.plan.fsync == "never" else later[:1])]
            least = min(truth.clock.between(t)[0] for t in moments)
            _, most = truth.clock.between(message.reads[-1] if message.reads else message.due)
            if any(since <= most and until >= least for since, until in gaps):
                continue
            # Left to the system, the whole journal may go with the power.
            if case.world.plan.fsync == "never" and message.sent < first:
                continue
            if judge_outages.died_unnoticed(case, source, message.sent):
                continue
            read = "never" if message.read is None else f"at {message.read:.3f}"
            yield (
                f"lost: {message.name} of {source}, sent at {message.sent:.3f}, due at"
                f" {message.due:.3f}, read {read}: no record, no gap"
            )


def held(case: Case) -> Iterator[str]:
    """No message waits longer than max_hold for other sources.

    A slow disk's time comes on top: the round under way, its records of its own, a checkpoint.
    """
    world = case.world
    plan = world.plan
    allowed = MAX_HOLD_S + ROUND_S + 6 * slowest_s(plan)
    if any(step.what == "fault" for step in plan.steps):
        allowed += refused_s(plan) + judge_outages.REFUSED_S
    if plan.rotate_s is not None:
        allowed += PONG_S  # a replacement waits for its predecessor's last word
    if not isinstance(plan.fsync, str):
        allowed += plan.fsync
    for life in world.truth.lives:
        seqs = [seq for _, seq in life.shown]
        for message, line in case.matched.items():
            if (
                message.life != life.number
                or message.read is None
                or case.is_docker(message.source)
            ):
                continue
            # The first time that so much was shown.
            index = bisect_right(seqs, line.seq - 1)
            if index < len(seqs) and life.shown[index][0] - message.read > allowed:
                waited = life.shown[index][0] - message.read
                yield f"held: record {line.seq} was shown {waited:.3f} s after it was read"


def counters(case: Case) -> Iterator[str]:
    """What a life read is recorded, or counted as lost; and hypermux counts the same."""
    truth = case.world.truth
    told: Counter[tuple[int, SourceId]] = Counter()
    life_of_line = case.life_of_line
    for line in case.lines:
        if line.kind == "gap" and "lost" in line.head and line.source is not None:
            told[life_of_line[line.seq], line.source] += line.head["lost"]
    wrote = Counter((life_of_line[line.seq], m.source) for m, line in case.matched.items())
    for life in truth.lives:
        for source, messages in truth.messages.items():
            recorded, count = wrote[life.number, source], told[life.number, source]
            taken = sum(1 for m in messages if m.life == life.number)
            received, _ = life.counted.get(source, (0, 0))
            where = f"counters: life {life.number} of {source}"
            if case.is_docker(source):
                taken = received  # it reads more than it takes: what it knows already
            if life.how == "stop" and taken != recorded + count:
                yield f"{where}: {taken} read, {recorded} recorded, {count} told to be lost"
            if taken < recorded + count:
                yield f"{where}: more is told than the {taken} that were read"
            if life.started is not None and received != taken:
                yield f"{where}: {received} were counted, and {taken} read"


def audits(case: Case) -> Iterator[str]:
    """What an engine kept from an open stream is recorded, while its ring still has it."""
    world = case.world
    truth, plan = world.truth, world.plan
    # An audit takes a connection of its own; without one it comes late, or never.
    for caps in (plan.caps, *plan.later):
        rate = min(caps.rate, caps.account_rate or inf, caps.endpoint_rate or inf)
        # It takes its turn behind those who are lost, too.
        if caps.connections < 2 * len(plan.sources) or rate < len(plan.sources) / AUDIT_S * 4:
            return
    if plan.short:
        return
    for source, messages in truth.messages.items():
        if not case.is_docker(source):
            continue
        restarts = world.restarts(source)
        gaps = judge_outages.covered(case, source)
        first = judge_outages.first_began(case, source)
        sent = [m.sent for m in messages]
        for message in messages:
            until = message.sent + AUDIT_S
            if not message.skipped or message in case.matched or until > plan.hour:
                continue
            # Left to the system, the whole journal may go with the power.
            if plan.fsync == "never" and message.sent < first:
                continue
            crowd = bisect_right(sent, until) - message.number
            calm = crowd < 200 and not any(message.sent < t < until for t in restarts)
            # A stream that brought nothing at all is dialed anew, and that brings it.
            connected = any(
                s.opened is not None
                and s.opened + judge_outages.RESUME_S < message.sent
                and (s.wire.closed is None or s.wire.closed > message.sent)
                for s in truth.sessions[source]
            )
            # What a small buffer had no room for is counted like any other, at the second look.
            found = any(
                since <= truth.clock.between(read + SECOND_LOOK_S)[1]
                and until_ns >= truth.clock.between(read)[0]
                for read in message.reads
                for since, until_ns in gaps
            )
            if calm and connected and not found and world.well(source, message.sent, until):
                yield f"audits: {message.name} was skipped at {message.sent:.3f}, and never found"
