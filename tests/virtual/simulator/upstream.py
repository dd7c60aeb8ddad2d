"""What all upstreams have: who is connected, how dials and requests are answered, what is said.

A subclass speaks a protocol: it reads requests and frames messages. Everything is a plain call,
made by the timeline or by a wire.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from email.utils import formatdate
from math import inf

import trio
from attrs import define, field, frozen

from hypermux.model.accounts import SourceId
from hypermux.model.errors import Failure, FailureKind
from simulator.messages import Made, Maker
from simulator.network import Wire
from simulator.truth import Message, Refusal, Session, Truth

_FAILURES = {
    "down": Failure(FailureKind.CONNECT, "connection refused: nothing listens there"),
    "nameless": Failure(FailureKind.RESOLVE, "the name has no address"),
}


@frozen
class Mood:
    """How dials and requests are answered.

    `dial`: "" (well), "down", "nameless" or "hole" (no answer). `answer`: 0 (well), a status, or
    one of "garbage", "eof", "mute", "wrong" (an acceptance that no client may take for one).
    """

    dial: str = ""
    answer: int | str = 0
    retry_after_s: float | None = None


@define(eq=False)
class Peer:
    """One connection, from the server's side; with a `session` it is streamed to."""

    wire: Wire
    session: Session | None = None
    deaf: bool = False
    over: bool = False
    held: bytearray = field(factory=bytearray)


@define(eq=False)
class Upstream:
    """One source's server. `now_s` is its clock, `date_error_s` what its `Date` is off by."""

    source: SourceId
    address: str
    truth: Truth
    maker: Maker
    rng: random.Random
    now_s: Callable[[], float]
    delay_s: float
    dial_s: float = 0.05
    mood: Mood = Mood()
    date_error_s: float | None = 0.0  # None: no Date at all
    peers: dict[Wire, Peer] = field(factory=dict)
    keepalive: bool = False
    remembers: bool = False  # what it sent, and can be found not to send it
    known_at: float = 0.0  # when clients hear of the last end of a connection
    skipping: int = 0  # so many messages more are kept from those who are connected

    # What a network asks for

    def dial(self) -> Failure | float:
        if self.mood.dial == "hole":
            return inf
        return _FAILURES.get(self.mood.dial) or self.dial_s * self.rng.uniform(0.5, 2.0)

    def accept(self, wire: Wire) -> None:
        self.peers[wire] = Peer(wire)

    def closed(self, wire: Wire) -> None:
        self.peers.pop(wire, None)

    def received(self, wire: Wire, data: bytes) -> None:
        raise NotImplementedError

    # For protocols

    def framed(self, made: Made) -> bytes:
        """Return a message as it goes over the wire."""
        raise NotImplementedError

    def over(self, peer: Peer, how: str) -> None:
        """End a connection, behind what was sent."""
        peer.over = True
        self.peers.pop(peer.wire, None)
        self.last_word(peer.wire.end(how))

    def last_word(self, arrives: float) -> None:
        """Note when a client hears what nothing can follow: later messages would come behind it."""
        self.known_at = max(self.known_at, arrives)

    def date(self) -> str:
        """Return the `Date` line of an answer, if there is one."""
        if self.date_error_s is None:
            return ""
        return f"Date: {formatdate(self.now_s() + self.date_error_s, usegmt=True)}\r\n"

    def misbehave(self, peer: Peer) -> bool:
        """Answer a request as the mood has it; False when it is to be answered well."""
        answer = self.mood.answer
        if answer in (0, "wrong"):
            return False
        if answer == "eof":
            self.over(peer, "eof")
        elif answer == "garbage":
            peer.wire.send(b"SSH-2.0-OpenSSH_9.2\r\n")
            self.over(peer, "eof")
        elif isinstance(answer, int):
            self.refuse(peer, answer)
        return True  # "mute" says nothing

    def refuse(self, peer: Peer, status: int, *, skewed: bool = False) -> None:
        """Answer with a status that is no success, and hang up."""
        after = self.mood.retry_after_s
        line = "" if after is None else f"Retry-After: {round(after)}\r\n"
        body = b'{"message":"simulated"}'
        text = f"HTTP/1.1 {status} Simulated\r\n{self.date()}{line}Content-Length: {len(body)}\r\n"
        source, address, life = self.source, self.address, peer.wire.life

        def read() -> None:
            now = trio.current_time()
            refusal = Refusal(source, address, life, status, now, after, skewed)
            self.truth.refusals.append(refusal)

        peer.wire.send(text.encode() + b"\r\n" + body, read)
        self.over(peer, "eof")

    def open(self, peer: Peer, head: str) -> None:
        """Accept a connection for the stream: from now on it is sent all messages."""
        session = Session(self.source, peer.wire, peer.wire.life, trio.current_time())

        def read() -> None:
            session.opened = trio.current_time()

        peer.wire.send(head.encode(), read)
        peer.session = session
        self.truth.sessions[self.source].append(session)

    # What happens to it

    def emit(self, kinds: list[str]) -> None:
        """Send messages of these kinds (see `Maker`) to all who are connected."""
        now = trio.current_time()
        messages = self.truth.messages[self.source]
        for kind in kinds:
            made = self.maker.make(kind, self.now_s())
            message = Message(
                self.source,
                len(messages),
                made.name,
                made.raw,
                made.event,
                now,
                max(now + self.delay_s, self.known_at),
            )
            messages.append(message)
            self.happened(message)
            data = self.framed(made)
            skip = self.skipping > 0
            self.skipping -= skip
            for peer in self.peers.values():
                if peer.session is None:
                    continue
                if peer.deaf or skip:
                    message.skipped = True
                    if self.remembers:
                        peer.wire.fault = "skip"
                    continue
                message.due = max(message.due, peer.wire.send(data, self.reading(message, peer)))

    def happened(self, message: Message) -> None:
        """Remember a message, where this upstream does."""

    def reading(self, message: Message, peer: Peer) -> Callable[[], None]:
        """Return what notes that a client has read a message."""

        return lambda: message.was_read(trio.current_time(), peer.wire.life)

    def behave(
        self, dial: str = "", answer: int | str = 0, retry_after_s: float | None = None
    ) -> None:
        """Change how dials and requests are answered; see `Mood`."""
        self.mood = Mood(dial, answer, retry_after_s)

    def strike(self, how: str, *, code: int = 1001, seconds: float = 0.0) -> None:
        """Do something to every connection.

        "eof", "reset", "torn" (in the middle of a message), "noise" (what no protocol has), "die",
        "stall" (for `seconds`), "deaf", "hears", "skip", "close" (with `code`, where there is one).
        """
        for peer in list(self.peers.values()):
            wire = peer.wire
            harmless = how in ("die", "hears", "stall") or (how == "deaf" and not self.remembers)
            if not harmless or seconds > 8:
                wire.fault = how
            if how == "die":
                wire.die()
            elif how == "stall":
                wire.stall(seconds)
            elif how == "skip":
                pass  # noted as the wire's fault: an audit may give it up for this
            elif how in ("deaf", "hears"):
                peer.deaf = how == "deaf"
            elif peer.session is None or not self.spoil(peer, how, code):
                self.over(peer, "reset" if how == "reset" else "eof")

    def spoil(self, peer: Peer, how: str, code: int) -> bool:
        """Do to an open stream what its protocol knows: "close", "torn", "noise"."""
        raise NotImplementedError
