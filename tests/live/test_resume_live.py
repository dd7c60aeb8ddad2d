"""What happens on a real engine while nobody listens: the whole service, ended and started."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dockerd
import pytest
from attrs import define, field
from processes import FAST, HYPERMUX, Place, end, place, service, wait_until

from hypermux.core.recording import parse_rfc3339
from hypermux.core.resume import AUDIT_EVENTS, AUDIT_MIN_S, AUDIT_S, RING
from hypermux.upstream.docker_memory import ANSWER_S, SECOND_LOOK_S

pytestmark = [pytest.mark.live, pytest.mark.slow]


@define
class Watch:
    """A service that watches one engine, over as many lives as a test gives it."""

    engine: dockerd.Engine
    place: Place

    @classmethod
    def of(
        cls, engine: dockerd.Engine, directory: Path, *more: str, url: str | None = None
    ) -> Watch:
        account = [
            "[accounts.ci]",
            'upstream = "docker"',
            f'hosts = {{ lab = "{url or engine.url}" }}',
            *more,
        ]
        return cls(engine, place(directory, None, FAST, *account))

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run it, from up on."""
        before = self.states.count("up")
        with service(self.place) as child:
            wait_until(lambda: self.states.count("up") > before, "the source to be up")
            yield child

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for record in self.place.records if record.get("account") == "ci"]

    @property
    def states(self) -> list[str]:
        return [record["state"] for record in self.records if record["kind"] == "state"]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == "gap"]

    def events(self, **flags: bool) -> list[dict[str, Any]]:
        """Return the events, of `replayed=True` those alone, likewise `synthetic`."""
        return [
            record["event"]
            for record in self.records
            if record["kind"] == "event"
            and all(record.get(flag, False) is wanted for flag, wanted in flags.items())
        ]

    def created(self, **flags: bool) -> list[str]:
        """Return the names of the volumes created, in the stream's order."""
        return [
            event["Actor"]["ID"]
            for event in self.events(**flags)
            if (event["Type"], event["Action"]) == ("volume", "create")
        ]

    def see_volume(self, prefix: str) -> None:
        """Create a volume while it runs, and wait for it; Podman names it elsewhere."""
        (name,) = self.engine.volumes(prefix, 1)
        wait_until(
            lambda: any(f'"{name}"' in json.dumps(event) for event in self.events()),
            f"{name} in the stream",
        )

    def see(self, prefix: str, count: int = 1) -> list[str]:
        """Create volumes while it runs, and wait for them."""
        names = self.engine.volumes(prefix, count)
        wait_until(lambda: names[-1] in self.created(), f"{names[-1]} in the stream")
        return names


