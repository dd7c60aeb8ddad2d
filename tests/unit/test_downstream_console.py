"""What people see: nothing that a server sends steers their terminal, and no number changes."""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from datetime import UTC, date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core import rendering
from hypermux.core.recording import Encoder
from hypermux.core.rendering import LineRenderer, Palette, duration, escape, pretty
from hypermux.downstream.console import BrokenStdout, Formatter, StdoutWriter, palette
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DiskFault
from hypermux.model.records import Checkpoint, Event, Gap, Item, StateChange, Unparsed

PROD = SourceId("prod", "us-west-1")
NS = 1476375774255155116

DOCKER = {
    "status": "die",
    "id": "f296" * 16,
    "from": "xjimmyshcn/busybox",
    "Type": "container",
    "Action": "die",
    "Actor": {
        "ID": "f296" * 16,
        "Attributes": {"": "", "exitCode": "137", "image": "xjimmyshcn/busybox", "name": "test4"},
    },
    "time": 1476375774,
    "timeNano": NS,
}
POD = {
    "Action": "MODIFIED",
    "Actor": {"Attributes": {"ExitCode": "", "Image": "busybox", "Name": "test2"}, "Id": "d180"},
    "Status": "Running",
    "Type": "container",
}


def encode(item: Item | Checkpoint, source: SourceId | None = PROD, late: bool = False) -> bytes:
    return Encoder().encode(7, item, source=source, at_ns=NS, received_ns=NS, late=late)


def event(value: object, late: bool = False) -> bytes:
    raw = json.dumps(value, separators=(",", ":")).encode()
    return encode(Event(raw, NS, "timeNano"), late=late)


def render(line: bytes, colors: Palette = rendering.PLAIN) -> str:
    text = LineRenderer(colors, zone=UTC).render(line)
    assert text is not None
    return text


class TestLine:
    def test_a_docker_event(self) -> None:
        assert render(event(DOCKER)) == (
            "16:22:54.255 prod/us-west-1  container die  test4 (f296f296f296)"
            "  xjimmyshcn/busybox  exitCode=137"
        )

    def test_a_pod_event(self) -> None:
        assert render(event(POD)) == (
            "16:22:54.255 prod/us-west-1  container MODIFIED Running  test2 (d180)  busybox"
        )

    def test_what_is_said_once(self) -> None:
        digest = "sha256:" + "ab" * 32
        pull = {
            "Type": "image",
            "Action": "pull",
            "Actor": {"ID": digest, "Attributes": {"name": digest}},
        }
        assert render(event(pull)).endswith("image pull  abababababab")

    def test_flags(self) -> None:
        assert render(event(POD, late=True)).endswith("busybox  late")
        made_up = Event(json.dumps(POD).encode(), NS, "timeNano", synthetic=True)
        assert render(encode(made_up)).endswith("busybox  synthetic")

    def test_a_gap_stands_out(self) -> None:
        gap = Gap(NS - 12_300_000_000, NS, "dropped", "possible")
        assert render(encode(gap)) == (
            "16:22:54.255 prod/us-west-1  GAP 12.3 s, possible loss: dropped "
            "(16:22:41.955 to 16:22:54.255)"
        )
        counted = Gap(NS, NS, "overflow", "proven", 17)
        assert "GAP 0 ms, 17 events lost: overflow" in render(encode(counted))
        colors = Palette(gap=("<red>", "</red>"))
        assert "<red>GAP" in render(encode(gap), colors)

    def test_states(self) -> None:
        down = StateChange("down", "connection refused", "retry", "refused")
        assert render(encode(down)).endswith("  down (retry, refused): connection refused")
        start = render(encode(StateChange("start", "hypermux 0.1"), None))
        assert start == "16:22:54.255 hypermux  start: hypermux 0.1"

    def test_unparsed(self) -> None:
        text = render(encode(Unparsed("\x1b[31m", 99, "not JSON")))
        assert text.endswith(r"unparsed message of 99 bytes, not JSON: \x1b[31m")

    def test_checkpoints_are_not_shown(self) -> None:
        assert LineRenderer().render(encode(Checkpoint(NS), None)) is None

    def test_the_date_when_it_is_not_today(self) -> None:
        other = LineRenderer(zone=UTC, today=date(2016, 10, 14))
        assert (other.render(event(POD)) or "").startswith("2016-10-13 16:22:54.255 prod")

    def test_tags_line_up(self) -> None:
        renderer = LineRenderer(zone=UTC)
        renderer.render(event(POD))
        short = Encoder().encode(
            8, Event(b"{}", NS, "timeNano"), source=SourceId("a", "b"), at_ns=NS, received_ns=NS
        )
        assert (renderer.render(short) or "").startswith("16:22:54.255 a/b             {}")

    @pytest.mark.parametrize("value", [{}, [], 5, {"Actor": 7}, {"Action": ["x"], "Type": None}])
    def test_shapes_nobody_expects(self, value: object) -> None:
        assert json.dumps(value, separators=(",", ":")) in render(event(value))

    def test_a_broken_record_is_shown_as_it_is(self) -> None:
        assert render(b'{"seq":1,"kind":"gap",\x1b') == r'{"seq":1,"kind":"gap",\x1b'
        strange = b'{"seq":1,"kind":"gap","time":"never","from":"0001-01-01T00:00:00Z"}\n'
        assert "GAP of unknown length" in render(strange)
        assert "novel" in render(b'{"seq":1,"kind":"novel"}\n')

    def test_a_tag_keeps_its_colour(self) -> None:
        colors = Palette(tags=tuple((f"<{i}>", "") for i in range(7)))
        assert [colors.tag(f"account{i}/r")[0] for i in range(4)] == ["<1>", "<3>", "<6>", "<2>"]


