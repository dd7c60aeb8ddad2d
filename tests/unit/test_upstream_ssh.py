"""What ssh is started with, and what its end means."""

from __future__ import annotations

import pytest

from hypermux.core.verdicts import Verdict, judge
from hypermux.model.accounts import Endpoint
from hypermux.model.errors import FailureKind
from hypermux.upstream import ssh

HOST = Endpoint.parse("ssh://me@build1")


def test_the_command_line() -> None:
    words = ssh.command(Endpoint.parse("ssh://me@build1:2222"), 2.5)
    assert words[:4] == ["ssh", "-T", "-a", "-x"]
    remote = ["docker", "system", "dial-stdio"]
    assert words[-9:] == ["-l", "me", "-p", "2222", "--", "build1", *remote]
    for option in ("BatchMode=yes", "ConnectTimeout=3", "ControlPath=none", "RemoteCommand=none"):
        assert words[words.index(option) - 1] == "-o"
    assert ssh.ALIVE_INTERVAL_S * (ssh.ALIVE_COUNT + 1) < 30  # how long a dead host goes unnoticed


def test_user_and_port_are_left_to_the_configuration() -> None:
    words = ssh.command(Endpoint.parse("ssh://build1"), 10)
    assert "-l" not in words
    assert "-p" not in words


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("/var/run/docker.sock", "docker --host unix:///var/run/docker.sock system dial-stdio"),
        (
            "/run/user/1000/podman/podman.sock",
            "podman --url unix:///run/user/1000/podman/podman.sock system dial-stdio",
        ),
    ],
)
def test_a_socket_that_is_named(path: str, remote: str) -> None:
    words = ssh.command(Endpoint.parse(f"ssh://build1{path}"), 10)
    assert words[words.index("--") + 1 :] == ["build1", *remote.split()]


CASES = [
    (255, "@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
     FailureKind.TLS, "another key than the one known", Verdict.UNTRUSTED),
    (255, "No ED25519 host key is known for build1 and you have requested strict checking.\n"
     "Host key verification failed.", FailureKind.TLS, "is not known", Verdict.UNTRUSTED),
    (255, "ssh: Could not resolve hostname build1: Name or service not known",
     FailureKind.RESOLVE, "Could not resolve hostname build1", Verdict.RETRY),
    (255, "me@build1: Permission denied (publickey,password).", FailureKind.ACCESS,
     "no key of ours is accepted for me: me@build1: Permission denied", Verdict.DENIED),
    (255, "Received disconnect from ::1 port 22:2: Too many authentication failures",
     FailureKind.ACCESS, "Too many", Verdict.DENIED),
    (255, "ssh: connect to host build1 port 22: Connection refused", FailureKind.CONNECT,
     "nothing listens there", Verdict.RETRY),
    (255, "ssh: connect to host build1 port 22: No route to host", FailureKind.CONNECT,
     "no route to the host", Verdict.RETRY),
    (255, "ssh: connect to host build1 port 22: Connection timed out", FailureKind.TIMEOUT,
     "does not answer", Verdict.RETRY),
    (255, "Connection timed out during banner exchange", FailureKind.TIMEOUT, "", Verdict.RETRY),
    (255, "command-line: line 0: Bad configuration option: x", FailureKind.SETUP,
     "its configuration: command-line", Verdict.MISCONFIGURED),
    (255, "Unable to negotiate with ::1 port 22: no matching host key type found.",
     FailureKind.SETUP, "no matching", Verdict.MISCONFIGURED),
    (255, "kex_exchange_identification: Connection closed by remote host", FailureKind.EOF,
     "Connection closed by remote host", Verdict.RETRY),
    (255, "", FailureKind.EOF, "without a word", Verdict.RETRY),
    (127, "bash: line 1: docker: command not found", FailureKind.SETUP,
     "no docker command for this user over there; for Podman", Verdict.MISCONFIGURED),
    (1, "error during connect: dial unix /x.sock: connect: permission denied",
     FailureKind.CONNECT, "permission denied", Verdict.RETRY),
    # Not ssh's own words: what a command says decides nothing.
    (1, "Permission denied (publickey)", FailureKind.CONNECT, "", Verdict.RETRY),
    (0, "", FailureKind.EOF, "the connection ended", Verdict.RETRY),
    (-9, "", FailureKind.EOF, "signal 9", Verdict.RETRY),
    (None, "", FailureKind.EOF, "the connection ended", Verdict.RETRY),
]  # fmt: skip


@pytest.mark.parametrize(("status", "said", "kind", "words", "verdict"), CASES)
def test_the_end_of_a_dial(
    status: int | None, said: str, kind: FailureKind, words: str, verdict: Verdict
) -> None:
    failure = ssh.end_of_ssh(HOST, status, said, said.splitlines()[-1] if said else "", False)
    assert failure.kind is kind
    assert failure.detail.startswith("ssh to build1: ")
    assert words in failure.detail
    assert judge(failure, secure=False, now_utc_ns=0).verdict is verdict


def test_the_end_of_a_stream() -> None:
    def end(status: int | None, said: str) -> FailureKind:
        return ssh.end_of_ssh(HOST, status, said, said, True).kind

    assert end(255, "Timeout, server 127.0.0.1 not responding.") is FailureKind.SILENT
    assert end(255, "client_loop: send disconnect: Broken pipe") is FailureKind.RESET
    assert end(-15, "") is FailureKind.RESET