@define(eq=False)
class Relay:
    """Passes connections on to an engine's socket, as long as it is open."""

    engine: Path
    path: Path
    _listening: socket.socket | None = None
    _passing: list[socket.socket] = field(factory=list)

    def __enter__(self) -> Relay:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def open(self) -> None:
        """Take connections."""
        self._listening = listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.path))
        listening.listen()
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def cut(self) -> None:
        """Take no more, and cut those that are there."""
        self.path.unlink(missing_ok=True)
        for sock in (self._listening, *self._passing):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._passing.clear()

    def _accept(self, listening: socket.socket) -> None:
        with listening, contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self.engine))
                self._passing = [s for s in self._passing if s.fileno() >= 0] + [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with one, contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with dockerd.running_dockerd() as engine:
        yield Watch.of(engine, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_hundred_events_while_down_all_come_once_without_a_gap(
    watch: Watch, number: signal.Signals
) -> None:
    with watch.running() as child:
        names = watch.see("before")
        end(child, number)
    names += watch.engine.volumes("down", 100)
    with watch.running():
        names += watch.see("after")
    assert watch.created() == names
    assert len(watch.created(replayed=True)) == 100
    assert [gap["cause"] for gap in watch.gaps] == ["start"]


def test_three_hundred_events_while_down_are_one_possible_gap(watch: Watch) -> None:
    with watch.running() as child:
        watch.see("before")
        end(child, signal.SIGKILL)
    names = watch.engine.volumes("down", 300)
    with watch.running():
        watch.see("after")
    assert watch.created(replayed=True) == names[-256:]
    assert max(Counter(watch.created()).values()) == 1
    first, second = watch.gaps
    assert (first["cause"], second["cause"]) == ("start", "restart")
    assert (second["certainty"], "lost" in second) == ("possible", False)


def test_events_before_our_time_are_not_ours(watch: Watch) -> None:
    watch.engine.volumes("old", 10)
    # The engine's `Date` tells its clock to a second: what is no older may be on the live stream.
    second = int(time.time()) + 1
    wait_until(lambda: time.time() > second, "the next second")
    with watch.running() as child:
        end(child, signal.SIGKILL)
    names = watch.engine.volumes("down", 5)
    with watch.running() as child:
        end(child)
    assert watch.created() == names
    assert [gap["cause"] for gap in watch.gaps] == ["start"]  # the ring reaches back before us


def test_lives_follow_each_other(watch: Watch) -> None:
    names: list[str] = []
    for life in range(4):
        with watch.running() as child:
            names += watch.see(f"seen{life}", 3)
            end(child, signal.SIGKILL)
        names += watch.engine.volumes(f"unseen{life}", 20)
    with watch.running():
        pass
    assert watch.created() == names
    assert len(watch.gaps) == 1


def test_a_reload_that_connects_an_engine_anew_misses_nothing(watch: Watch) -> None:
    reload = [*HYPERMUX, "reload", "--socket", str(watch.place.socket)]
    with watch.running() as child:
        seen = watch.see("before", 2)
        text = watch.place.config.read_text()
        # What is left out here needs no new connection; what the engine is asked for does.
        for line, told in (
            ('exclude_events = ["exec_*"]', "changed ci/lab: exclude_events\n"),
            ('filters = { type = ["volume"] }', "changed ci/lab: filters, connected anew\n"),
        ):
            ups = watch.states.count("up")
            text = text.replace("[accounts.ci]", f"[accounts.ci]\n{line}")
            watch.place.config.write_text(text)
            done = subprocess.run(reload, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout) == (0, told), done.stderr
            names = watch.engine.volumes("meanwhile", 3)
            if "anew" in told:
                wait_until(lambda ups=ups: watch.states.count("up") > ups, "up again")  # type: ignore[misc]
            seen += [*names, *watch.see("after")]
        assert end(child) == 0
    assert Counter(watch.created()) == Counter(seen)
    assert [gap["cause"] for gap in watch.gaps if gap["cause"] != "start"] == []


def test_an_engine_that_is_restarted_is_one_gap(watch: Watch) -> None:
    with watch.running():
        names = watch.see("before", 3)
        watch.engine.stop()
        watch.engine.start()
        wait_until(lambda: watch.states[-1] == "up" and len(watch.gaps) == 2, "the second up")
        names += watch.see("after", 3)
    assert watch.created() == names
    assert [gap["cause"] for gap in watch.gaps] == ["start", "dropped"]
    assert watch.states.count("up") == 2


def test_a_dead_connection_is_bridged_without_a_gap(watch: Watch, tmp_path: Path) -> None:
    with Relay(watch.engine.socket, tmp_path / "relay.sock") as relay:
        other = Watch.of(watch.engine, tmp_path, url=f"unix://{relay.path}")
        with other.running():
            names = other.see("before", 3)
            relay.cut()
            wait_until(lambda: other.states[-1] == "down", "down")
            names += watch.engine.volumes("cut", 50)
            relay.open()
            wait_until(lambda: other.states[-1] == "up", "up")
            names += other.see("after", 3)
    assert other.created() == names
    assert len(other.gaps) == 1


def test_an_engine_that_stands_still_is_noticed_and_then_bridged(watch: Watch) -> None:
    with watch.running():
        names = watch.see("many", AUDIT_EVENTS)  # an audit is due soon
        watch.engine.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        try:
            wait_until(lambda: watch.states[-1] == "down", "down", AUDIT_MIN_S + ANSWER_S + 10)
            assert time.monotonic() - begun < AUDIT_MIN_S + ANSWER_S + 5
        finally:
            watch.engine.process.send_signal(signal.SIGCONT)
        names += watch.engine.volumes("back", 20)
        wait_until(lambda: watch.states[-1] == "up", "up", 60)
        names += watch.see("after")
    assert watch.created() == names
    down = next(r for r in reversed(watch.records) if r.get("cause") == "silent")
    assert "did not answer a ping" in down["reason"]
    assert len(watch.gaps) == 1


class Containers:
    """Containers of a real engine, run by its client."""

    def __init__(self, engine: dockerd.Engine) -> None:
        self.engine = engine
        engine.import_image()

    def run(self, name: str) -> None:
        command = (dockerd.IMAGE, "/bin/busybox", "sleep", "1000")
        self.engine.run(
            "run", "--detach", f"--name={name}", "--network=none", *dockerd.LIMITS, *command
        )

    def end(self, name: str) -> None:
        self.engine.run("kill", name)
        wait_until(lambda: not self.look(name)["State"]["Running"], f"{name} to end")

    def look(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.engine.ask("GET", f"/containers/{name}/json"))
        return found


def lives(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the names and actions of the events of containers' lives."""
    return [
        (event["Actor"]["Attributes"]["name"], event["Action"])
        for event in events
        if event["Type"] == "container" and event["Action"] in LIFE
    ]


LIFE = ("create", "start", "die", "destroy")


def test_containers_tell_what_the_ring_has_lost(watch: Watch) -> None:
    containers = Containers(watch.engine)
    containers.run("ancient")  # before our time
    with watch.running() as child:
        for name in ("ends", "goes", "stays", "again"):
            containers.run(name)
        watch.see("before")
        end(child, signal.SIGKILL)
    containers.run("born")
    containers.end("ends")
    watch.engine.run("rm", "--force", "goes")
    watch.engine.run("restart", "--time=0", "again")
    containers.run("short")
    watch.engine.run("rm", "--force", "short")
    watch.engine.volumes("flood", 300)
    with watch.running():
        containers.run("after")
        wait_until(lambda: ("after", "start") in lives(watch.events()), "the last start")
        watch.engine.run("rm", "--force", "after", "born")
        wait_until(lambda: ("born", "destroy") in lives(watch.events()), "the last removal")
    made_up = watch.events(synthetic=True)
    assert sorted(lives(made_up)) == [
        ("again", "die"), ("again", "start"), ("born", "create"), ("born", "start"),
        ("ends", "die"), ("goes", "destroy"), ("goes", "die"),
    ]  # fmt: skip
    assert lives(made_up)[-2:] == [("goes", "die"), ("goes", "destroy")]
    for name, action, where in [("ends", "die", "FinishedAt"), ("again", "start", "StartedAt")]:
        (event,) = (e for e in made_up if lives([e]) == [(name, action)])
        assert event["timeNano"] == parse_rfc3339(containers.look(name)["State"][where])
    every = Counter(lives(watch.events()))
    assert every.pop(("again", "start")) == 2
    assert set(every.values()) == {1}
    assert ("ancient", "create") not in every
    assert ("short", "create") not in every  # of this one nothing is left
    assert [gap["cause"] for gap in watch.gaps] == ["start", "restart"]


def test_an_engine_s_restart_ends_containers(watch: Watch) -> None:
    containers = Containers(watch.engine)
    with watch.running():
        containers.run("ends")
        watch.see("before")
        watch.engine.stop()
        watch.engine.start()
        wait_until(lambda: watch.states.count("up") == 2, "the second up")
        watch.see("after")
    assert Counter(lives(watch.events()))["ends", "die"] == 1
    assert len(watch.gaps) == 2


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Watch]:
    with dockerd.running_podman() as engine:
        yield Watch.of(engine, tmp_path)


def test_podman_bridges_any_number_of_events_and_its_own_restart(podman: Watch) -> None:
    containers = Containers(podman.engine)
    with podman.running() as child:
        containers.run("one")
        podman.see_volume("before")
        end(child, signal.SIGKILL)
    podman.engine.stop()
    podman.engine.start()
    containers.end("one")
    podman.engine.volumes("down", 300)
    with podman.running():
        podman.see_volume("after")
    made = [e for e in podman.events() if (e["Type"], e["Action"]) == ("volume", "create")]
    names = [event["Actor"]["Attributes"]["name"] for event in made]
    assert names == ["before-000", *(f"down-{n:03}" for n in range(300)), "after-000"]
    assert Counter(lives(podman.events())) == {
        ("one", "create"): 1, ("one", "start"): 1, ("one", "die"): 1,
    }  # fmt: skip
    assert podman.events(synthetic=True) == []
    assert len(podman.gaps) == 1


def test_what_an_engine_dropped_comes_with_an_audit(watch: Watch) -> None:
    """A reader that stands still loses events, and makes the engine take 100 ms for each."""
    with watch.running() as child:
        names = watch.see("before", 3)
        child.send_signal(signal.SIGSTOP)
        try:
            dropped = 0
            while dropped < 20:
                assert len(names) < 5000, "the engine drops nothing"
                begun = time.monotonic()
                names += watch.engine.volumes(f"stalled-{len(names):04}", 1)
                dropped += time.monotonic() - begun > 0.09
        finally:
            child.send_signal(signal.SIGCONT)
        names += watch.engine.volumes("after", 3)
        patience_s = AUDIT_S + SECOND_LOOK_S + 5
        wait_until(lambda: len(watch.created()) == len(names), "all events", patience_s)
    assert sorted(watch.created()) == sorted(names)
    assert watch.created(replayed=True)
    assert watch.states == ["down", "up", "down"]
    # More came than the ring holds: what else the stream lost, it cannot tell.
    doubt = ["audit"] if len(names) > RING else []
    assert [gap["cause"] for gap in watch.gaps] == ["start", *doubt]
    assert all(gap["certainty"] == "possible" for gap in watch.gaps)
