"""Where the test containers live: an emulator, by its control socket, or a Docker host."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from util_lib import cases, processes

# Stopping a container whose process does not hear takes docker ten.
DOCKER_WITHIN_S = 60.0


def read_ready(path: str) -> dict[str, Any]:
    """Return what an emulator said when it was ready, of the file that keeps it."""
    try:
        said = json.loads(Path(path).read_text())
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise cases.Trouble(f"{path} is not the line of JSON that `hypermux emulate` says first")
    return said


class Host(Protocol):
    """Where the test containers live. `kind` is the word that a case's `only` may name."""

    kind: str

    def containers(self) -> list[cases.Found]:
        """Return those test containers that there are."""

    def create(self, spec: Mapping[str, Any]) -> None:
        """Make a test container, not yet running."""

    def act(self, verb: str, found: cases.Found) -> None:
        """Do start, stop or rm."""

    def watch_arguments(self) -> list[str]:
        """Return the arguments that make `hypermux watch` watch this host."""


class EmulatorHost:
    """An emulator; the first account and region of its accounts file are used.

    `ready` is what it says first: its url, control socket and certificate authority. `stack` ends
    what this needs: a file for the secret key, which does not belong on a command line.
    """

    kind = "hyper"

    def __init__(self, ready: Mapping[str, Any], accounts: Path, stack: ExitStack) -> None:
        try:
            from hypermux.emulator import control
        except ImportError as error:
            raise cases.Trouble(
                f"{error}: hypermux is not installed for {sys.executable}; to make a .venv type\n"
                "  python3 -m venv .venv && .venv/bin/pip install -e '.[dev,emulator]'"
            ) from None
        self._call = control.call
        self._ready = ready
        try:
            name, keys = next(iter(tomllib.loads(accounts.read_text())["accounts"].items()))
            self._source = {"account": name, "region": keys["regions"][0]}
            self._access_key, secret_key = keys["access_key"], keys["secret_key"]
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
            message = f"{accounts} is not what `hypermux emulate --write-accounts` writes"
            raise cases.Trouble(message) from None
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="util-"))
        self._secret_file = Path(directory, "secret.key")
        self._secret_file.touch(0o600)
        self._secret_file.write_text(secret_key)

    @classmethod
    def own(cls, stack: ExitStack) -> EmulatorHost:
        """Start an emulator that ends with `stack`."""
        print("util: no emulator was named: starting one for this command", file=sys.stderr)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="util-"))
        accounts, control = f"{directory}/accounts.toml", f"{directory}/control.sock"
        options = ["--port", "0", "--accounts", "1", "--regions", "us-west-1", "--rate", "0"]
        paths = ["--write-accounts", accounts, "--control", control]
        process = stack.enter_context(processes.running(["emulate", *options, *paths]))
        ready = json.loads(process.line_within(processes.READY_WITHIN_S))
        return cls(ready, Path(accounts), stack)

    def _ask(self, op: str, **keys: Any) -> dict[str, Any]:
        path = self._ready["control"]
        try:
            answer = self._call(path, {"op": op, **self._source, **keys})
        except OSError as error:
            raise cases.Trouble(f"no emulator answers at {path}: {error}") from None
        if not answer["ok"]:
            raise cases.Trouble(f"the emulator refused to {op}: {answer['error']}")
        return answer

    def containers(self) -> list[cases.Found]:
        """Return those test containers that there are."""
        keys = cases.keys_by_name()
        return [
            cases.Found(keys[c["name"]], c["id"], c["name"], c["state"], c["image_id"])
            for c in self._ask("ps")["containers"]
            if c["name"] in keys
        ]

    def create(self, spec: Mapping[str, Any]) -> None:
        """Make a test container, not yet running."""
        self._ask("create", **spec)

    def act(self, verb: str, found: cases.Found) -> None:
        """Do start, stop or rm."""
        self._ask("remove" if verb == "rm" else verb, id=found.id)

    def watch_arguments(self) -> list[str]:
        """Return the arguments that make `hypermux watch` watch this host."""
        keys = ["--access-key", self._access_key, "--secret-key-file", str(self._secret_file)]
        url = urlsplit(self._ready["url"])
        how = ["--plain"] if url.scheme == "ws" else []
        if self._ready.get("ca"):
            how += ["--ca", self._ready["ca"]]
        return ["--addr", url.netloc, "--region", self._source["region"], *keys, *how]


class DockerHost:
    """A Docker host, by the docker command. It needs the image busybox:latest."""

    kind = "docker"

    def __init__(self, url: str) -> None:
        self._url = url

    def _docker(self, *arguments: str) -> str:
        command = ["docker", "-H", self._url, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=DOCKER_WITHIN_S
            )
        except FileNotFoundError:
            raise cases.Trouble("there is no docker command here") from None
        except subprocess.TimeoutExpired:
            raise cases.Trouble(f"{' '.join(command[:4])}: no answer") from None
        if done.returncode:
            raise cases.Trouble(f"{' '.join(command[:4])}: {done.stderr.strip()}")
        return done.stdout

    def containers(self) -> list[cases.Found]:
        """Return those test containers that there are."""
        keys = cases.keys_by_name()
        form = "{{.ID}} {{.Names}} {{.State}}"
        lines = self._docker("ps", "--all", "--no-trunc", "--format", form).splitlines()
        rows = [line.split() for line in lines]
        return [
            cases.Found(keys[name], container, name, state)
            for container, name, state in rows
            if name in keys
        ]

    def create(self, spec: Mapping[str, Any]) -> None:
        """Make a test container, not yet running."""
        # Docker takes no label with an empty key, and `sleep` as process 1 hears no SIGTERM.
        labels = [f"--label={key}={value}" for key, value in spec["labels"].items() if key]
        options = [f"--name={spec['name']}", "--network=none", "--stop-signal=SIGKILL", *labels]
        forever = ["busybox", "sleep", "1000000"]
        self._docker("create", "--pull=never", *options, spec["image"], *forever)

    def act(self, verb: str, found: cases.Found) -> None:
        """Do start, stop or rm."""
        self._docker(verb, found.id)

    def watch_arguments(self) -> list[str]:
        """Return the arguments that make `hypermux watch` watch this host."""
        return ["--docker", self._url]
