"""The Engine's API with its real clients: the docker command and the `docker` package.

A real dockerd and the emulator are the upstreams. What is asked through hypermux is also asked of
that dockerd itself, and has to be the same.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker  # type: ignore[import-untyped]
import dockerd
import pytest
from attrs import define
from processes import FAST, Emulator, Place, emulator, place, service, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow]

ADDED = {"hypermux.account", "hypermux.region"}
CI = "hypermux.account=ci"


@define(eq=False)
class World:
    """A service with a dockerd of its own (ci/build) and an emulated account (acct-001)."""

    place: Place
    engine: dockerd.Engine
    emulated: Emulator
    since: float

    @property
    def url(self) -> str:
        return f"unix://{self.place.socket}"

    def command(self, *arguments: str, url: str = "") -> list[str]:
        return ["docker", "-H", url or self.url, "events", "--format", "{{json .}}", *arguments]

    def events(self, *arguments: str, url: str = "") -> list[dict[str, Any]]:
        """Run the docker command to its end; return what it printed."""
        done = subprocess.run(self.command(*arguments, url=url), capture_output=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, b"")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def both(self, **query: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Ask the engine, and hypermux for its events alone; return both answers."""
        filters = dict(query.pop("filters", {}))
        direct = asked(self.engine.socket, **query, filters=filters)
        filters["label"] = [*filters.get("label", []), CI]
        return direct, asked(self.place.socket, **query, filters=filters)

    def settled(self) -> None:
        """Wait until hypermux has all that the engine has told so far."""
        name = self.engine.volumes("settled", 1)[0]
        self.engine.ask("DELETE", f"/volumes/{name}")
        wait_until(lambda: any(name in str(r.get("event")) for r in self.place.records), name)
        self.until = time.time()

    until: float = 0.0


@contextmanager
def asking(path: Path, target: str, method: str = "GET") -> Iterator[http.client.HTTPResponse]:
    connection = dockerd._UnixConnection(path)
    with closing(connection):
        connection.request(method, target)
        yield connection.getresponse()


def asked(path: Path, **query: Any) -> list[dict[str, Any]]:
    """Return the events that an engine, or what looks like one, has for a query."""
    query["filters"] = json.dumps(query["filters"])
    target = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
    with asking(path, f"/v1.41/events?{target}") as answer:
        assert answer.status == 200
        return [json.loads(line) for line in answer.read().splitlines()]


def plain(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event without what hypermux adds."""
    attributes = event["Actor"]["Attributes"]
    assert attributes.keys() >= ADDED
    kept = {name: value for name, value in attributes.items() if name not in ADDED}
    return {**event, "Actor": {**event["Actor"], "Attributes": kept}}


def in_order(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events by time: an engine's memory and its stream may differ in their order."""
    return sorted(events, key=lambda event: (event["timeNano"], json.dumps(event, sort_keys=True)))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="hypermux-api-"))
    try:
        with (
            dockerd.running_dockerd() as engine,
            emulator(folder / "emulator", "--regions", "a,b", "--rate", "10") as emulated,
        ):
            home = place(
                folder,
                emulated.accounts,
                FAST,
                "[accounts.ci]",
                'upstream = "docker"',
                f'hosts = {{ build = "{engine.url}" }}',
            )
            with service(home):
                wait_until(lambda: up(home, "ci"), "the engine's stream")
                world = World(home, engine, emulated, time.time())
                live(world)
                yield world
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def up(home: Place, account: str) -> bool:
    return any(r.get("state") == "up" and r.get("account") == account for r in home.records)


def live(world: World) -> None:
    """Have the engine tell of containers, images, volumes and networks."""
    engine = world.engine
    engine.import_image()
    engine.run("tag", dockerd.IMAGE, "lab.example:5000/app/test:2")
    for name, label in (("one", "env=a=b"), ("two", "env=")):
        engine.run(
            *("run", "--rm", "--network=none", "--name", name, "--label", label, "--label", "x"),
            *("--volume", "data:/data", "lab.example:5000/app/test:2", "/bin/busybox", "true"),
        )
    engine.run("rmi", "lab.example:5000/app/test:2")
    engine.run("volume", "create", "--label", "hypermux.account=other", "spoof")
    engine.run("volume", "rm", "spoof")
    world.settled()


