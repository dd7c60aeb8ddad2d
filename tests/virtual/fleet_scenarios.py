"""What happens to a fleet, and what must hold; one seed, one report.

The oracles know what servers saw and sent, and when the fleet was told of what; they count, and
share no arithmetic with what they judge.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from functools import partial
from math import inf
from random import Random

from agenda import Agenda
from attrs import define, field, frozen
from fleet import Fleet, Life, Manner, Outage
from fleet_server import Message, Server, ServerLimits

from hypermux.model.accounts import Cap, Limits, SourceId
from hypermux.model.errors import Failure, FailureKind

RATE, ACCOUNT_RATE, BURST = 10.0, 5.0, 5
HOUR = 3600.0
# The real service closed every socket after a day.
CUT_AFTER_S = 24 * HOUR


@define
class Report:
    """What a run broke, and its figures."""

    violations: list[str] = field(factory=list)
    figures: dict[str, float] = field(factory=dict)

    def expect(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.violations.append(what)


@frozen
class Layout:
    """Sources of accounts of many sizes, at a few endpoints, and how many slots there are."""

    sources: tuple[tuple[SourceId, str], ...]
    limits: Limits

    @classmethod
    def make(cls, sources: int, rng: Random, *, spare: int = 1, addresses: int = 0) -> Layout:
        """Return limits that are reached exactly, but for `spare` slots of each.

        With one address its rate is the process's own. No account is so large that its rate alone
        would decide how long all of it takes.
        """
        number = addresses or rng.choice([1, 3, 8])
        names = [f"region{number}:443" for number in range(number)]
        placed: list[tuple[SourceId, str]] = []
        for account in itertools.count():
            size = min(rng.choice([3, 8, 8, 20, 20, 50]), max(1, sources // 20))
            size = min(size, sources - len(placed))
            placed += [
                (SourceId(f"acct{account:02d}", f"r{number:03d}"), rng.choice(names))
                for number in range(size)
            ]
            if len(placed) == sources:
                break
        accounts = Counter(source.account for source, _ in placed)
        most = max(Counter(address for _, address in placed).values())
        own = {name: Cap(size + spare, ACCOUNT_RATE) for name, size in accounts.items()}
        limits = Limits(
            whole=Cap(sources + spare, RATE),
            connect_burst=BURST,
            per_account=Cap(None, ACCOUNT_RATE),
            per_endpoint=Cap(most + spare, RATE),
            account_caps=own,
        )
        return cls(tuple(placed), limits)

    def servers(self, agenda: Agenda, rng: Random, cut_after_s: float = inf) -> list[Server]:
        """Return servers whose limits are the same."""
        limits = ServerLimits(
            whole=self.limits.per_endpoint,
            per_account=self.limits.per_account,
            burst=self.limits.connect_burst,
            account_caps=self.limits.account_caps,
        )
        addresses = sorted({address for _, address in self.sources})
        return [Server(agenda, address, limits, rng, cut_after_s) for address in addresses]


def _refused(fleet: Fleet, report: Report) -> None:
    """No server ever had to say 429."""
    refused = [(at, str(source)) for at, source, answer in fleet.requests() if answer == 429]
    report.expect(not refused, f"{len(refused)} times 429, first {refused[:1]}")


def _all_up(fleet: Fleet, report: Report) -> None:
    down = [str(life.id) for life in fleet.lives if not life.up]
    report.expect(not down, f"{len(down)} sources are down at the end: {down[:3]}")


# -- mass loss


def mass_loss(seed: int, sources: int = 1000, addresses: int = 0) -> Report:
    """All connections are cut in one moment, long after the start: bursts are rested."""
    rng, agenda, report = Random(seed), Agenda(), Report()
    layout = Layout.make(sources, rng, addresses=addresses)
    servers = layout.servers(agenda, rng)
    fleet = Fleet.make(Manner(layout.limits), servers, layout.sources, agenda, seed)
    lost_at = 2.0 * sources / RATE + 120.0
    agenda.run(lost_at)
    _all_up(fleet, report)
    for server in servers:
        server.end_all(Failure(FailureKind.EOF, "the server went away"))
    agenda.run(lost_at + 4.0 * sources / RATE + 60.0)
    _all_up(fleet, report)
    _refused(fleet, report)
    for life in fleet.lives:
        causes = [gap.cause for gap in life.gaps]
        report.expect(causes == ["start", "dropped"], f"{life.id} has the gaps {causes}")
    back_at = max(life.gaps[-1].to_s for life in fleet.lives)
    took_s = report.figures["recovery_s"] = back_at - lost_at
    # The first ones come back after their jitter; from then on the rate alone decides.
    report.expect(took_s <= 1.05 * sources / RATE + 1.5, f"the recovery took {took_s:.1f} s")
    _fair(fleet, lost_at, report)
    return report


def _fair(fleet: Fleet, since: float, report: Report) -> None:
    """A freed slot goes to the waiting account that holds fewest, of those no rate holds back.

    Whether a rate does is judged from afar: nobody is passed over who had clearly less than it.
    """
    held: Counter[str] = Counter()
    waiting: dict[str, dict[SourceId, None]] = defaultdict(dict)
    recent: deque[tuple[float, str]] = deque()
    for at, kind, source in fleet.gate.log:
        account = source.account
        if kind == "request":
            waiting[account][source] = None
        elif kind == "withdraw":
            waiting[account].pop(source, None)
        elif kind == "release":
            held[account] -= 1
        elif kind == "grant":
            while recent and recent[0][0] < at - 1.0:
                recent.popleft()
            busy = Counter(name for _, name in recent)
            fewer = [
                name
                for name, sources in waiting.items()
                if sources and held[name] < held[account] and busy[name] < ACCOUNT_RATE - 1
            ]
            report.expect(
                at < since or not fewer,
                f"at {at:.3f} {account} with {held[account]} got a slot before {fewer[:2]}",
            )
            waiting[account].pop(source, None)
            held[account] += 1
            recent.append((at, account))


# -- blackholes


def blackholes(seed: int, sources: int = 1000, silent_s: float = 300.0) -> Report:
    """Every peer falls silent at once, without a word, and comes back much later."""
    rng, agenda, report = Random(seed), Agenda(), Report()
    layout = Layout.make(sources, rng)
    servers = layout.servers(agenda, rng)
    manner = Manner(layout.limits, pings=True)
    fleet = Fleet.make(manner, servers, layout.sources, agenda, seed)
    silent_at = 1.5 * sources / RATE + 60.0
    agenda.run(silent_at)
    _all_up(fleet, report)
    report.expect(not any(life.noticed for life in fleet.lives), "one fell before it was silent")
    for server in servers:
        server.fall_silent()
    agenda.run(silent_at + silent_s)
    for life in fleet.lives:
        fell = [cause for _, cause in life.noticed]
        report.expect(fell == ["silent"], f"{life.id} fell by {fell}")
    late_s = report.figures["noticed_s"] = max(
        at - silent_at for life in fleet.lives for at, _ in life.noticed
    )
    report.expect(late_s <= 27.0, f"one was noticed after {late_s:.2f} s only")
    _no_storm(fleet, silent_at, silent_s, report)
    for server in servers:
        server.come_back()
    # Those that wait longest have just begun a dial, and then their longest pause.
    patience_s = manner.dial_timeout_s + manner.backoff_max_s
    agenda.run(silent_at + silent_s + 1.05 * sources / RATE + patience_s)
    _all_up(fleet, report)
    _refused(fleet, report)
    return report


def _no_storm(fleet: Fleet, since: float, seconds: float, report: Report) -> None:
    """Dials at a dead server stay within the rate, and each source's become rarer."""
    times = [at for at, _ in fleet.dialed if at >= since]
    first = 0
    for last, at in enumerate(times):
        while times[first] < at - 1.0:
            first += 1
        report.expect(last - first + 1 <= RATE + BURST + 1, f"a storm of dials at {at:.1f}")
    most = max(Counter(source for at, source in fleet.dialed if at >= since).values())
    # Pauses of 0.5 to 1 s, 2 s, 4 s, … 60 s, each after a dial that took 10 s.
    report.expect(most <= seconds / 12.0, f"one source dialed {most} times in {seconds:.0f} s")
    report.figures["dials_per_s"] = len(times) / seconds


