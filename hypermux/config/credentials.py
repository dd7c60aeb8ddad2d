"""From where keys are kept to a `Credential`: a file, the environment, or a process.

No message holds a key, nor anything that a user may have put in a key's place: it names the setting
and what is wrong with what it leads to.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from typing import Any

from hypermux.config import files
from hypermux.core.recording import parse_rfc3339
from hypermux.model.accounts import Credential, CredentialSource, Secret
from hypermux.model.errors import ConfigurationFault, Problem

# What fetches a key from a vault may need the network; longer than this is a hang.
PROCESS_DEADLINE_S = 10.0
# A key is under a hundred bytes; more than this is the wrong file or program.
MAX_KEY_TEXT = 64 * 1024
_MAX_ACCESS_KEY = 256

_ACCESS_NAMES = ("AccessKeyId", "access_key")
_SECRET_NAMES = ("SecretAccessKey", "secret_key")
_END_NAMES = ("Expiration", "expiration")


class _Bad(Exception):
    """A setting and what is wrong with it."""

    def __init__(self, setting: str, message: str) -> None:
        self.setting = setting
        self.message = message
        super().__init__(message)


def load(source: CredentialSource, *, file: str = "credential", key: str = "") -> Credential:
    """Return the keys that `source` leads to; blocks up to 10 s for a process.

    `file` and `key` say where the account stands, for messages. Raises ConfigurationFault.
    """
    try:
        return _load(source)
    except _Bad as bad:
        path = f"{key}.{bad.setting}" if key else bad.setting
        raise ConfigurationFault([Problem(file, path, bad.message)]) from None


def _load(source: CredentialSource) -> Credential:
    if source.process is not None:
        return _from_process(source.process)
    if source.access_key is None:
        raise _Bad("access_key", "is missing")
    if source.secret_key is not None:
        secret, setting = source.secret_key.reveal(), "secret_key"
    elif source.secret_key_file is not None:
        secret, setting = _from_file(source.secret_key_file), "secret_key_file"
    elif source.secret_key_env is not None:
        setting = "secret_key_env"
        found = os.environ.get(source.secret_key_env)
        if found is None:
            raise _Bad(setting, "the environment variable that it names is not set")
        secret = found.strip()
    else:
        raise _Bad("secret_key_file", "is missing")
    if (fault := access_key_fault(source.access_key)) is not None:
        raise _Bad("access_key", fault)
    if (fault := secret_key_fault(secret)) is not None:
        raise _Bad(setting, f"the secret key that it leads to {fault}")
    return Credential(source.access_key, Secret(secret))


def access_key_fault(text: str) -> str | None:
    """Say what is wrong with an access key, None when nothing is."""
    if not text:
        return "is empty"
    # It stands in the Authorization header as `Credential=KEY/scope, `.
    if not text.isascii() or not text.isprintable() or any(c in text for c in " ,/"):
        return "is not an access key: printable ASCII without spaces, commas and '/'"
    if len(text) > _MAX_ACCESS_KEY:
        return f"is longer than {_MAX_ACCESS_KEY} characters"
    return None


def secret_key_fault(text: str) -> str | None:
    """Say what is wrong with a secret key, None when nothing is."""
    if not text.strip():
        return "is empty"
    if "\n" in text.strip():
        return "has more than one line"
    if not text.isprintable() or text != text.strip():
        return "has a control character in it or a space around it"
    return None


def secret_file_fault(path: str) -> str | None:
    """Say why a secret key's file cannot be used, None when it can. The key is not read."""
    try:
        mode = files.examine(path)
    except files.Unreadable as error:
        return f"the file that it names: {error}"
    return _shared_fault(path, mode)


def _shared_fault(path: str, mode: int) -> str | None:
    if files.shared(path, mode):
        return f"others can read the file that it names: type  {files.private_command(path)}"
    return None


def _from_file(path: str) -> str:
    try:
        found = files.read(path, limit=MAX_KEY_TEXT)
    except files.Unreadable as error:
        raise _Bad("secret_key_file", f"the file that it names: {error}") from None
    if (fault := _shared_fault(path, found.mode)) is not None:
        raise _Bad("secret_key_file", fault)
    return found.text.strip()


def _from_process(argv: tuple[str, ...]) -> Credential:
    output = _run(argv)
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _Bad(
            "credential_process",
            'the program must print JSON: {"access_key": "…", "secret_key": "…"}',
        )
    access_key = _answered(answer, _ACCESS_NAMES)
    secret_key = _answered(answer, _SECRET_NAMES)
    for what, fault in (
        ("access key", access_key_fault(access_key)),
        ("secret key", secret_key_fault(secret_key)),
    ):
        if fault is not None:
            raise _Bad("credential_process", f"the {what} that the program prints {fault}")
    return Credential(access_key, Secret(secret_key), _end(answer))


def _end(answer: dict[str, Any]) -> int | None:
    """Return when the keys end, nanoseconds since 1970; None: they last."""
    name = next((name for name in _END_NAMES if answer.get(name) is not None), None)
    if name is None:
        return None
    try:
        return parse_rfc3339(answer[name])
    except (TypeError, ValueError):
        # Not shown: whatever stands there may be a key that slipped.
        raise _Bad(
            "credential_process",
            f"the {name} that the program prints is not a time like 2016-10-13T16:22:54Z",
        ) from None


def _answered(answer: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if isinstance(value := answer.get(name), str):
            return value
    raise _Bad("credential_process", f"the program's JSON has no text {' or '.join(names)}")


def _run(argv: tuple[str, ...]) -> bytes:
    """Return what a program prints; what it says on stderr may hold a key and goes nowhere."""
    deadline_s = time.monotonic() + PROCESS_DEADLINE_S
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its arguments are not usable"
        raise _Bad("credential_process", f"the program does not start: {reason}") from None
    with process:
        try:
            output = _read(process, deadline_s)
            status = process.wait(max(deadline_s - time.monotonic(), 0.01))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise _Bad(
                "credential_process",
                f"the program did not end within {PROCESS_DEADLINE_S:g} s",
            ) from None
        finally:
            if process.returncode is None:
                # The whole group: a child of the program may hold the pipe open.
                os.killpg(process.pid, signal.SIGKILL)
    if status != 0:
        how = f"exit code {status}" if status > 0 else f"signal {-status}"
        raise _Bad("credential_process", f"the program ended with {how}")
    return output


def _read(process: subprocess.Popen[bytes], deadline_s: float) -> bytes:
    assert process.stdout is not None
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), MAX_KEY_TEXT)
            if not piece:
                return output
            output += piece
            if len(output) > MAX_KEY_TEXT:
                raise _Bad("credential_process", f"the program prints over {MAX_KEY_TEXT} bytes")