FILTERS: list[dict[str, list[str]]] = [
    {},
    {"type": ["container"]},
    {"type": ["volume", "image"]},
    {"type": ["cont"]},
    {"event": ["start", "die"]},
    {"event": ["st"]},
    {"event": ["st", "exec_start"]},
    {"container": ["one"]},
    {"container": ["on"]},
    {"container": ["ne"]},
    {"container": ["data"], "type": ["volume"]},
    {"volume": ["dat"]},
    {"network": ["none"]},
    {"image": ["lab.example:5000/app/test:2"]},
    {"image": ["lab.example:5000/app/test"]},
    {"image": ["app/test"]},
    {"label": ["env"]},
    {"label": ["env=a=b"]},
    {"label": ["env="]},
    {"label": ["env", "name=two"]},
    {"label": ["env", "none"]},
    {"scope": ["local"]},
    {"scope": ["swarm"]},
    {"daemon": ["x"]},
    {"node": ["one"]},
    {"service": [""]},
    {"secret": ["x"]},
    {"config": ["x"]},
    {"plugin": ["x"]},
    {"unknown": ["x"]},
    {"event": []},
]


def test_every_filter_selects_what_the_engine_selects(world: World) -> None:
    found = 0
    for filters in FILTERS:
        direct, through = world.both(since=world.since, until=world.until, filters=filters)
        assert [plain(e) for e in in_order(through)] == in_order(direct), filters
        found += bool(direct)
    assert found > 15


@pytest.mark.parametrize("image", [False, True])
def test_a_container_by_its_id(world: World, image: bool) -> None:
    containers = asked(world.engine.socket, since=world.since, until=world.until,
                       filters={"type": ["container"]})  # fmt: skip
    name = containers[0]["Actor"]["ID"]
    for value in (name, name[:12], name[1:13]):
        key = "image" if image else "container"
        filters = {key: [value]}
        direct, through = world.both(since=world.since, until=world.until, filters=filters)
        assert [plain(e) for e in in_order(through)] == in_order(direct)


def test_times_to_the_nanosecond(world: World) -> None:
    everything, _ = world.both(since=world.since, until=world.until)
    times = [event["timeNano"] for event in in_order(everything)]
    for first, last in ((3, 7), (7, 7), (0, -1)):
        since, until = (f"{times[n] // 10**9}.{times[n] % 10**9:09}" for n in (first, last))
        direct, through = world.both(since=since, until=until)
        assert [plain(e) for e in in_order(through)] == in_order(direct)
        assert in_order(direct)[0]["timeNano"] == times[first]


def test_the_docker_command(world: World) -> None:
    """As a person types it, against both: the same lines but for what is added."""
    arguments = ("--since", "10m", "--until", "0s", "--filter", "type=container")
    time.sleep(max(0.0, 1.0 - (time.time() - world.until)))  # --until 0s is a whole second
    direct = world.events(*arguments, url=world.engine.url)
    through = world.events(*arguments, "--filter", f"label={CI}")
    assert [plain(event) for event in through] == direct
    assert direct
    assert {event["Actor"]["Attributes"]["hypermux.region"] for event in through} == {"build"}


def test_an_account_with_many_regions(world: World) -> None:
    """What else the socket shows is not shown, and what is, is what the journal has."""
    label = "hypermux.account=acct-001"
    shown = world.events(
        *("--since", "10m", "--until", "0s", "--filter", "type=container", "--filter"),
        f"label={label}",
    )
    assert {event["Type"] for event in shown} == {"container"}
    regions = {event["Actor"]["Attributes"]["hypermux.region"] for event in shown}
    assert regions == {"a", "b"}
    last = max(event["timeNano"] for event in shown)
    recorded = [
        record["event"]
        for record in world.place.records
        if record["kind"] == "event" and record["account"] == "acct-001"
    ]
    containers = [e for e in recorded if e["Type"] == "container" and e["timeNano"] <= last]
    assert [plain(event) for event in shown] == containers