# -- a server that lets in less than we ask for


def throttled(
    seed: int, sources: int = 1000, part: float = 1.1, accounts: int = 4, *, whole: bool = False
) -> Report:
    """Our rate is `part` of the server's, of each account or (`whole`) of all together."""
    rng, agenda, report = Random(seed), Agenda(), Report()
    placed = tuple(
        (SourceId(f"acct{number % accounts:03d}", f"r{number:03d}"), "region:443")
        for number in range(sources)
    )
    total, own = (RATE, RATE) if whole else (ACCOUNT_RATE * accounts, ACCOUNT_RATE)
    theirs = Limits(Cap(), BURST, Cap(None, own), Cap(None, total))
    ours = Limits(Cap(), BURST, Cap(None, part * own), Cap(None, part * total))
    servers = Layout(placed, theirs).servers(agenda, rng)
    fleet = Fleet.make(Manner(ours), servers, placed, agenda, seed)
    agenda.run(10.0 * sources / RATE)
    _all_up(fleet, report)
    answers = Counter(answer for _, _, answer in fleet.requests())
    refused = report.figures["refused"] = answers[429] / sources
    # Without a throttle it would be the part that is too much, and every retry's part again.
    most = 0.06 if part < 1.2 else 0.1
    report.expect(0 < refused < most, f"429 was the answer {answers[429]} times")
    told = [sentence for _, sentence in fleet.told if "asks for fewer" in sentence]
    report.expect(0 < len(told) <= answers[429], f"{len(told)} sentences tell of it")
    took_s = report.figures["connected_s"] = max(life.gaps[0].to_s for life in fleet.lives)
    at_best_s = sources / total
    report.expect(took_s < 1.35 * at_best_s, f"it took {took_s:.1f} s, at best {at_best_s:.1f} s")
    return report


