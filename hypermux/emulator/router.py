"""The local API router: handshakes, and the connections that came of them.

A handshake is judged in this order: the path (404), a refusal ordered by `control`, the upgrade
headers (400), the rate (429), the signature and its region (401), the filters (400), the number
of connections and the account's own rate (429). Each is one line of the accept log, written before
the answer goes out.

Nothing here reads a clock or a random source of its own: `now_ns` and the seed are given, and
pacing follows trio's clock, so that the same router runs in virtual time over memory streams.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import trio
import trio_websocket
import wsproto.utilities
from attrs import Factory, define, evolve, field, frozen

from hypermux.core.filters import HYPER_FIELDS, FilterError, Filters
from hypermux.emulator import handshake
from hypermux.emulator.connection import Connection, Goodbye, Message, Sink, Stamper
from hypermux.emulator.containers import EventText, Fleet
from hypermux.emulator.faults import HandshakeFaults, RateLimit
from hypermux.emulator.handshake import Answer, BadRequest
from hypermux.emulator.stream import ServerStream, close_stream
from hypermux.emulator.traffic import Traffic
from hypermux.emulator.verify_signature import (
    Claim,
    Request,
    SignatureRefused,
    query_values,
    read_claim,
    verify,
)
from hypermux.model.accounts import Secret

PATH = "/events/ws"

# Covers TCP's and TLS's part too; what takes longer is no client of ours.
HANDSHAKE_DEADLINE_S = 10.0
# A refused client is given this long to read the answer before the stream is closed.
LINGER_S = 1.0
# The answer when all slots are taken: nobody knows when one will be free.
SLOT_RETRY_S = 5
# The real service closed every socket after a day.
MAX_AGE_S = 24 * 3600.0
# How clients may end, with or without manners: no news.
_ENDINGS = (
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    wsproto.utilities.ProtocolError,
)


@frozen
class Account:
    """An account of the router: what a client needs to sign as it."""

    name: str
    access_key: str
    secret_key: Secret = field(repr=False)
    regions: tuple[str, ...]

    @classmethod
    def derive(cls, seed: str, number: int, regions: Sequence[str]) -> Account:
        """Make the account of that number; its keys follow from the seed."""
        name = f"acct-{number:03d}"
        digest = hmac.digest(seed.encode(), name.encode(), "sha512")
        access = base64.b32encode(digest[:15]).decode()
        secret = base64.b64encode(digest[15:45], b"Zz").decode()
        return cls(name, access, Secret(secret), tuple(regions))


@frozen
class RouterSettings:
    """What a router does. `rate`: events per second and connection; infinity: as fast as it goes.

    `shared`: a source's traffic goes to all its connections alike, as the real service's did;
    otherwise each has its own, which depends on nobody else, so that it can be foretold.
    `events` ends a connection's own traffic after so many, None never. `limit_rate` is handshakes
    per second with `limit_burst` at once; `limit_connections` counts all. The same of each account,
    with the same burst, are `account_rate` and `account_connections`. None: no limit.
    """

    accounts: tuple[Account, ...]
    rate: float = 1.0
    shared: bool = False
    events: int | None = None
    seed: str = "0"
    dialect: str = "a"
    limit_connections: int | None = None
    limit_rate: float | None = None
    limit_burst: int = 1
    account_connections: int | None = None
    account_rate: float | None = None
    max_age_s: float = MAX_AGE_S


@define(eq=False)
class RouterSource:
    """What the router knows of one account and region."""

    fleet: Fleet
    stamper: Stamper = Factory(Stamper)
    opened: int = 0
    traffic: Traffic | None = None


def _silent(text: str) -> None:
    """Report nothing."""


@define(eq=False)
class Router:
    """Serves streams. `manifest` and `accept_log` take whole NDJSON lines, `report` news."""

    settings: RouterSettings
    now_ns: Callable[[], int]
    manifest: Sink | None = None
    accept_log: Sink | None = None
    report: Callable[[str], None] = _silent
    faults: HandshakeFaults = Factory(HandshakeFaults)
    connections: dict[int, Connection] = Factory(dict)
    ahead_ns: int = 0  # how far the clock is off that handshakes are judged and dated by
    _sources: dict[tuple[str, str], RouterSource] = Factory(dict)
    _by_key: dict[str, Account] = Factory(dict)
    _rate: RateLimit | None = None
    _account_rates: dict[str, RateLimit] = Factory(dict)
    _opened: int = 0
    _emptied: trio.Event | None = None  # there from the beginning of a shutdown on

    def __attrs_post_init__(self) -> None:
        settings = self.settings
        if settings.limit_rate is not None:
            self._rate = RateLimit(settings.limit_rate, settings.limit_burst)
        for account in settings.accounts:
            self._by_key[account.access_key] = account
            if settings.account_rate is not None:
                rate = RateLimit(settings.account_rate, settings.limit_burst)
                self._account_rates[account.name] = rate
            for region in account.regions:
                rng = random.Random(f"{settings.seed}/{account.name}/{region}/containers")
                self._sources[account.name, region] = RouterSource(Fleet(rng))

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts: name, access key, secret key, regions."""
        return self.settings.accounts

    @property
    def _dated_ns(self) -> int:
        return self.now_ns() + self.ahead_ns

    def rekey(self, account: str, secret: Secret) -> None:
        """Check what comes from now on with another secret key; open connections stay."""
        for key, known in self._by_key.items():
            if known.name == account:
                self._by_key[key] = evolve(known, secret_key=secret)

    def source(self, account: str, region: str) -> RouterSource:
        """Return that source. Raises KeyError when there is none."""
        return self._sources[account, region]

    def happen(self, account: str, region: str, texts: Sequence[EventText]) -> int:
        """Send what happened now to the source's connections; returns how many messages that is."""
        stamper = self.source(account, region).stamper
        total = 0
        for text in texts:
            message = Message(text.at(stamper.stamp(self.now_ns())))
            for connection in self.connections_of(account, region):
                if not connection.filters or text.passes(connection.filters):
                    connection.offer(message)
                    total += 1
        return total

    def publish(self, account: str, region: str, message: Message, event: object) -> int:
        """Send a message as it is to the source's connections whose filters select `event`.

        What is no event (not a mapping) passes where there is no filter. Returns how many got it.
        """
        total = 0
        for connection in self.connections_of(account, region):
            filters = connection.filters
            if not filters or (isinstance(event, Mapping) and filters.matches(event)):
                connection.offer(message)
                total += 1
        return total

    def connections_of(self, account: str, region: str) -> list[Connection]:
        """Return the source's connections, oldest first."""
        return [c for c in self.connections.values() if (c.account, c.region) == (account, region)]

    async def shutdown(self, deadline_s: float) -> None:
        """Close all connections with 1012, as a restarting server; for `deadline_s` at most."""
        self._emptied = trio.Event()
        for connection in self.connections.values():
            connection.end(Goodbye(1012, "the router stops"))
        if self.connections:
            with trio.move_on_after(deadline_s):
                await self._emptied.wait()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one client from its handshake to its end, and close the stream.

        Whatever the client does ends this call quietly; what should not happen is reported.
        """
        try:
            await self._serve(stream)
        except* _ENDINGS:
            pass
        except* Exception as group:
            for problem in group.exceptions:
                self.report(f"a connection ended by {type(problem).__name__}: {problem}")
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        claim: Claim | None = None
        try:
            with trio.move_on_after(HANDSHAKE_DEADLINE_S) as deadline:
                read = await handshake.read_head(stream)
            if deadline.cancelled_caught or read is None:
                return
            request = handshake.parse_head(read[0])
            claim = self._claim(request)
            await trio.sleep(self.faults.delay_of(*self._who(claim)))
            admitted = self._judge(request, claim, stream, read[1])
        except BadRequest as problem:
            admitted = Answer(400, str(problem))
        if isinstance(admitted, Answer):
            self._log(claim, admitted, None)
            await self._refuse(stream, admitted)
            return
        try:
            self._log(claim, Answer(101), admitted.number)
            await self._run(admitted)
        finally:
            del self.connections[admitted.number]
            if self._emptied is not None and not self.connections:
                self._emptied.set()

    def _judge(
        self, request: Request, claim: Claim | None, stream: trio.abc.Stream, behind: bytes
    ) -> Answer | Connection:
        """Decide about a handshake; an admitted one is a connection, counted from here on."""
        settings = self.settings
        if self._emptied is not None:
            return Answer(500, "the router stops")
        if request.path != PATH:
            return Answer(404, "page not found")
        ordered = self.faults.refusal(*self._who(claim))
        if ordered is not None:
            return ordered
        key = handshake.websocket_key(request)
        if self._rate is not None and (wait_s := self._rate.admit(trio.current_time())) > 0:
            return Answer(429, "too many requests", max(1, math.ceil(wait_s)))
        try:
            account, region = self._authenticate(request)
            filters = _filters(request)
        except SignatureRefused as problem:
            return Answer(401, str(problem))
        except FilterError as problem:
            return Answer(400, str(problem))
        if self._full(settings.limit_connections, None):
            return Answer(429, "too many connections", SLOT_RETRY_S)
        if self._full(settings.account_connections, account):
            return Answer(429, "too many connections of this account", SLOT_RETRY_S)
        own = self._account_rates.get(account)
        if own is not None and (wait_s := own.admit(trio.current_time())) > 0:
            return Answer(429, "too many requests of this account", max(1, math.ceil(wait_s)))
        # Whatever the client sent behind its request belongs to the WebSocket.
        below = ServerStream(stream, handshake.plain_upgrade(key) + behind)
        return self._admit(account, region, filters, below)

    def _authenticate(self, request: Request) -> tuple[str, str]:
        def secret_of(key: str) -> Secret | None:
            account = self._by_key.get(key)
            return None if account is None else account.secret_key

        claim = verify(request, secret_of, self._dated_ns)
        account = self._by_key[claim.access_key]
        if claim.region not in account.regions:
            raise SignatureRefused("the signature is for another region")
        return account.name, claim.region

    def _admit(
        self, account: str, region: str, filters: Filters, stream: ServerStream
    ) -> Connection:
        settings = self.settings
        source = self.source(account, region)
        self._opened += 1
        source.opened += 1
        traffic = source.traffic
        if traffic is None:
            rng = random.Random(f"{settings.seed}/{account}/{region}/{source.opened}")
            traffic = Traffic(
                rng, settings.rate, settings.events, settings.dialect, trio.current_time()
            )
            if settings.shared:
                source.traffic = traffic
        elif not self.connections_of(account, region):
            traffic.resume(trio.current_time())
        connection = Connection(
            number=self._opened,
            account=account,
            region=region,
            ordinal=source.opened,
            filters=filters,
            stream=stream,
            traffic=traffic,
            opened_ns=self.now_ns(),
            now_ns=self.now_ns,
            stamper=source.stamper,
            manifest=self.manifest,
            report=self.report,
            sharers=partial(self.connections_of, account, region) if settings.shared else None,
        )
        self.connections[connection.number] = connection
        return connection

    async def _run(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(HANDSHAKE_DEADLINE_S) as deadline:
                request = await trio_websocket.wrap_server_stream(nursery, connection.stream)
                date = handshake.http_date(self._dated_ns).encode()
                websocket = await request.accept(extra_headers=[(b"Date", date)])
            if not deadline.cancelled_caught:
                await connection.run(websocket, self.settings.max_age_s)
            nursery.cancel_scope.cancel()

    async def _refuse(self, stream: trio.abc.Stream, answer: Answer) -> None:
        with trio.move_on_after(HANDSHAKE_DEADLINE_S):
            await stream.send_all(answer.encode(self._dated_ns))
            # Closing over unread bytes would reset the connection and lose the answer.
            with trio.move_on_after(LINGER_S):
                while await stream.receive_some(handshake.MAX_HEAD):
                    pass
            await close_stream(stream)

    def _full(self, most: int | None, account: str | None) -> bool:
        """Say whether an account, or with None all, has as many connections as there may be."""
        if most is None:
            return False
        live = (c for c in self.connections.values() if not c.over)
        return sum(account in (None, c.account) for c in live) >= most

    def _claim(self, request: Request) -> Claim | None:
        try:
            return read_claim(request)
        except SignatureRefused:
            return None

    def _who(self, claim: Claim | None) -> tuple[str | None, str | None]:
        """Return who a handshake says it is: its account's name and region."""
        if claim is None:
            return None, None
        account = self._by_key.get(claim.access_key)
        return (None if account is None else account.name), claim.region

    def _log(self, claim: Claim | None, answer: Answer, number: int | None) -> None:
        if self.accept_log is None:
            return
        account, region = self._who(claim)
        line = {
            "time": self.now_ns(),
            "account": account,
            "region": region,
            "answer": answer.status,
            "reason": answer.reason,
            "connection": number,
        }
        self.accept_log(json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _filters(request: Request) -> Filters:
    for name, value in query_values(request.target.partition("?")[2]):
        if name == b"filters":
            try:
                return Filters.parse_json(value.decode(), fields=HYPER_FIELDS)
            except UnicodeDecodeError:
                raise FilterError("the filters are not UTF-8") from None
    return Filters()