def test_gaps_are_shown_until_a_filter_leaves_them_out(world: World) -> None:
    since = str(int(world.since) - 600)
    shown = world.events("--since", since, "--until", "0s")
    gaps = [event for event in shown if event["Type"] == "hypermux"]
    sources = {event["Actor"]["ID"] for event in gaps}
    assert sources == {"ci/build", "acct-001/a", "acct-001/b"}
    assert {event["Actor"]["Attributes"]["cause"] for event in gaps} == {"start"}
    chosen = world.events("--since", since, "--until", "0s", "--filter", "type=hypermux",
                          "--filter", f"label={CI}")  # fmt: skip
    assert [event["Actor"]["ID"] for event in chosen] == ["ci/build"]


def test_a_spoofed_label_is_not_believed(world: World) -> None:
    assert not world.events("--since", "10m", "--until", "0s", "--filter",
                            "label=hypermux.account=other")  # fmt: skip
    shown = world.events("--since", "10m", "--until", "0s", "--filter", "volume=spoof")
    assert [e["Action"] for e in shown] == ["create", "destroy"]


def test_following_and_going_away(world: World) -> None:
    """The docker command gets what happens now, and its place is free when it has gone."""
    command = world.command("--filter", "type=volume", "--filter", f"label={CI}")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            wait_until(lambda: subscribers(world) == 1, "the docker command's place")
            world.engine.ask("POST", "/volumes/create", b'{"Name":"followed"}')
            shown = json.loads(child.stdout.readline())
            assert (shown["Action"], shown["Actor"]["ID"]) == ("create", "followed")
        finally:
            child.send_signal(signal.SIGINT)
            child.wait(20)
    wait_until(lambda: subscribers(world) == 0, "its end")


def subscribers(world: World) -> int:
    with asking(world.place.socket, "/status") as answer:
        status = json.loads(answer.read())
    return int(status["subscribers"]["active"])


def test_an_end_in_the_future(world: World) -> None:
    """It ends then, though nothing comes, with what happened right before."""
    until = time.time() + 1.2
    command = world.command("--until", f"{until:.6f}", "--filter", "volume=late")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        time.sleep(max(0.0, until - 0.1 - time.time()))
        world.engine.ask("POST", "/volumes/create", b'{"Name":"latest"}')
        shown = [json.loads(line) for line in child.stdout]
        assert child.wait(20) == 0
        took = time.time() - until
    assert [event["Actor"]["ID"] for event in shown] == ["latest"]
    assert took < 5


def test_the_docker_package(world: World) -> None:
    client = docker.DockerClient(base_url=world.url)
    try:
        assert client.ping()
        assert client.version()["ApiVersion"] == "1.51"
        query: dict[str, Any] = {
            "since": int(world.since),
            "until": int(world.until) + 1,
            "filters": {"type": "container", "label": [CI, "env"]},
        }
        decoded = list(client.events(decode=True, **query))
        # Without decoding each thing that it yields is one event.
        assert [json.loads(chunk) for chunk in client.events(**query)] == decoded
        direct = asked(world.engine.socket, since=world.since, until=world.until,
                       filters={"type": ["container"], "label": ["env"]})  # fmt: skip
        assert [plain(event) for event in in_order(decoded)] == in_order(direct)
        newer = docker.DockerClient(base_url=world.url, version="1.99")
        with closing(newer), pytest.raises(docker.errors.APIError, match="is too new"):
            newer.version()
        with pytest.raises(docker.errors.NotFound, match="page not found"):
            client.containers.list()
        following = client.events(decode=True, filters={"volume": "packed"})
        world.engine.ask("POST", "/volumes/create", b'{"Name":"packed"}')
        assert next(following)["Actor"]["ID"] == "packed"
        following.close()
    finally:
        client.close()


