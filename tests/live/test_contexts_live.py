"""Docker contexts that the real command makes, and what it takes itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import dockerd
import pytest
import trustme
from processes import HYPERMUX, process, wait_until

from hypermux.cli import watching
from hypermux.config import contexts
from hypermux.model.accounts import Endpoint, Tls

pytestmark = [pytest.mark.live, pytest.mark.slow]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of the CLI's of the test's own."""
    if shutil.which("docker") is None:
        pytest.skip("the docker command is not installed")
    for name in list(os.environ):
        if name.startswith("DOCKER_"):
            monkeypatch.delenv(name)
    directory = tmp_path / "docker"
    directory.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))
    return directory


def docker(*arguments: str) -> str:
    """Run the command; return what it says, also when it fails."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


def by_cli(name: str, described: str) -> None:
    assert "uccessfully created" in docker("context", "create", name, "--docker", described)


def test_contexts_of_the_real_command(home: Path, tmp_path: Path) -> None:
    mine = trustme.CA().issue_cert("me@example.org")
    pem = tmp_path / "all.pem"
    mine.private_key_and_cert_chain_pem.write_to_path(str(pem))
    by_cli("local", "host=unix:///run/docker.sock")
    by_cli("over.ssh+1", "host=ssh://me@build1")
    by_cli("secured", f"host=tcp://10.0.0.7:2376,ca={pem},cert={pem},key={pem}")
    by_cli("careless", "host=tcp://10.0.0.7:2376,skip-tls-verify=true")
    by_cli("plain", "host=tcp://10.0.0.7:2375")
    assert contexts.resolve("local").endpoint == Endpoint.parse("unix:///run/docker.sock")
    assert contexts.resolve("over.ssh+1").endpoint == Endpoint.parse("ssh://me@build1")
    secured = contexts.resolve("secured")
    assert secured.endpoint == Endpoint.parse("tcp://10.0.0.7:2376")
    assert secured.tls.verify
    place = home / "contexts" / "tls" / hashlib.sha256(b"secured").hexdigest() / "docker"
    assert [secured.tls.ca, secured.tls.client_cert, secured.tls.client_key] == [
        str(place / name) for name in ("ca.pem", "cert.pem", "key.pem")
    ]
    careless = contexts.resolve("careless")
    assert careless == contexts.Engine(Endpoint.parse("https://10.0.0.7:2376"), Tls(verify=False))
    assert contexts.resolve("plain").tls == Tls()


def test_which_one_the_command_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    by_cli("one", "host=unix:///one.sock")
    by_cli("two", "host=unix:///two.sock")
    assert contexts.current() == "default"
    docker("context", "use", "one")
    assert contexts.current() == "one"
    assert "/one.sock" in docker("version")
    assert watching.default_docker() == "context:one"
    monkeypatch.setenv("DOCKER_CONTEXT", "two")
    assert contexts.current() == "two"
    assert "/two.sock" in docker("version")
    monkeypatch.setenv("DOCKER_HOST", "unix:///three.sock")
    assert contexts.current() == "default"
    assert watching.default_docker() == "unix:///three.sock"
    assert contexts.resolve("default").endpoint.path == "/three.sock"
    assert "/three.sock" in docker("version")


def test_watching_the_engine_of_a_context(tmp_path: Path) -> None:
    output = tmp_path / "events.ndjson"
    with dockerd.running_dockerd() as engine:
        by_cli("mine", f"host={engine.url}")
        docker("context", "use", "mine")
        for number, words in enumerate((["--docker", "context:mine"], [])):
            log = tmp_path / f"log{number}"
            command = [*HYPERMUX, "watch", *words, "--output", str(output)]
            with (
                log.open("wb") as stderr,
                process(*command, stdout=stderr, stderr=stderr, cwd=tmp_path),
            ):
                wait_until(partial(_holds, log, "watching event"), "it is connected")
                engine.run("volume", "create", f"v{number}")
                wait_until(partial(_holds, output, f'"v{number}"'), "the event")
    assert _holds(output, '"region":"mine"')


def _holds(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text()
