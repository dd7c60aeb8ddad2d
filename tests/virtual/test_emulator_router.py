"""The router over memory streams, in virtual time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing
import trio_websocket
from attrs import Factory, define

from hypermux.core import signing
from hypermux.emulator import connection
from hypermux.emulator.control import Control
from hypermux.emulator.router import PATH, Account, Router, RouterSettings
from hypermux.model.accounts import Credential

START_NS = 1_700_000_000_000_000_000
ACCOUNTS = tuple(Account.derive("seed", n, ["east", "west"]) for n in (1, 2))


def now_ns() -> int:
    return START_NS + round(trio.current_time() * 1e9)


@define
class Bench:
    """A router with its files in memory, and clients for it."""

    nursery: trio.Nursery
    router: Router
    lines: list[bytes]
    log: list[dict[str, Any]] = Factory(list)
    news: list[str] = Factory(list)

    @classmethod
    def make(cls, nursery: trio.Nursery, **settings: Any) -> Bench:
        settings.setdefault("rate", 0)
        bench = cls(nursery, Router(RouterSettings(ACCOUNTS, **settings), now_ns), [])
        bench.router.manifest = bench.lines.append
        bench.router.accept_log = lambda line: bench.log.append(json.loads(line))
        bench.router.report = bench.news.append
        return bench

    @property
    def manifest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in b"".join(self.lines).splitlines()]

    def stream(self) -> trio.testing.MemoryStapled:  # type: ignore[name-defined]
        client, server = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.router.serve_stream, server)
        return client

    async def connect(
        self,
        number: int = 1,
        region: str = "east",
        filters: str = "",
        *,
        path: str = PATH,
        age_s: float = 0,
        secret: str | None = None,
        stream: trio.abc.Stream | None = None,
        nursery: trio.Nursery | None = None,
    ) -> trio_websocket.WebSocketConnection:
        account = ACCOUNTS[number - 1]
        query = f"filters={quote(filters, safe='')}" if filters else ""
        key = account.secret_key if secret is None else type(account.secret_key)(secret)
        signed = signing.sign(
            method="GET",
            host="localhost:8443",
            path=path,
            raw_query=query,
            credential=Credential(account.access_key, key),
            region=region,
            now_utc_s=now_ns() / 1e9 - age_s,
        )
        return await trio_websocket.wrap_client_stream(
            nursery or self.nursery,
            stream or self.stream(),  # type: ignore[arg-type]  # any stream will do
            "localhost:8443",
            f"{path}?{query}" if query else path,
            extra_headers=[(n.encode(), v.encode()) for n, v in signed.headers],
        )

    async def refused(self, *args: Any, **more: Any) -> trio_websocket.ConnectionRejected:
        """Connect in a nursery of its own, where the library raises, and return the refusal."""
        try:
            async with trio.open_nursery() as nursery:
                await self.connect(*args, **more, nursery=nursery)
                raise AssertionError("was accepted")
        except* trio_websocket.ConnectionRejected as group:
            (refusal,) = group.exceptions
        assert isinstance(refusal, trio_websocket.ConnectionRejected)
        return refusal

    def control(self, op: str, **more: Any) -> dict[str, Any]:
        return Control(self.router).handle({"op": op, **more})


def header(refusal: trio_websocket.ConnectionRejected, name: bytes) -> str:
    assert refusal.headers is not None
    return dict(refusal.headers)[name].decode()


async def messages(
    websocket: trio_websocket.WebSocketConnection, count: int
) -> Sequence[str | bytes]:
    with trio.fail_after(600):
        return [await websocket.get_message() for _ in range(count)]


async def test_traffic_comes_at_its_rate_in_time_order_and_is_in_the_manifest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, rate=10, events=50)
        websocket = await bench.connect()
        began_s = trio.current_time()
        got = await messages(websocket, 50)
        assert 4.8 <= trio.current_time() - began_s <= 5.1
        with trio.move_on_after(60) as idle:
            await websocket.get_message()
        assert idle.cancelled_caught
        raws = [
            line.partition(b'"event":')[2][:-1].decode()
            for line in b"".join(bench.lines).splitlines()
        ]
        assert raws == list(got)
        assert {(m["account"], m["region"], m["connection"]) for m in bench.manifest} == {
            ("acct-001", "east", 1)
        }
        times = [json.loads(m)["timeNano"] for m in got]
        assert times == sorted(set(times))
        assert bench.log == [
            {
                "time": START_NS,
                "account": "acct-001",
                "region": "east",
                "answer": 101,
                "reason": "",
                "connection": 1,
            }
        ]
        nursery.cancel_scope.cancel()


async def story() -> list[dict[str, Any]]:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, rate=100, events=200, dialect="mixed")
        await messages(await bench.connect(), 200)
        nursery.cancel_scope.cancel()
    events = [line["event"] for line in bench.manifest]
    for event in events:  # the second story begins later on the same clock
        for name in ("time", "timeNano", "Time", "TimeNano"):
            event.pop(name, None)
    return events


async def test_the_same_seed_tells_the_same_story(autojump_clock: trio.testing.MockClock) -> None:
    assert await story() == await story()


async def test_as_fast_as_it_takes(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, rate=math.inf, events=2000)
        websocket = await bench.connect()
        got = await messages(websocket, 2000)
        assert trio.current_time() < 1.0
        times = [json.loads(m)["timeNano"] for m in got]
        assert times == sorted(set(times))
        nursery.cancel_scope.cancel()


async def test_filters_select_what_is_sent_and_recorded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, rate=math.inf, events=2000)
        websocket = await bench.connect(filters='{"event":{"start":true,"die":true}}')
        await trio.sleep(1)
        count = len(bench.manifest)
        assert 200 < count < 1500
        got = await messages(websocket, count)
        assert {json.loads(m)["Action"] for m in got} == {"start", "die"}
        nursery.cancel_scope.cancel()


async def test_refusals(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        expected: list[tuple[int, str, dict[str, Any]]] = [
            (404, "page not found", {"path": "/events"}),
            (401, "does not match", {"secret": "wrong"}),
            (401, "expired", {"age_s": 301}),
            (401, "another region", {"region": "mars"}),
            (400, "unknown filter", {"filters": '{"type":{"container":true}}'}),
            (400, "not JSON", {"filters": "['a']"}),
        ]
        for status, text, how in expected:
            refusal = await bench.refused(**how)
            assert refusal.status_code == status
            assert refusal.body is not None
            assert text in json.loads(refusal.body)["message"]
            date = parsedate_to_datetime(header(refusal, b"date"))
            assert abs(date.timestamp() - now_ns() / 1e9) < 2
        assert [line["answer"] for line in bench.log] == [status for status, _, _ in expected]
        assert bench.log[3]["region"] == "mars"
        assert all(line["account"] == "acct-001" for line in bench.log)
        websocket = await bench.connect(age_s=-3600)  # a fast clock is not refused
        assert websocket.closed is None
        assert not bench.manifest
        nursery.cancel_scope.cancel()


async def test_limits(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, limit_connections=2, limit_rate=1.0, limit_burst=2)
        first = await bench.connect()
        await bench.connect(2)
        refusal = await bench.refused()
        assert (refusal.status_code, header(refusal, b"retry-after")) == (429, "1")
        await trio.sleep(10)
        refusal = await bench.refused()
        assert (refusal.status_code, header(refusal, b"retry-after")) == (429, "5")
        await first.aclose()
        await bench.connect()
        assert [line["answer"] for line in bench.log] == [101, 101, 429, 429, 101]
        nursery.cancel_scope.cancel()


async def test_limits_of_each_account(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, account_connections=2, account_rate=1.0, limit_burst=2)
        first = await bench.connect(1)
        await bench.connect(1)
        refusal = await bench.refused(1)
        assert (refusal.status_code, header(refusal, b"retry-after")) == (429, "5")
        await bench.connect(2)
        await first.aclose()
        refusal = await bench.refused(1)
        assert (refusal.status_code, header(refusal, b"retry-after")) == (429, "1")
        await trio.sleep(1)
        await bench.connect(1)
        assert [line["answer"] for line in bench.log] == [101, 101, 429, 101, 429, 101]
        nursery.cancel_scope.cancel()


async def test_containers_by_order_reach_all_connections_of_their_source(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        one, two = await bench.connect(), await bench.connect()
        starts = await bench.connect(filters='{"event":["start"]}')
        elsewhere = await bench.connect(region="west")
        where = {"account": "acct-001", "region": "east"}
        made = bench.control("create", **where, image="nginx:1", name="web", labels={"ü": "1"})
        assert made["ok"]
        assert made["sent"] == 2
        assert bench.control("start", **where, id=made["id"][:8])["sent"] == 3
        (shown,) = bench.control("ps", **where)["containers"]
        assert (shown["id"], shown["state"], shown["labels"]) == (made["id"], "running", {"ü": "1"})
        assert bench.control("stop", **where, id="web")["ok"]
        assert bench.control("remove", **where, id=made["id"])["ok"]
        assert bench.control("ps", **where)["containers"] == []
        got = await messages(one, 5)
        assert [json.loads(m)["Action"] for m in got] == [
            "create",
            "start",
            "die",
            "stop",
            "destroy",
        ]
        assert got == await messages(two, 5)
        assert await messages(starts, 1) == [got[1]]
        with trio.move_on_after(5) as quiet:
            await elsewhere.get_message()
        assert quiet.cancelled_caught
        counts = [c["sent"] for c in bench.control("connections")["connections"]]
        assert counts == [5, 5, 1, 0]
        nursery.cancel_scope.cancel()


async def test_emitted_events_go_out_as_they_are(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        plain = await bench.connect()
        picky = await bench.connect(filters='{"event":["pause"]}')
        line = (
            b'{"op":"emit","account":"acct-001","region":"east","events":'
            b'["garbage\\n\\u0007", {"Action":"pause",  "Time":1.47601746053364e+18}, "[1]",'
            b' "{\\n}"]}'
        )
        reply = json.loads(Control(bench.router).handle_line(line))
        assert reply == {"ok": True, "sent": 5}
        wanted = [
            "garbage\n\x07",
            '{"Action":"pause",  "Time":1.47601746053364e+18}',
            "[1]",
            "{\n}",
        ]
        assert await messages(plain, 4) == wanted
        assert await messages(picky, 1) == wanted[1:2]
        assert [m.get("text") for m in bench.manifest if m["connection"] == 1] == [
            wanted[0],
            None,
            "[1]",
            "{\n}",
        ]
        nursery.cancel_scope.cancel()


async def test_closing_and_dropping(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        one, two = await bench.connect(), await bench.connect(2)
        assert bench.control("close", code=1012, reason="bye", account="acct-001") == {
            "ok": True,
            "connections": [1],
        }
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await one.get_message()
        assert closed.value.reason is not None
        assert (closed.value.reason.code, closed.value.reason.reason) == (1012, "bye")
        assert bench.control("drop")["connections"] == [2]
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await two.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1006
        await trio.sleep(5)
        assert bench.router.connections == {}
        assert bench.news == []
        nursery.cancel_scope.cancel()


async def test_a_deaf_connection_answers_no_ping_and_goes_on_sending(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, rate=1)
        websocket = await bench.connect()
        nursery.start_soon(messages, websocket, 100)
        await websocket.ping()
        assert bench.control("deaf", on=True)["connections"] == [1]
        with trio.move_on_after(20) as silence:
            await websocket.ping(b"anyone?")
        assert silence.cancelled_caught
        assert bench.router.connections[1].sent >= 10
        bench.control("deaf", on=False)
        await websocket.ping()
        nursery.cancel_scope.cancel()


async def test_ordered_refusals_and_delays(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        bench.control("refuse", status=429, count=2, retry_after=30, account="acct-001")
        for _ in range(2):
            refusal = await bench.refused()
            assert (refusal.status_code, header(refusal, b"retry-after")) == (429, "30")
        bench.control("delay", seconds=7, region="east")
        began_s = trio.current_time()
        await bench.connect()
        assert trio.current_time() - began_s == pytest.approx(7)
        nursery.cancel_scope.cancel()


async def test_a_redirect_by_order(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        assert bench.control("refuse", status=302, location="https://elsewhere.test/")["ok"]
        refusal = await bench.refused()
        assert (refusal.status_code, header(refusal, b"location")) == (
            302,
            "https://elsewhere.test/",
        )
        assert not bench.control("refuse", status=302, location="a\r\nb: c")["ok"]


async def test_a_mute_connection_answers_and_loses_what_happens(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, rate=1)
        websocket = await bench.connect()
        await messages(websocket, 3)
        bench.control("mute", on=True)
        recorded = len(bench.manifest)
        with trio.move_on_after(60) as silence:
            await websocket.get_message()
        assert silence.cancelled_caught
        await websocket.ping()
        assert len(bench.manifest) == recorded
        other = await bench.connect()
        await messages(other, 3)
        nursery.cancel_scope.cancel()


async def test_another_key_by_order_and_open_connections_stay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery, rate=1)
        websocket = await bench.connect()
        assert bench.control("rekey", account="acct-001", secret="new")["ok"]
        assert (await bench.refused()).status_code == 401
        await bench.connect(secret="new")
        await bench.connect(2)
        await messages(websocket, 3)
        nursery.cancel_scope.cancel()


async def test_a_clock_by_order(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        assert bench.control("clock", seconds=86_400)["ok"]
        refusal = await bench.refused()
        assert refusal.status_code == 401
        ahead_s = parsedate_to_datetime(header(refusal, b"date")).timestamp() - now_ns() / 1e9
        assert ahead_s == pytest.approx(86_400, abs=2)
        await bench.connect(age_s=-86_400)
        bench.control("clock", seconds=-600)
        await bench.connect()
        nursery.cancel_scope.cancel()


async def test_a_day_old_connection_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        websocket = await bench.connect()
        began_s = trio.current_time()
        with pytest.raises(trio_websocket.ConnectionClosed):
            await websocket.get_message()
        assert trio.current_time() - began_s == pytest.approx(24 * 3600)
        nursery.cancel_scope.cancel()


async def test_a_reader_that_stops_ends_alone(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "QUEUE_EVENTS", 300)
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        await bench.connect()
        fine = await bench.connect()
        # A memory stream takes any number of bytes; this one is full from now on.
        below = bench.router.connections[1].stream._inner
        assert isinstance(below, trio.StapledStream)
        below.send_stream.send_all_hook = trio.sleep_forever
        for _ in range(5):
            bench.control(
                "emit", account="acct-001", region="east", events=[{"Action": "start"}] * 100
            )
            await messages(fine, 100)
        await trio.sleep(5)
        assert list(bench.router.connections) == [2]
        (news,) = bench.news
        assert "too slowly" in news
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
        b"GET /events/ws HTTP/1.1\r\n\r\n",
        b"GET /events/ws HTTP/1.1\r\nHost: x\r\n",
        b"POST /events/ws HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /events/ws HTTP/1.0\r\n\r\n",
        b"GET /events/ws?a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /events/ws HTTP/1.1\r\nno colon\r\n\r\n",
        b"A" * 100_000,
    ],
)
async def test_garbage_gets_an_answer_or_an_end(
    autojump_clock: trio.testing.MockClock, garbage: bytes
) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        client = bench.stream()
        await client.send_all(garbage)
        await client.send_eof()
        answer = b""
        while data := await client.receive_some(65536):
            answer += data
        if garbage:
            assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404")
            assert len(bench.log) == 1
    assert bench.news == []
    assert bench.router.connections == {}


async def test_broken_frames_end_one_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        client = bench.stream()
        await bench.connect(stream=client)
        await client.send_all(b"\xff\xff\xff\xff garbage, not masked")
        await trio.sleep(5)
        assert bench.router.connections == {}
        assert bench.news == []
        await bench.connect()
        nursery.cancel_scope.cancel()


async def test_a_shutdown_says_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench.make(nursery)
        websockets = [await bench.connect(), await bench.connect(2)]
        await bench.router.shutdown(3)
        assert bench.router.connections == {}
        for websocket in websockets:
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await websocket.get_message()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1012
        assert (await bench.refused()).status_code == 500
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"op":7}',
        b'{"op":"dance"}',
        b'{"op":"ps"}',
        b'{"op":"ps","account":"nobody","region":"east"}',
        b'{"op":"ps","account":"acct-001","region":"mars"}',
        b'{"op":"drop","acount":"acct-001"}',
        b'{"op":"close","code":1006}',
        b'{"op":"close","code":true}',
        b'{"op":"close","code":1000,"reason":"' + b"x" * 124 + b'"}',
        b'{"op":"refuse","status":200}',
        b'{"op":"delay","seconds":-1}',
        b'{"op":"deaf","on":1}',
        b'{"op":"create","account":"acct-001","region":"east"}',
        b'{"op":"create","account":"acct-001","region":"east","image":"x","labels":{"a":1}}',
        b'{"op":"create","account":"acct-001","region":"east","image":"x","dialect":"c"}',
        b'{"op":"start","account":"acct-001","region":"east","id":"none"}',
        b'{"op":"emit","account":"acct-001","region":"east","events":[1]}',
        b'{"op":"emit","account":"acct-001","region":"east","events":"x"}',
        b'{"op":' + b"[" * 5000,
    ],
)
def test_bad_orders_are_refused_in_words(line: bytes) -> None:
    control = Control(Router(RouterSettings(ACCOUNTS), lambda: START_NS))
    reply = json.loads(control.handle_line(line))
    assert reply["ok"] is False
    assert reply["error"]