@pytest.mark.parametrize(
    ("target", "exact"),
    [
        ("/v1.41/nope", True),
        ("/v1.41/containers/json/x", True),
        ("/events?since=abc", True),
        ("/events?until=1.5x", True),
        ("/events?since=10&until=5", True),
        ("/v1.41/events?since=10&until=5", True),
        ("/events?since=%zz", True),
        ("/events?filters=abc", False),
        ("/events?filters=[]", False),
        ("/events?filters=%7B%22type%22%3A%22b%22%7D", False),
        ("/v1.99/version", False),
        ("/v1.99/_ping", False),
        ("/v1.1/version", False),
    ],
)
def test_refusals_are_the_engines(world: World, target: str, exact: bool) -> None:
    """The form and, where its version does not matter, the words of this machine's dockerd."""
    answers: list[tuple[int, str, Any]] = []
    for path in (world.engine.socket, world.place.socket):
        with asking(path, target) as answer:
            kind, body = answer.headers["Content-Type"], answer.read()
            text = json.loads(body) if "json" in kind else body.decode()
            # An old Engine calls what it cannot read a fault of its own.
            answers.append((400 if answer.status == 500 else answer.status, kind, text))
            if path == world.place.socket:
                assert answer.headers["Api-Version"] == "1.51"
    theirs, ours = answers
    assert ours[:2] == theirs[:2]
    if exact:
        assert ours == theirs
    elif isinstance(theirs[2], dict):
        assert set(ours[2]) == {"message"}
        first = "invalid filter" if "filters" in target else theirs[2]["message"].split(".")[0]
        assert ours[2]["message"].startswith(first)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", ["/_ping", "/v1.41/_ping", "/v1.41/events?until=1"])
def test_headers_are_the_engines(world: World, method: str, target: str) -> None:
    heads: list[tuple[int, dict[str, str]]] = []
    for path in (world.engine.socket, world.place.socket):
        with asking(path, target, method) as answer:
            head = {name.lower(): value for name, value in answer.headers.items()}
            heads.append((answer.status, head))
    (status, theirs), (our_status, ours) = heads
    assert our_status == status
    assert ours.keys() >= theirs.keys() - {"date"}
    for name in ("content-type", "content-length", "transfer-encoding", "ostype", "pragma",
                 "cache-control", "docker-experimental"):  # fmt: skip
        if name in theirs:
            assert ours[name] == theirs[name]
    assert (ours["api-version"], ours["ostype"]) == ("1.51", "linux")


def test_the_docker_command_says_what_this_is(world: World) -> None:
    done = subprocess.run(["docker", "-H", world.url, "version", "--format", "{{json .Server}}"],
                          capture_output=True, timeout=30)  # fmt: skip
    assert done.returncode == 0
    server = json.loads(done.stdout)
    assert server["Platform"]["Name"] == "hypermux"
    done = subprocess.run(["docker", "-H", world.url, "ps"], capture_output=True, timeout=30)
    assert done.returncode == 1
    assert b"page not found" in done.stderr


RETENTION = """\
[journal]
checkpoint_interval = "100ms"
segment = { size = "64KiB" }
retain = { size = "64KiB" }"""


def test_beyond_retention_there_is_a_gap(tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        missing()
    folder = Path(tempfile.mkdtemp(prefix="hypermux-api-"))
    try:
        with emulator(folder / "emulator", "--rate", "max", "--events", "1500") as emulated:
            home = place(folder, emulated.accounts, FAST, RETENTION)
            with service(home):
                wait_until(lambda: starts_after_first(home), "retention")
                done = subprocess.run(
                    ["docker", "-H", f"unix://{home.socket}", "events", "--format", "{{json .}}",
                     "--since", "24h", "--until", f"{time.time():.6f}"],
                    capture_output=True, timeout=30,
                )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    gap = shown[0]
    assert (gap["Type"], gap["Action"], gap["Actor"]["ID"]) == ("hypermux", "gap", "hypermux")
    attributes = gap["Actor"]["Attributes"]
    assert (attributes["cause"], attributes["certainty"]) == ("retention", "proven")
    assert int(attributes["lost"]) > 0


def starts_after_first(home: Place) -> bool:
    names = sorted(path.name for path in (home.state / "journal").glob("[0-9]*.ndjson"))
    return bool(names) and int(names[0][:20]) > 1


def missing() -> None:
    if os.environ.get("CI") == "true":
        pytest.fail("not installed: docker")
    pytest.skip("not installed: docker")
