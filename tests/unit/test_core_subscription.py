"""The subscriber protocol and what it selects, without I/O."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core import lines
from hypermux.core.recording import Encoder, parse_rfc3339
from hypermux.core.request import BadRequest, Request
from hypermux.core.selection import Selection, Selector
from hypermux.core.subscription import (
    MAX_REQUEST,
    REQUEST_S,
    SILENCE_S,
    Answer,
    Conversation,
    Http,
    Opening,
    Refusal,
    end_line,
    opening,
    subscribed_line,
)
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Cursor, Event, Gap, Item, StateChange, Unparsed

PROD = SourceId("prod", "us-west-1")
DEV = SourceId("dev", "eu-central-1")
SECOND = 10**9
NOW_NS = 1_479_859_200 * SECOND


def encode(
    seq: int,
    item: Item | Checkpoint,
    source: SourceId | None = PROD,
    at_s: float = 100,
    **more: bool,
) -> bytes:
    at_ns = int(at_s * SECOND)
    return Encoder().encode(seq, item, source=source, at_ns=at_ns, received_ns=at_ns, **more)


def event(action: str = "start", time_s: int | None = None) -> Event:
    raw = b'{"Type":"container","Action":"%s","Actor":{"ID":"f2","Attributes":{"":"a","n":"]}"}}}'
    return Event(raw % action.encode(), None if time_s is None else time_s * SECOND, "timeNano")


def talk(*pieces: bytes) -> tuple[Answer | None, Conversation]:
    conversation = Conversation.begin(0.0)
    answer = None
    for piece in pieces:
        answer = conversation.receive(piece, 0.1, NOW_NS) or answer
    return answer, conversation


class TestConversation:
    def test_silence_means_live(self) -> None:
        conversation = Conversation.begin(5.0)
        assert conversation.deadline_s == 5.0 + SILENCE_S
        assert conversation.expire() == Request()
        assert conversation.deadline_s is None

    def test_end_of_input_means_live(self) -> None:
        assert Conversation.begin(0.0).end(NOW_NS) == Request()

    def test_a_request_line(self) -> None:
        answer, conversation = talk(b'{"after":"start","follow":false}\n')
        assert answer == Request("start", follow=False)
        assert conversation.deadline_s is None

    def test_a_request_without_a_line_feed_ends_with_the_input(self) -> None:
        answer, conversation = talk(b'{"limit":3}')
        assert answer is None
        assert conversation.end(NOW_NS) == Request(limit=3)

    def test_a_half_request_runs_out_of_time(self) -> None:
        answer, conversation = talk(b'{"af')
        assert answer is None
        assert conversation.deadline_s == pytest.approx(0.1 + REQUEST_S)
        refusal = conversation.expire()
        assert isinstance(refusal, Refusal)
        assert "10 s" in refusal.error

    def test_a_late_request_ends_live_mode(self) -> None:
        conversation = Conversation.begin(0.0)
        assert conversation.expire() == Request()
        assert conversation.receive(b"\n", 9.0, NOW_NS) is None
        assert conversation.receive(b'{"after":"start"', 10.0, NOW_NS) is None
        assert conversation.deadline_s == 10.0 + REQUEST_S
        assert conversation.receive(b"}\n", 11.0, NOW_NS) == Request("start")

    def test_one_request_a_connection(self) -> None:
        answer, conversation = talk(b"{}\n", b" \r\n")
        assert answer == Request()
        assert isinstance(conversation.receive(b"{}\n", 1.0, NOW_NS), Refusal)
        assert conversation.receive(b"{}\n", 1.0, NOW_NS) is None

    def test_the_end_of_input_changes_nothing_later(self) -> None:
        _, conversation = talk(b"{}\n")
        assert conversation.end(NOW_NS) is None

    def test_a_request_has_a_size(self) -> None:
        answer, conversation = talk(b"{" + b" " * (MAX_REQUEST - 1))
        assert answer is None
        assert isinstance(conversation.receive(b" ", 1.0, NOW_NS), Refusal)

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"hello\n", "send nothing"),
            (b"[1]\n", "send nothing"),
            (b"\x16\x03\x01", "send nothing"),
        ],
    )
    def test_anything_else_is_one_error_line(self, data: bytes, words: str) -> None:
        answer, _ = talk(data)
        assert isinstance(answer, Refusal)
        assert words in answer.error
        assert answer.line.count(b"\n") == 1
        assert json.loads(answer.line) == {
            "kind": "error",
            "cause": "request",
            "error": answer.error,
        }

    def test_http_ends_the_conversation(self) -> None:
        for data in (b"GET / HTTP/1.1\r\n", b"G"):
            answer, conversation = talk(b"\r\n", data)
            assert answer == Http(data)
            assert conversation.deadline_s is None
            assert conversation.receive(b"{}\n", 1.0, NOW_NS) is None
            assert conversation.end(NOW_NS) is None

    def test_http_in_a_live_stream_is_refused(self) -> None:
        conversation = Conversation.begin(0.0)
        conversation.expire()
        answer = conversation.receive(b"GET / HTTP/1.1\r\n\r\n", 5.0, NOW_NS)
        assert isinstance(answer, Refusal)
        assert "250 ms" in answer.error

    def test_opening(self) -> None:
        assert opening(b"{") is Opening.REQUEST
        assert opening(b"HEAD /_ping") is Opening.HTTP
        assert opening(b"DEL") is Opening.HTTP
        assert opening(b"DELAY") is Opening.OTHER

    @given(
        st.one_of(
            st.sampled_from(
                [
                    b'{"after":"start"}\n',
                    b'\n {"limit":1}\r\n\n',
                    b"{}\n{}\n",
                    b'{"no":1}\nx',
                    b"{",
                    b"{}",
                    b"GET / HTTP/1.0\r\n\r\n",
                ]
            ),
            st.binary(max_size=40),
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_one_chunk_and_byte_by_byte_agree(self, data: bytes) -> None:
        whole, one = talk(data)
        bytewise, other = talk(*(data[i : i + 1] for i in range(len(data))))
        if isinstance(bytewise, Http):
            # The first byte of a method says as much, and no more.
            assert isinstance(whole, Http | Refusal)
        elif isinstance(whole, Refusal) and isinstance(bytewise, Refusal):
            # Of what is no request the first byte may say less than the first few.
            assert (whole.cause, one.deadline_s) == (bytewise.cause, other.deadline_s)
        else:
            assert (whole, one.deadline_s) == (bytewise, other.deadline_s)
        ends = one.end(NOW_NS), other.end(NOW_NS)
        assert ends[0] == ends[1]

    def test_lines(self) -> None:
        live = subscribed_line(Request(), Cursor("ab", 7))
        assert live == b'{"kind":"subscribed","mode":"live","cursor":"ab:7"}\n'
        replay = subscribed_line(Request(after=Cursor("ab", 3)), Cursor("ab", 3))
        assert json.loads(replay)["mode"] == "replay"
        assert json.loads(end_line(Cursor("ab", 9))) == {"kind": "end", "cursor": "ab:9"}


class TestRequest:
    def test_everything(self) -> None:
        request = Request.parse(
            json.dumps(
                {
                    "after": "3f:12",
                    "since": "1970-01-01T00:00:01.000000002Z",
                    "until": 5,
                    "accounts": ["prod*"],
                    "regions": "us-*",
                    "kinds": ["event", "gap"],
                    "filters": {"event": ["start"]},
                    "follow": True,
                    "limit": 10,
                    "heartbeat": "1m30s",
                }
            ).encode(),
            NOW_NS,
        )
        assert request.after == Cursor("3f", 12)
        assert request.selection.since_ns == SECOND + 2
        assert request.selection.until_ns == 5 * SECOND
        assert request.selection.regions == ("us-*",)
        assert request.selection.filters
        assert request.limit == 10
        assert request.heartbeat_s == 90.0

    def test_durations_count_back_from_now(self) -> None:
        request = Request.parse(b'{"since":"1h30m","until":"0s"}', NOW_NS)
        assert request.selection.since_ns == NOW_NS - 5400 * SECOND
        assert request.selection.until_ns == NOW_NS

    @pytest.mark.parametrize(
        ("line", "after"),
        [
            (b"{}", "live"),
            (b'{"accounts":["a"]}', "live"),
            (b'{"since":"5"}', "start"),
            (b'{"follow":false}', "start"),
            (b'{"follow":false,"after":"live"}', "live"),
        ],
    )
    def test_where_it_begins(self, line: bytes, after: str) -> None:
        assert Request.parse(line, NOW_NS).after == after

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (b"{", "not JSON"),
            (b"[" * 50_000, "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[]", "one JSON object"),
            (b'{"account":["a"]}', 'did you mean "accounts"'),
            (b'{"\\u001b[31m":1}', "\\u001b"),
            (b'{"zzz":1}', "known are after, since"),
            (b'{"after":"1042"}', "EPOCH:SEQ"),
            (b'{"after":7}', "EPOCH:SEQ"),
            (b'{"since":"yesterday"}', "since: a time is written"),
            (b'{"until":1.5}', "until: a time is a text"),
            (b'{"kinds":["events"]}', 'did you mean "event"'),
            (b'{"accounts":[1]}', "accounts: a list of texts"),
            (b'{"filters":{"evnt":["a"]}}', "filters: "),
            (b'{"follow":1}', "follow: it is true or false"),
            (b'{"limit":0}', "limit: it is a number"),
            (b'{"limit":true}', "limit: it is a number"),
            (b'{"since":"10m","until":"20m"}', "until: it is before since"),
            (b'{"since":true}', "since: a time is a text"),
            (b'{"since":-5}', "since: a time is written"),
            (b'{"heartbeat":10}', 'heartbeat: a duration is a text, such as "30s"'),
            (b'{"heartbeat":"10"}', "heartbeat: a duration is written 90s, 10m or 1h30m"),
            (b'{"heartbeat":"999ms"}', "heartbeat: it is from 1 s to 1 h"),
            (b'{"heartbeat":"61m"}', "heartbeat: it is from 1 s to 1 h"),
        ],
    )
    def test_errors_say_what_would_be_right(self, line: bytes, words: str) -> None:
        with pytest.raises(BadRequest, match=re.escape(words)):
            Request.parse(line, NOW_NS)

    @given(st.binary(max_size=60))
    @settings(max_examples=150, deadline=None)
    def test_no_input_crashes_it(self, data: bytes) -> None:
        with_brace = b'{"since":' + data
        for line in (data, with_brace):
            with contextlib.suppress(BadRequest):
                Request.parse(line, NOW_NS)


def select(request: str, *records: bytes) -> list[int]:
    chosen, _ = Selector(Request.parse(request.encode(), NOW_NS).selection).select(
        b"".join(records)
    )
    return [lines.seq_of(line) for line in chosen.splitlines()]


STREAM = (
    encode(1, StateChange("start", "hypermux 0.1"), None),
    encode(2, event("start")),
    encode(3, event("die"), DEV),
    encode(4, Gap(95 * SECOND, 101 * SECOND, "dropped", "possible"), at_s=101),
    encode(5, Gap(95 * SECOND, 101 * SECOND, "dropped", "proven", 3), DEV, at_s=101),
    encode(6, Unparsed("oops", 4, "not JSON"), at_s=102),
    encode(7, Checkpoint(102 * SECOND), None, at_s=103),
    encode(8, event("die"), at_s=104),
)


class TestSelection:
    def test_removed_records_are_told_whatever_since_says(self) -> None:
        for cause, seqs in (("retention", [5]), ("rewritten", [5]), ("dropped", [])):
            gap = encode(5, Gap(0, 1 * SECOND, cause, "proven", 5), None, at_s=1)
            assert select('{"since":50}', gap) == seqs
            assert select('{"since":50,"until":60}', gap) == seqs

    def test_nothing_selected_passes_bytes_untouched(self) -> None:
        block = b"".join(STREAM)
        assert Selector(Selection()).select(block)[0] is block

    @pytest.mark.parametrize(
        ("request_line", "seqs"),
        [
            ('{"accounts":["prod"]}', [1, 2, 4, 6, 8]),
            ('{"accounts":["p*","d?v"]}', [1, 2, 3, 4, 5, 6, 8]),
            ('{"accounts":["ro"]}', [1]),
            ('{"regions":["eu-*"]}', [1, 3, 5]),
            ('{"kinds":["event"]}', [2, 3, 8]),
            ('{"kinds":["checkpoint"]}', [7]),
            ('{"kinds":["event"],"accounts":["dev"]}', [3]),
            # Loss and what could not be read may have matched.
            ('{"filters":{"event":["start"]}}', [1, 2, 4, 5, 6]),
            ('{"filters":{"event":["start"]},"kinds":["event"]}', [2]),
            ('{"since":102}', [6, 8]),
            ('{"since":"100.5"}', [4, 5, 6, 8]),
            ('{"until":100}', [1, 2, 3, 4, 5]),
            ('{"until":94}', []),
            ('{"since":96,"until":98}', [4, 5]),
        ],
    )
    def test_what_passes(self, request_line: str, seqs: list[int]) -> None:
        assert select(request_line, *STREAM) == seqs

    def test_there_may_be_more_names_than_are_kept(self) -> None:
        selection = Selection(accounts=("a*7", "b"), regions=("r",))
        for seq in [*range(1, 2200), *range(1, 2200)]:
            line = Encoder().encode(
                seq, event(), source=SourceId(f"a{seq}", "r"), at_ns=seq, received_ns=seq
            )
            assert selection.matches(line) == str(seq).endswith("7")

    def test_at_decides_and_not_time(self) -> None:
        line = encode(1, event(time_s=50))
        assert b'"at"' in line
        assert select('{"since":60}', line) == [1]

    def test_a_limit_counts_records_and_names_the_last(self) -> None:
        selector = Selector(Selection(), left=3)
        chosen, seq = selector.select(b"".join(STREAM[:2]))
        assert (chosen, seq) == (b"".join(STREAM[:2]), None)
        assert selector.select(b"".join(STREAM[2:])) == (STREAM[2], 3)
        assert selector.select(STREAM[3]) == (b"", None)

    @pytest.mark.parametrize(
        ("line", "over"),
        [
            (encode(1, event(), at_s=100), False),
            (encode(1, event(), at_s=101), True),
            (encode(1, event(), at_s=101, late=True), False),
            (encode(1, Checkpoint(100 * SECOND), None, at_s=200), False),
            (encode(1, Checkpoint(100 * SECOND + 1), None, at_s=50), True),
            (b"garbage\n", False),
        ],
    )
    def test_when_until_is_over(self, line: bytes, over: bool) -> None:
        selector = Selector(Selection(until_ns=100 * SECOND))
        selector.select(line)
        assert selector.past_until is over

    def test_what_cannot_be_judged_is_shown(self) -> None:
        broken = b'{"seq":1,"kind":"event","account":7,"event":{},"crc":"00000000"}\n'
        assert Selection(accounts=("prod",)).matches(broken)


class TestLines:
    def test_places_in_a_record(self) -> None:
        raw = b'{"a":",\\"event\\":{","event":{"x":1},"crc":"deadbeef"}'
        line = encode(12, Event(raw, None, "received"))
        assert lines.event_of(line) == raw
        assert lines.kind_of(line) == "event"
        assert lines.seq_of(line) == 12
        assert lines.last_seq(line + encode(13, event())) == 13
        head = lines.head_of(line)
        assert (head.account, head.region, head.late) == ("prod", "us-west-1", False)
        assert parse_rfc3339(head.time) == 100 * SECOND

    def test_other_kinds_have_no_event(self) -> None:
        assert lines.event_of(STREAM[6]) is None
        assert lines.kind_of(b"garbage") == ""
        with pytest.raises(ValueError, match="starts with its seq"):
            lines.seq_of(b'{"kind":"end"}')

    def test_an_account_cannot_imitate_the_payload(self) -> None:
        name = '","event":{"Action":"fake"},"crc":"'
        line = encode(1, event("real"), SourceId(name, "r"))
        assert lines.event_of(line) == event("real").raw
        assert lines.head_of(line).account == name

    def test_json_that_strict_parsers_refuse(self) -> None:
        assert lines.parse_event(b'{"a":"\\ud800","n":1e999}')["a"] == "\ud800"
        assert lines.parse_event(b"[]") == {}
        assert lines.parse_event(b'{"a":' + b"[" * 100_000) == {}
