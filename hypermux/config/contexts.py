"""Docker contexts, read as the Docker CLI reads them: `context:NAME` stands for an engine.

A context says where an engine is and how it is secured: its certificates, and whether they are
verified. What an account says of `ca` and the like is not for it. It is read when the configuration
is: a context that changes later counts from the next start or reload on.

`default` is what the environment says (DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_TLS,
DOCKER_CERT_PATH), or the local socket. As with the CLI, DOCKER_HOST counts before DOCKER_CONTEXT,
and that before the `currentContext` of the CLI's own configuration, which lies in DOCKER_CONFIG or
~/.docker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from hypermux.config import files
from hypermux.config.shape import show
from hypermux.model.accounts import Endpoint, Tls, uses_tls

PREFIX = "context:"
DEFAULT = "default"
DEFAULT_HOST = "unix:///var/run/docker.sock"

# The CLI's own rule. A name becomes a hash, never a part of a path.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]+")
# A context takes some hundred bytes, the CLI's configuration some thousand.
_MAX_SIZE = 1 << 20


@frozen
class Engine:
    """Where an engine is, and how it is secured."""

    endpoint: Endpoint
    tls: Tls


def current() -> str:
    """Return the name of the context that the CLI would take. Raises ValueError."""
    if os.environ.get("DOCKER_HOST"):
        return DEFAULT
    if name := os.environ.get("DOCKER_CONTEXT"):
        return name
    path = _directory() / "config.json"
    if not path.exists():
        return DEFAULT
    chosen = _json(path, f"the Docker CLI's configuration {path}").get("currentContext")
    return chosen if isinstance(chosen, str) and chosen else DEFAULT


def resolve(name: str) -> Engine:
    """Return the engine of a context. Raises ValueError with one sentence."""
    if name == DEFAULT:
        host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        try:
            return of_environment(Endpoint.parse(host))
        except ValueError as error:
            raise ValueError(f"DOCKER_HOST is {show(host)}: {error}") from None
    if not _NAME.fullmatch(name):
        raise ValueError("is not the name of a Docker context: `docker context ls` lists them")
    contexts = _directory() / "contexts"
    digest = hashlib.sha256(name.encode()).hexdigest()
    path = contexts / "meta" / digest / "meta.json"
    if not path.exists():
        raise ValueError(
            f"there is no Docker context {name} in {contexts}: `docker context ls` lists them"
        )
    what = f"the Docker context {name} in {path}"
    meta = _json(path, what)
    ends = meta.get("Endpoints")
    docker = ends.get("docker") if isinstance(ends, dict) else None
    url = docker.get("Host", "") if isinstance(docker, dict) else None
    if meta.get("Name") != name or not isinstance(docker, dict) or not isinstance(url, str):
        raise ValueError(f"{what} is not the description of a Docker engine")
    try:
        endpoint = Endpoint.parse(url or DEFAULT_HOST)
    except ValueError as error:
        raise ValueError(f"{what} has the host {show(url)}: {error}") from None
    place = contexts / "tls" / digest / "docker"
    return _secured(endpoint, place, verify=docker.get("SkipTLSVerify") is not True)


def of_environment(endpoint: Endpoint) -> Engine:
    """Return an engine with the TLS that the CLI's own variables ask for."""
    verify = bool(os.environ.get("DOCKER_TLS_VERIFY"))
    if endpoint.scheme != "tcp" or not (verify or os.environ.get("DOCKER_TLS")):
        return Engine(endpoint, Tls())
    given = os.environ.get("DOCKER_CERT_PATH")
    engine = _secured(endpoint, Path(given) if given else _directory(), verify=verify)
    return Engine(_over_tls(engine.endpoint, engine.tls), engine.tls)


def _secured(endpoint: Endpoint, place: Path, *, verify: bool) -> Engine:
    """Return an engine with the certificates that lie in a directory, whichever are there."""
    if endpoint.to_socket:
        return Engine(endpoint, Tls())
    ca, cert, key = (
        str(place / name) if (place / name).exists() else None
        for name in ("ca.pem", "cert.pem", "key.pem")
    )
    tls = Tls(verify, ca, cert if key else None, key if cert else None)
    return Engine(endpoint if verify else _over_tls(endpoint, tls), tls)


def _over_tls(endpoint: Endpoint, tls: Tls) -> Endpoint:
    """Return the endpoint as TLS has it where no certificate says so: what skips it, wants it."""
    return endpoint if uses_tls(endpoint, tls) else evolve(endpoint, scheme="https")


def _directory() -> Path:
    given = os.environ.get("DOCKER_CONFIG")
    return Path(os.path.abspath(given)) if given else Path(os.path.expanduser("~/.docker"))


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        tree = json.loads(files.read(path, limit=_MAX_SIZE).text)
    except files.Unreadable as error:
        raise ValueError(f"{what}: {error}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{what} is not JSON") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{what} is not a JSON object")
    return tree
