"""Docker contexts: files as the CLI lays them out."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hypermux.cli import watching
from hypermux.config import accounts_file, contexts
from hypermux.core.filters import Filters
from hypermux.model.accounts import Endpoint, Proxy, Tls
from hypermux.model.errors import ConfigurationFault, UsageFault

PIN = "sha256:ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8="


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of the CLI's of the test's own."""
    for name in list(os.environ):
        if name.startswith("DOCKER_"):
            monkeypatch.delenv(name)
    directory = tmp_path / "docker"
    directory.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))
    return directory


def write(home: Path, name: str, meta: Any, *certificates: str) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    place = home / "contexts" / "meta" / digest
    place.mkdir(parents=True, exist_ok=True)
    (place / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    tls = home / "contexts" / "tls" / digest / "docker"
    tls.mkdir(parents=True, exist_ok=True)
    for file in certificates:
        (tls / file).write_text("")


def described(name: str, host: str, *, skip: bool = False) -> dict[str, Any]:
    docker = {"Host": host, "SkipTLSVerify": skip}
    return {"Name": name, "Metadata": {}, "Endpoints": {"docker": docker}}


def test_which_one_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contexts.current() == "default"
    (home / "config.json").write_text('{"currentContext": "one"}')
    assert contexts.current() == "one"
    assert watching.default_docker() == "context:one"
    monkeypatch.setenv("DOCKER_CONTEXT", "two")
    assert contexts.current() == "two"
    monkeypatch.setenv("DOCKER_HOST", "unix:///three.sock")
    assert contexts.current() == "default"
    assert watching.default_docker() == "unix:///three.sock"
    assert contexts.resolve("default").endpoint.path == "/three.sock"
    monkeypatch.setenv("DOCKER_HOST", "")
    monkeypatch.setenv("DOCKER_CONTEXT", "")
    for text in ("{}", '{"currentContext": ""}', '{"currentContext": 5}'):
        (home / "config.json").write_text(text)
        assert contexts.current() == "default"
    assert contexts.resolve("default").endpoint == Endpoint.parse("unix:///var/run/docker.sock")
    (home / "config.json").write_text("{")
    with pytest.raises(UsageFault, match=r"configuration .*config\.json is not JSON"):
        watching.default_docker()


def test_the_tls_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Endpoint.parse("tcp://h:2376")
    assert contexts.of_environment(engine) == contexts.Engine(engine, Tls())
    monkeypatch.setenv("DOCKER_TLS", "1")
    careless = contexts.Engine(Endpoint.parse("https://h:2376"), Tls(verify=False))
    assert contexts.of_environment(engine) == careless
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (home / name).write_text("")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    found = contexts.of_environment(engine)
    assert found.endpoint == engine
    ca, cert, key = (str(home / f"{name}.pem") for name in ("ca", "cert", "key"))
    assert found.tls == Tls(ca=ca, client_cert=cert, client_key=key)
    other = home / "other"
    other.mkdir()
    (other / "cert.pem").write_text("")  # without its key it is nothing
    monkeypatch.setenv("DOCKER_CERT_PATH", str(other))
    verified = contexts.of_environment(engine)
    assert verified == contexts.Engine(Endpoint.parse("https://h:2376"), Tls())
    assert contexts.of_environment(Endpoint.parse("unix:///s")).tls == Tls()


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("[" * 5000, "is not JSON"),
        ({}, "is not the description of a Docker engine"),
        ({"Name": "odd", "Endpoints": []}, "is not the description"),
        ({"Name": "odd", "Endpoints": {"kubernetes": {}}}, "is not the description"),
        ({"Name": "odd", "Endpoints": {"docker": {"Host": 5}}}, "is not the description"),
        (described("even", "unix:///s"), "is not the description"),
        (described("odd", "npipe:////./pipe/docker"), 'has the host "npipe:'),
        (described("odd", "ssh://-v"), 'has the host "ssh://-v"'),
    ],
)
def test_odd_contexts(home: Path, meta: Any, says: str) -> None:
    write(home, "odd", meta)
    with pytest.raises(ValueError, match=r"the Docker context odd in /.*meta\.json") as caught:
        contexts.resolve("odd")
    assert says in str(caught.value)


def test_a_context_without_a_host_is_the_default_socket(home: Path) -> None:
    write(home, "odd", described("odd", ""))
    assert contexts.resolve("odd").endpoint == Endpoint.parse("unix:///var/run/docker.sock")


@pytest.mark.parametrize("name", ["", "x", "../../etc", "a/b", "-v", "a b", "ä" * 3])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a Docker context"):
        contexts.resolve(name)


def load(tmp_path: Path, text: str) -> tuple[Any, list[str]]:
    path = tmp_path / "accounts.toml"
    path.write_text(f'[accounts.ci]\nupstream = "docker"\n{text}')
    path.chmod(0o600)
    try:
        return accounts_file.load(path), []
    except ConfigurationFault as fault:
        return None, [f"{p.key}: {p.message} ({p.value})" for p in fault.problems]


def test_contexts_in_the_accounts_file(home: Path, tmp_path: Path) -> None:
    write(home, "far", described("far", "tcp://far:2376"), "ca.pem", "cert.pem", "key.pem")
    write(home, "careless", described("careless", "tcp://far:2377", skip=True), "ca.pem")
    pem = tmp_path / "own.pem"
    pem.write_text("")
    hosts = (
        '{ a = "context:far", b = "context:careless", c = "tcp://c:2376", d = "context:default" }'
    )
    settings, _ = load(
        tmp_path, f'hosts = {hosts}\nca = "{pem}"\npin = "{PIN}"\nproxy = "http://p:1"\n'
    )
    a, b, c, d = settings.sources
    assert [s.id.region for s in settings.sources] == ["a", "b", "c", "d"]
    assert a.endpoint.address == "far:2376"
    assert a.tls.ca is not None
    assert "contexts/tls" in a.tls.ca
    assert not b.tls.verify
    assert c.tls.ca == str(pem)
    assert {s.tls.pins for s in settings.sources} == {(PIN,)}
    assert [s.endpoint.proxy for s in settings.sources] == [*[Proxy("p", 1)] * 3, None]
    assert d.endpoint.path == "/var/run/docker.sock"
    assert not settings.warnings  # the pin sees to b
    settings, _ = load(tmp_path, 'hosts = { b = "context:careless" }')
    assert [w.partition("accounts.ci: ")[2] for w in settings.warnings] == [
        "the Docker context of b verifies no certificate: "
        "anyone on the way can read and change the stream"
    ]
    _, problems = load(tmp_path, 'hosts = { a = "context:none" }')
    assert len(problems) == 1
    assert problems[0].startswith("accounts.ci.hosts.a: there is no Docker context none in /")
    assert problems[0].endswith('`docker context ls` lists them ("context:none")')
    _, problems = load(tmp_path, f'hosts = {{ a = "context:default" }}\npin = "{PIN}"')
    assert problems[0].startswith("accounts.ci.pin: is for TLS")


def test_contexts_on_the_command_line(home: Path) -> None:
    write(home, "far", described("far", "tcp://far:2376"), "ca.pem")
    settings = watching.docker_hosts(["context:far", "ssh://me@build1"], filters=Filters())
    assert [str(s.id) for s in settings.sources] == ["docker/far", "docker/build1"]
    assert settings.sources[0].tls.ca is not None
    with pytest.raises(UsageFault, match="--docker context:none: there is no Docker context none"):
        watching.docker_hosts(["context:none"], filters=Filters())