# -- rotation


def rotation(seed: int, sources: int = 1000, hours: float = 72.0, *, spare: int = 1) -> Report:
    """Days of connections that a server would cut at 24 h, with or without a slot to spare."""
    rng, agenda, report = Random(seed), Agenda(), Report()
    layout = Layout.make(sources, rng, spare=spare)
    servers = layout.servers(agenda, rng, cut_after_s=CUT_AFTER_S)
    fleet = Fleet.make(Manner(layout.limits), servers, layout.sources, agenda, seed)
    traffic = Traffic(agenda, rng, until_s=hours * HOUR)
    fleet.rotating = traffic.lively
    for life in fleet.lives:
        traffic.now_and_then(life)
    agenda.run(hours * HOUR + 60.0)
    _all_up(fleet, report)
    _refused(fleet, report)
    report.expect(not any(server.cut for server in servers), "a server cut an old connection")
    fell = [(str(life.id), life.noticed) for life in fleet.lives if life.noticed]
    report.expect(not fell, f"{len(fell)} sources fell, like {fell[:1]}")
    for life in fleet.lives:
        _brought(life, report)
        _rotated(life, hours, spare, report)
    gaps = [gap for life in fleet.lives for gap in life.gaps if gap.cause == "rotation"]
    report.figures["replaced"] = sum(life.replaced for life in fleet.lives)
    report.figures["gaps"] = len(gaps)
    report.figures["longest_gap_s"] = max((gap.to_s - gap.from_s for gap in gaps), default=0.0)
    report.figures["messages"] = sum(len(life.brought) for life in fleet.lives)
    return report


@define(eq=False)
class Traffic:
    """Events of all sources: few as a rule, many while a connection is being replaced."""

    agenda: Agenda
    rng: Random
    until_s: float
    _number: int = 0

    def now_and_then(self, life: Life) -> None:
        """One event in six hours, from now on."""
        at = self.agenda.now + self.rng.expovariate(1 / (6 * HOUR))
        if at < self.until_s:
            self.agenda.at(at, partial(self._again, life))

    def lively(self, life: Life) -> None:
        """Many in the next second."""
        for _ in range(10):
            at = self.agenda.now + self.rng.uniform(0.0, 0.6)
            if at < self.until_s:
                self.agenda.at(at, partial(self._emit, life))

    def _again(self, life: Life) -> None:
        self._emit(life)
        self.now_and_then(life)

    def _emit(self, life: Life) -> None:
        """Send a message, now and then one that repeats itself to the byte."""
        self._number += 1
        message = b"%d" % self._number
        for _ in range(2 if self.rng.random() < 0.1 else 1):
            life.server.emit(life.id, message)


def _brought(life: Life, report: Report) -> None:
    """Everything that was sent since it was first let in came once, in order, or is in a gap."""
    server, gaps = life.server, deque(life.gaps)
    brought = deque(life.brought)
    first = server.first[life.id]
    for at, message in server.sent[life.id]:
        if at < first:
            continue
        if brought and brought[0] == message:
            brought.popleft()
            continue
        while gaps and gaps[0].to_s < at:
            gaps.popleft()
        if message in brought:
            break
        if not _covered(at, gaps, life):
            report.expect(False, f"{life.id} lost {message!r} of {at:.3f}, no gap says so")
            return
    extra: list[Message] = list(brought)[:3]
    report.expect(not brought, f"{life.id} brought twice or out of order: {extra}")


def _covered(at: float, gaps: deque[Outage], life: Life) -> bool:
    return bool(gaps) and gaps[0].from_s - 2 * life.fleet.manner.delay_s <= at <= gaps[0].to_s


def _rotated(life: Life, hours: float, spare: int, report: Report) -> None:
    """Each was replaced as often as its age asks for: with a spare slot without a gap."""
    causes = Counter(gap.cause for gap in life.gaps)
    fewest, most = int(hours // 20.5), int(hours // 17.0)
    report.expect(causes.pop("start") == 1, f"{life.id} began {life.gaps}")
    times = life.replaced if spare else causes.pop("rotation", 0)
    report.expect(fewest <= times <= most, f"{life.id} was replaced {times} times in {hours} h")
    report.expect(not causes, f"{life.id} has gaps: {dict(causes)}")
    report.expect(bool(spare) or not life.replaced, f"{life.id} had two slots, and there is one")
    longest = max((g.to_s - g.from_s for g in life.gaps if g.cause == "rotation"), default=0.0)
    report.expect(longest < 2.0, f"{life.id} has a rotation gap of {longest:.1f} s")


# By name; each takes a seed and a number of sources.
SCENARIOS: dict[str, Callable[..., Report]] = {
    "mass-loss": mass_loss,
    "blackholes": blackholes,
    "throttled": throttled,
    "rotation": rotation,
    "rotation-without-spare": partial(rotation, spare=0),
}