HOSTILE = st.text(
    st.one_of(
        st.sampled_from("\x00\x07\x1b\x7f\x9b\n\r\t\u200b\u202e\u2066\u2028\ud800\U000e0041"),
        st.characters(),
    ),
    max_size=30,
)


class TestSafety:
    @given(HOSTILE)
    @settings(max_examples=150, deadline=None)
    def test_no_server_text_reaches_the_terminal_unescaped(self, text: str) -> None:
        hostile = {
            "Type": text,
            "Action": "x" + text,
            "Status": text,
            "id": text,
            "from": text,
            "Actor": {"ID": text, "Attributes": {"name": text, "image": text, "exitCode": text}},
        }
        clean = text.encode("utf-8", "replace").decode()
        for line in (
            event(hostile),
            event({text: text}),
            encode(Unparsed(clean, 9, clean)),
            encode(StateChange("down", clean, clean, clean)),
            encode(Gap(NS, NS, clean, "possible")),
        ):
            shown = render(line)
            assert shown.isprintable()
            assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in shown)
            for output in ("line", "pretty", "raw", "json"):
                printed = Formatter(output).format(line)
                assert b"\x1b" not in printed
                assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", printed)

    def test_escape(self) -> None:
        assert escape("plain é") == "plain é"
        assert escape("\x1b[2J\x9b\u202e\U000e0041\n") == r"\x1b[2J\x9b\u202e\U000e0041\x0a"
        assert len(escape("x" * 1000)) == rendering.MAX_FIELD

    def test_a_terminal_without_unicode(self) -> None:
        formatter = Formatter("line", LineRenderer(zone=UTC), encoding="ascii")
        assert rb"caf\xe9" in formatter.format(event({"Type": "caf\u00e9", "Action": "x"}))


class TestPretty:
    def test_numbers_and_texts_stay_as_they_are(self) -> None:
        raw = (
            b'{"timeNano":1476375774255155116,"f":1.47601746053364e+18,"e":{},"l":[],'
            b'"n":[1,{"x":-0.0}],"s":"a\\u001b, \\"b\\": {\\ud800","t":true}'
        )
        assert pretty(raw) == (
            b'{\n  "timeNano": 1476375774255155116,\n  "f": 1.47601746053364e+18,\n  "e": {},\n'
            b'  "l": [],\n  "n": [\n    1,\n    {\n      "x": -0.0\n    }\n  ],\n'
            b'  "s": "a\\u001b, \\"b\\": {\\ud800",\n  "t": true\n}\n'
        )

    @given(
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
            ),
            max_leaves=12,
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_as_the_standard_library_indents(self, value: object) -> None:
        assert pretty(json.dumps(value).encode()).decode() == json.dumps(value, indent=2) + "\n"

    def test_depth_is_no_matter(self) -> None:
        assert len(pretty(b"[" * 2000 + b"]" * 2000)) > 4000


class TestFormatter:
    def test_json_is_untouched(self) -> None:
        block = event(POD) + encode(Checkpoint(NS), None)
        assert Formatter("json").format(block) is block

    def test_raw_is_the_event_and_tells_losses_aside(self) -> None:
        aside: list[str] = []
        formatter = Formatter("raw", LineRenderer(zone=UTC), aside=aside.append)
        gap = encode(Gap(NS, NS, "overflow", "proven", 3))
        block = event(DOCKER) + gap + encode(Checkpoint(NS), None)
        assert formatter.format(block) == json.dumps(DOCKER, separators=(",", ":")).encode() + b"\n"
        assert len(aside) == 1
        assert "3 events lost" in aside[0]

    def test_line_is_a_line_each(self) -> None:
        block = event(POD) + encode(Checkpoint(NS), None) + event(DOCKER)
        assert Formatter("line").format(block).count(b"\n") == 2

    def test_pretty_is_the_record(self) -> None:
        assert json.loads(Formatter("pretty").format(event(DOCKER)))["event"] == DOCKER


class TestColors:
    def test_none_in_a_pipe(self) -> None:
        assert palette(io.StringIO()) == rendering.PLAIN

    def test_when_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        colors = palette(io.StringIO(), "always")
        assert colors.gap[0].startswith("\x1b[")
        assert colors.gap[1] == "\x1b[0m"
        assert len({paint for paint, _ in colors.tags}) == len(colors.tags) > 8
        assert palette(io.StringIO(), "never") == rendering.PLAIN

    def test_a_dumb_terminal_asked_for_colours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        assert palette(io.StringIO(), "always").gap[0].startswith("\x1b[")

    def test_no_color(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert palette(Terminal()) != rendering.PLAIN
        monkeypatch.setenv("NO_COLOR", "1")
        assert palette(Terminal()) == rendering.PLAIN


class TestDuration:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (-1, "0 ms"),
            (0.34, "340 ms"),
            (12.34, "12.3 s"),
            (60, "1 min"),
            (245, "4 min 5 s"),
            (7380, "2 h 3 min"),
            (93_600, "1 d 2 h"),
        ],
    )
    def test_for_people(self, seconds: float, text: str) -> None:
        assert duration(int(seconds * 1e9)) == text


class TestWriter:
    def test_all_of_it(self) -> None:
        reader, writer = os.pipe()
        StdoutWriter(writer).write(b"abc\n")
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert pipe.read() == b"abc\n"

    def test_nobody_reads(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with pytest.raises(BrokenStdout):
            StdoutWriter(writer).write(b"abc\n")
        os.close(writer)

    def test_a_full_disk_is_a_fault(self) -> None:
        with open("/dev/full", "wb", buffering=0) as full, pytest.raises(DiskFault, match="space"):
            StdoutWriter(full.fileno()).write(b"abc\n")
