from __future__ import annotations

import grp
import os
import pwd
from math import inf
from pathlib import Path

import pytest

from hypermux.config import accounts_file, shape, tables
from hypermux.config.settings import BackoffSettings, Settings
from hypermux.core.filters import DOCKER_FIELDS, Filters
from hypermux.model.accounts import Cap, CredentialSource, Endpoint, Secret, SourceId
from hypermux.model.errors import ConfigurationFault, UsageFault

EXAMPLE = Path(__file__).parents[2] / "accounts.toml.example"

GOOD = """
[accounts.prod]
access_key = "AK1"
secret_key_env = "PROD_SECRET"
endpoint = "wss://{region}.example.com/events/ws"
regions = ["us-west-1"]
"""
DOCKER = '[accounts.ci]\nupstream = "docker"\n'


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def load(tmp_path: Path, text: str, mode: int = 0o600) -> Settings:
    return accounts_file.load(write(tmp_path / "accounts.toml", text, mode))


def problems(tmp_path: Path, text: str, mode: int = 0o600) -> list[str]:
    """Return the problems of a text, without the file's name in front."""
    with pytest.raises(ConfigurationFault) as caught:
        load(tmp_path, text, mode)
    lines = str(caught.value).splitlines()
    assert lines == [str(p) for p in caught.value.problems]
    assert all(p.file.startswith(str(tmp_path)) for p in caught.value.problems)
    return [line.removeprefix(f"{tmp_path}/accounts.toml: ") for line in lines]


def only(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    found = problems(tmp_path, text, mode)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", 0o600),
        ("group = 0", 0o660),
        ("allow_uids = [1]", 0o666),
        ("allow_gids = [1]\ngroup = 0", 0o666),
        ("group = 0\nmode = '0666'", 0o666),
    ],
)
def test_the_sockets_mode_lets_in_who_may_read(tmp_path: Path, text: str, mode: int) -> None:
    assert load(tmp_path, f"[socket]\n{text}").socket.mode == mode


def test_who_may_read_is_named_or_numbered(tmp_path: Path) -> None:
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    socket = load(
        tmp_path,
        f"[socket]\nallow_uids = ['{user}', 7]\nallow_gids = [8, '{group}']\ngroup = 9",
    ).socket
    assert (socket.allow_uids, socket.allow_gids, socket.group) == ((0, 7), (8, 0), 9)
    assert socket.reader_gids == {8, 0, 9}


def test_a_mode_that_lets_nobody_in_is_said(tmp_path: Path) -> None:
    (warning, *_) = load(tmp_path, "[socket]\nmode = '0660'").warnings
    assert "socket.mode alone lets nobody in" in warning


# The example


def test_the_example_loads_and_shows_the_defaults(tmp_path: Path) -> None:
    example = accounts_file.load(EXAMPLE)
    plain = load(tmp_path, DOCKER)
    for section in ("limits", "connection", "merge", "buffer", "journal", "log"):
        assert getattr(example, section) == getattr(plain, section), section
    assert example.socket == plain.socket
    assert example.state_dir == plain.state_dir
    assert [s.id for s in example.sources] == [SourceId("local", "local")]
    assert example.warnings == ()


def test_the_example_names_every_key() -> None:
    text = EXAMPLE.read_text()
    names = [*tables.ACCOUNT_KEYS, *tables.ROOT_KEYS, "min", "max", "reset_after", "size"]
    for section in tables.SECTIONS:
        with pytest.raises(shape.Wrong) as wrong:  # what is no table is told its keys
            getattr(tables, section)(None)
        found = str(wrong.value).partition("its keys are ")[2].split(", ")
        assert len(found) > 1
        names += found
    for name in names:
        assert f"{name} =" in text or f"[{name}]" in text or f"[{name}." in text, name


def test_the_examples_disabled_accounts_need_only_their_files(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("enabled = false", "enabled = true")
    lines = problems(tmp_path, text)
    assert {line.partition(":")[0] for line in lines} == {
        "accounts.ci.ca",
        "accounts.ci.client_cert",
        "accounts.ci.client_key",
        "accounts.prod.secret_key_file",
        "accounts.prod.ca",
    }
    assert all("there is no such file" in line for line in lines)
    for name in ("ca.pem", "cert.pem", "key.pem", "prod.key", "router-ca.pem"):
        write(tmp_path / name, "x\n")
    assert len(load(tmp_path, text).sources) == 7


# What a good file means


def test_a_whole_file(tmp_path: Path) -> None:
    key = write(tmp_path / "prod.key", "k\n")
    ca = write(tmp_path / "tls/ca.pem", "x\n", 0o644)
    settings = load(
        tmp_path,
        """
        state_dir = "state"
        [defaults]
        endpoint = "wss://{region}.hyper.sh:443/events/ws"
        regions = ["us-west-1", "eu-central-1"]
        [accounts.prod]
        access_key = "AK"
        secret_key_file = "prod.key"
        regions = ["us-west-1", "lab"]
        endpoints = { lab = "wss://10.0.0.5:8443/events/ws" }
        region_signing = "legacy"
        filters = { event = ["start", "die"], label = ["env=prod"] }
        ca = "tls/ca.pem"
        limits = { max_connections = 20, connect_rate = "1/s" }
        [accounts.dev]
        credential_process = "get-keys 'dev one'"
        enabled = false
        [limits]
        max_connections = 7
        per_account = { connect_rate = "30/min" }
        [connection]
        backoff = { min = "1s" }
        [merge]
        window = "200ms"
        [journal]
        fsync = "100ms"
        segment = { size = "1MiB", age = "2h" }
        retain = { size = "1GiB" }
        keep_free = "0B"
        [socket]
        path = "s.sock"
        group = 0
        mode = "0660"
        """,
    )
    prod, dev = settings.accounts
    assert [str(s.id) for s in settings.sources] == ["prod/us-west-1", "prod/lab"]
    west, lab = prod.sources
    assert west.endpoint == Endpoint.parse("wss://us-west-1.hyper.sh:443/events/ws")
    assert lab.endpoint == Endpoint.parse("wss://10.0.0.5:8443/events/ws")
    assert west.credential == CredentialSource("AK", secret_key_file=str(key))
    assert west.tls.ca == str(ca)
    assert west.region_signing == "legacy"
    assert west.filters == Filters.from_mapping({"event": ["start", "die"], "label": ["env=prod"]})
    assert settings.account_caps["prod"] == Cap(20, 1.0)
    assert not dev.enabled
    assert dev.sources[0].credential == CredentialSource(process=("get-keys", "dev one"))
    assert settings.state_dir == tmp_path / "state"
    assert settings.socket.path == tmp_path / "s.sock"
    assert settings.socket.mode == 0o660
    assert settings.limits.max_connections == 7
    assert settings.limits.per_account == Cap(64, 0.5)
    assert settings.limits.per_endpoint == Cap(500, 10.0)
    assert settings.connection.backoff == BackoffSettings(min_s=1.0)
    assert settings.merge.window_s == 0.2
    assert settings.journal.fsync == 0.1
    journal = settings.journal
    assert (journal.segment_size, journal.segment_age_s) == (1 << 20, 7200)
    assert (journal.retain.size, journal.retain.age_s) == (1 << 30, 30 * 86400)
    assert journal.keep_free == 0
    assert settings.warnings == ()


def test_docker_hosts_are_regions_and_local_is_the_default(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        DOCKER + '[accounts.far]\nupstream = "docker"\nhosts = { b1 = "tcp://10.0.0.7:2376" }\n'
        'filters = { type = ["container"] }\nexclude_events = ["exec_*"]',
    )
    local, far = settings.sources
    assert local.id == SourceId("ci", "local")
    assert local.endpoint.path == "/var/run/docker.sock"
    assert local.credential is None
    assert far.endpoint.address == "10.0.0.7:2376"
    assert far.exclude_events == ("exec_*",)
    assert far.filters == Filters.from_mapping({"type": ["container"]}, fields=DOCKER_FIELDS)


def test_defaults_hold_any_key_and_the_accounts_own_value_wins(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [defaults]
        access_key = "AK"
        secret_key_env = "A"
        endpoint = "wss://{region}.example.com"
        regions = ["r1"]
        filters = { event = ["die"] }
        limits = { max_connections = 3 }
        expect_event_within = "1h"
        on_quiet = "redial"
        [accounts.a]
        [accounts.b]
        credential_process = "keys"
        regions = ["r2"]
        limits = { connect_rate = "1/s" }
        expect_event_within = "never"
        [accounts.c]
        upstream = "docker"
        on_quiet = "report"
        """,
    )
    a, b, c = settings.sources
    assert [s.expect_event_within_s for s in settings.sources] == [3600.0, inf, 3600.0]
    assert [s.on_quiet for s in settings.sources] == ["redial", "redial", "report"]
    assert a.credential == CredentialSource("AK", secret_key_env="A")
    assert b.credential == CredentialSource(process=("keys",))
    assert (str(a.id), str(b.id), str(c.id)) == ("a/r1", "b/r2", "c/local")
    assert settings.account_caps["b"] == Cap(None, 1.0)
    assert c.filters


def test_relative_paths_start_at_the_file_that_names_them(tmp_path: Path) -> None:
    write(tmp_path / "d.key", "k")
    write(tmp_path / "accounts.d/e.key", "k")
    write(tmp_path / "accounts.d/x.toml", GOOD.replace('env = "PROD_SECRET"', 'file = "e.key"'))
    settings = load(
        tmp_path,
        'include = ["accounts.d/*.toml"]\n[defaults]\nsecret_key_file = "d.key"\n'
        '[accounts.a]\naccess_key = "A"\nendpoint = "ws://h"\nregions = ["r"]',
    )
    own, included = settings.sources
    assert own.credential is not None
    assert included.credential is not None
    assert own.credential.secret_key_file == str(tmp_path / "d.key")
    assert included.credential.secret_key_file == str(tmp_path / "accounts.d/e.key")


def test_includes_come_after_the_main_file_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / f"accounts.d/{name}.toml", DOCKER.replace("ci", f"{name}-ci"))
    text = 'include = ["accounts.d/[bc]*.toml", "accounts.d/*.toml", "*.toml"]\n'
    settings = load(tmp_path, text + DOCKER.replace("ci", "z"))
    assert [a.name for a in settings.accounts] == ["z", "a-ci", "b-ci", "c-ci"]
    assert settings.accounts[1].file == tmp_path / "accounts.d/a.toml"


def test_pending_files_are_read_as_if_they_were_there(tmp_path: Path) -> None:
    main = write(tmp_path / "accounts.toml", DOCKER)
    pending = {tmp_path / "accounts.d/new.toml": GOOD}
    assert [a.name for a in accounts_file.load(main, pending=pending).accounts] == ["ci", "prod"]


def test_an_inline_secret_in_a_private_file(tmp_path: Path) -> None:
    text = GOOD.replace('secret_key_env = "PROD_SECRET"', 'secret_key = "canary-secret"')
    settings = load(tmp_path, text)
    assert settings.sources[0].credential == CredentialSource(
        "AK1", secret_key=Secret("canary-secret")
    )
    assert "canary" not in repr(settings)


# Warnings


def test_unverified_tls_is_a_warning(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD + "tls_verify = false")
    (warning,) = settings.warnings
    assert "accounts.prod: tls_verify = false" in warning


def test_a_client_key_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "c.pem", "x", 0o644)
    settings = load(tmp_path, DOCKER + 'client_cert = "c.pem"\nclient_key = "c.pem"')
    assert "chmod 600" in settings.warnings[0]


def test_two_sources_that_stream_the_same_are_a_warning(tmp_path: Path) -> None:
    settings = load(tmp_path, DOCKER + DOCKER.replace("ci", "cj"))
    assert "ci/local and cj/local stream the same events" in settings.warnings[0]


@pytest.mark.parametrize("text", ["", "[accounts.ci]\nupstream='docker'\nenabled=false"])
def test_nothing_enabled_is_a_warning(tmp_path: Path, text: str) -> None:
    assert "no account is enabled" in load(tmp_path, text).warnings[0]


# What is wrong


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationFault, match=r"none\.toml: file: there is no such file$"):
        accounts_file.load(tmp_path / "none.toml")


def test_a_directory_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigurationFault, match="is not a regular file"):
            accounts_file.load(path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[accounts.prod]\nregions = [", "end of the file: is not TOML"),
        ("a = 1\nb c\n", "line 2, column 3: is not TOML"),
        ("a = 1\na = 2\n", "line 2, column 6: is not TOML"),
        ("a = " + "[" * 5000, "file: is nested too deeply"),
        ("a = " + "9" * 5000, "file: is not TOML"),
    ],
)
def test_what_is_not_toml(tmp_path: Path, text: str, place: str) -> None:
    assert only(tmp_path, text).startswith(place)


def test_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "accounts.toml"
    path.write_bytes(b"# fine\n# \xff\n")
    with pytest.raises(ConfigurationFault, match="is not UTF-8 text: look at line 2"):
        accounts_file.load(path)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + DOCKER).sources


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    write(tmp_path / "accounts.d/x.toml", "[limits]\n[accounts.prod]\nendpoint = 5")
    lines = problems(
        tmp_path,
        """
        include = ["accounts.d/*.toml"]
        sate_dir = "x"
        [accounts.prod]
        acess_key = "AK"
        secret_key_env = "not a name"
        regions = ["us-west-1", 7, "a b"]
        filters = { evnt = ["start"] }
        enabled = "yes"
        [connection]
        dial_timeout = 10
        backoff = { max = "10" }
        max_message_size = "4GiB"
        [merge]
        window = "automatic"
        [limits]
        max_connections = 0
        connect_rate = 5
        [log]
        level = "warn"
        """,
    )
    inner = f"{tmp_path}/accounts.d/x.toml: "
    assert lines == [
        "sate_dir: is not a known table or key; did you mean state_dir?",
        "accounts.prod.enabled: is neither true nor false (is \"yes\")",
        "accounts.prod.secret_key_env: is not the name of an environment variable: "
        'write "PROD_SECRET_KEY"',
        "accounts.prod.regions[1]: is not text: write it in quotes (is 7)",
        "accounts.prod.regions[2]: is not a name: up to 64 letters, digits, '.', '_', '-', "
        'the first a letter or digit (is "a b")',
        "accounts.prod.acess_key: is not a known key; did you mean access_key?",
        f"{inner}limits: only [accounts.NAME] counts in an included file; "
        f"see {tmp_path}/accounts.toml",
        f"{inner}accounts.prod.endpoint: is not text: write it in quotes (is 5)",
        f"{inner}accounts.prod: is an account already, in {tmp_path}/accounts.toml",
        "accounts.prod.secret_key_env: is not enough: write the access_key that belongs to it",
        "accounts.prod.filters.evnt: is not a known filter of hyper; did you mean event?",
        "limits.max_connections: is not a whole number from 1 to 1000000 (is 0)",
        'limits.connect_rate: has no unit: write "5/s" (is 5)',
        'connection.dial_timeout: has no unit: write "10s" (is 10)',
        'connection.backoff.max: has no unit: write "10s" (is "10")',
        'connection.max_message_size: is not from 1KiB to 64MiB (is "4GiB")',
        'merge.window: is neither "auto" nor a duration such as "200ms" (is "automatic")',
        "log.level: is none of debug, info, warning, error; did you mean warning? (is \"warn\")",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('["us-west-1"]', "[]", 'regions: has no region: write regions = ["us-west-1"]'),
        ('regions = ["us-west-1"]', "", "regions: has no region"),
        ('["us-west-1"]', '["a", "a"]', 'regions[1]: is there twice (is "a")'),
        ('["us-west-1"]', '"us-west-1"', "regions: is not an array: write it in brackets"),
        ("wss://{region}", "http://{region}", "endpoint: is not for hyper: write \"wss://{region}"),
        ("wss://{region}", "wss://{zone}", "endpoint: only {region} can be filled in"),
        ("wss://", "", "endpoint: an endpoint is written wss://HOST"),
        ("wss://", "wss://me:canary@", "endpoint: an endpoint has no user name or password"),
        ("example.com", "example.com:99999", "endpoint: the port is a number from 1 to 65535"),
        ("/events/ws", "/events?x=1", "endpoint: an endpoint has no query"),
        ("{region}.example.com", "[::1", "endpoint: "),
        ('endpoint = "wss://{region}.example.com/events/ws"', "", "endpoint: is missing (for us-"),
        ('"AK1"', '""', "access_key: is empty"),
        ('"AK1"', '"A K"', "access_key: is not an access key"),
        ('access_key = "AK1"', "", "secret_key_env: is not enough: write the access_key"),
        ('secret_key_env = "PROD_SECRET"', "", "access_key: is not enough: write access_key with"),
        ('secret_key_env = "PROD_SECRET"', 'secret_key = ""', "secret_key: is empty"),
        ('secret_key_env = "PROD_SECRET"', 'secret_key = " "', "secret_key: is empty"),
        ('secret_key_env = "PROD_SECRET"', 'secret_key_env = ""', "secret_key_env: is empty"),
        ('secret_key_env = "PROD_SECRET"', "secret_key_file = ''", "secret_key_file: is empty"),
        ('secret_key_env = "PROD_SECRET"', "secret_key = 5", "secret_key: is not text"),
        ('secret_key_env = "PROD_SECRET"', "secret_key_file = 'no.key'", "secret_key_file: the"),
        ('access_key = "AK1"', 'credential_process = "x"', "secret_key_env: is one too many"),
    ],
)  # fmt: skip
def test_one_thing_wrong_in_an_account(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in GOOD
    line = only(tmp_path, GOOD.replace(old, new))
    assert line.startswith(f"accounts.prod.{problem}")
    assert "canary" not in line


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('hosts = { a = "tcp://x" }', 'hosts: belongs to upstream = "docker"'),
        ('filters = { type = ["x"] }', "filters.type: is not a known filter of hyper; known are"),
        ('filters = { event = "x" }', "filters.event: is not an array: write it in brackets"),
        ("filters = 5", "filters: is not a table"),
        ('filters = { event = ["a\\u0007"] }', "filters.event[0]: holds a control character"),
        ('endpoints = { us-west = "wss://x" }', "endpoints.us-west: is not among the account's "),
        ('ca = "none.pem"', "ca: there is no such file"),
        ('client_key = "accounts.toml"', "client_key: is not enough: write client_cert too"),
        ('upstream = "dokcer"', "upstream: is none of hyper, docker; did you mean docker?"),
        ('secret_key_file = "f"', "secret_key_env: is one too many beside secret_key_file"),
        ('credential_process = "a \'b"', "credential_process: has a quotation mark without"),
        ("limits = { max_connection = 5 }", "limits.max_connection: is not a known key; did you "),
        ("limits = { connect_rate = '0/s' }", "limits.connect_rate: is not from 1/h to 100000/s"),
        ("retain = 5", "retain: is not a known key; "),
        ("expect_event_within = 60", "expect_event_within: "),
        (
            'expect_event_within = "nev"',
            'expect_event_within: is neither "never" nor a duration such as "1h"',
        ),
        ('expect_event_within = "1ms"', "expect_event_within: is not from 1s to 365d"),
        ('on_quiet = "redail"', "on_quiet: is none of report, redial; did you mean redial?"),
        (
            'on_quiet = "redial"',
            'on_quiet: is of no use alone: write expect_event_within = "1h" too',
        ),
        ('"a\\u001bb" = 5', 'accounts.prod."a\\u001bb": is not a known key'),
    ],
)
def test_one_line_too_many_in_an_account(tmp_path: Path, line: str, problem: str) -> None:
    if not problem.startswith("accounts"):
        problem = f"accounts.prod.{problem}"
    assert any(found.startswith(problem) for found in problems(tmp_path, GOOD + line))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hosts = {}", "hosts: has no host"),
        ('hosts = { a = "wss://x" }', "hosts.a: is not for docker"),
        ('hosts = { a = "unix://relative" }', "hosts.a: a unix endpoint is written unix:///abs"),
        ('hosts = { "a b" = "tcp://x" }', 'hosts."a b": is not a name'),
        (f'hosts = {{ a = "unix:///{"x" * 107}" }}', "hosts.a: is longer than the 107 bytes"),
        ('access_key = "A"', 'access_key: belongs to upstream = "hyper"'),
        ('regions = ["a"]', 'regions: belongs to upstream = "hyper"'),
    ],
)
def test_one_line_wrong_in_a_docker_account(tmp_path: Path, line: str, problem: str) -> None:
    assert only(tmp_path, DOCKER + line).startswith(f"accounts.ci.{problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("accounts = 5", "accounts: is not a table"),
        ("accounts.prod = 5", "accounts.prod: is not a table: write [accounts.prod]"),
        ("defaults = []", "defaults: is not a table: write [defaults]"),
        ("limits = []", "limits: is not a table: write [limits]"),
        ('[accounts."a b"]\nupstream = "docker"', 'accounts."a b": is not a name'),
        ('state_dir = ""', "state_dir: is empty"),
        ("include = 'x'", "include: is not an array"),
        ("include = ['gone.toml']", "include[0]: there is no such file"),
        ("[journal]\nretain = { bytes = '1GiB' }", "journal.retain.bytes: is not a known key"),
        ("[journal]\nretain = '1GiB'", "journal.retain: is not a table; its keys are age, size"),
        ("[journal]\nsegment = { age = 1 }", "journal.segment.age: has no unit"),
        ("[journal]\nkeep_free = 1", "journal.keep_free: has no unit"),
        ("[journal]\nfsync = 'always'", 'journal.fsync: is none of "commit"'),
        ("[journal]\nfsync = true", 'journal.fsync: has no unit: write "1s"'),
        ("[htp]\n", "htp: is not a known table or key"),
        ("[socket]\nallow_users = []", "socket.allow_users: is not a known key"),
        ("[socket]\nallow_uids = ['no-such-user']", "socket.allow_uids[0]: is not a user"),
        ("[socket]\nallow_uids = ['0']", "socket.allow_uids[0]: is not a user of this system: wr"),
        ("[socket]\nallow_gids = [-1]", "socket.allow_gids[0]: is not the number of a group"),
        ("[socket]\ngroup = 4294967295", "socket.group: is not the number of a group"),
        ("[socket]\ngroup = true", "socket.group: is not text"),
        ("[socket]\ngroup = 0\nmode = '0600'", "socket.mode: keeps socket.group out: write"),
        ("[socket]\nallow_uids = [1]\nmode = '0660'", "socket.mode: keeps out whom"),
        ("[socket]\nmode = 0o600", 'socket.mode: is not a mode: write "0600"'),
        ("[socket]\nmode = '0060'", "socket.mode: keeps the owner out"),
        (f"[socket]\npath = '/{'x' * 107}'", "socket.path: is longer than the 107 bytes"),
        ("[merge]\nwindow = '3s'", "merge.window: is over merge.max_hold"),
        ("[buffer]\nsize = '1MiB'", "buffer.per_source: is over buffer.size"),
        ("[buffer]\nper_source = '300KiB'", "buffer.per_source: has no room for two messages"),
        ("[connection]\nbackoff = { min = '2min' }", "connection.backoff.min: is over backoff.max"),
        ("[connection]\nbackoff = '1s'", "connection.backoff: is not a table; its keys are max, "),
        ("[limits]\nconnect_burst = true", "limits.connect_burst: is not a whole number"),
        ("[limits]\nmax_connections = 1.5", "limits.max_connections: is not a whole number"),
        (f"[limits]\nconnect_burst = 0x{'f' * 9000}", "limits.connect_burst: is not a whole"),
        ("[limits]\nconnect_rate = nan", 'limits.connect_rate: has no unit: write "1/s"'),
    ],
)  # fmt: skip
def test_one_thing_wrong_elsewhere(tmp_path: Path, text: str, problem: str) -> None:
    if text.startswith("[accounts"):
        assert only(tmp_path, text).startswith(problem)
    else:
        assert only(tmp_path, text).startswith(problem)


def test_a_problem_of_the_defaults_is_told_once_and_there(tmp_path: Path) -> None:
    text = '[defaults]\nendpoint = "http://x"\nfilters = { vent = ["x"] }\n'
    accounts = "".join(
        f'[accounts.{n}]\naccess_key = "A{n}"\nsecret_key_env = "S"\nregions = ["r"]\n'
        for n in "abc"
    )
    lines = problems(tmp_path, text + accounts)
    assert [line.partition(": ")[0] for line in lines] == [
        "defaults.endpoint",
        "defaults.filters.vent",
    ]


def test_a_name_given_twice_names_both_files(tmp_path: Path) -> None:
    write(tmp_path / "accounts.d/a.toml", DOCKER)
    write(tmp_path / "accounts.d/b.toml", DOCKER)
    line = only(tmp_path, 'include = ["accounts.d/*.toml"]')
    first, second = tmp_path / "accounts.d/a.toml", tmp_path / "accounts.d/b.toml"
    assert line == f"{second}: accounts.ci: is an account already, in {first}"


def test_a_secret_in_a_file_that_others_can_read(tmp_path: Path) -> None:
    text = GOOD.replace('secret_key_env = "PROD_SECRET"', 'secret_key = "canary-secret"')
    line = only(tmp_path, text, 0o640)
    assert line.startswith("accounts.prod.secret_key: ")
    assert line.endswith(f"type  chmod 600 {tmp_path}/accounts.toml")
    key = write(tmp_path / "prod key", "canary-secret", 0o604)
    text = GOOD.replace('env = "PROD_SECRET"', 'file = "prod key"')
    assert only(tmp_path, text, 0o644).endswith(f"type  chmod 600 '{key}'")


def test_the_service_managers_credentials_are_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "prod.key", "k", 0o440)
    text = GOOD.replace('env = "PROD_SECRET"', 'file = "prod.key"')
    assert "others can read" in only(tmp_path, text)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    load(tmp_path, text)


def test_a_secret_pasted_elsewhere_is_masked_there_too(tmp_path: Path) -> None:
    text = GOOD.replace('secret_key_env = "PROD_SECRET"', 'secret_key = "canary\\"secret"')
    text = text.replace('["us-west-1"]', "['canary\"secret']")
    assert "canary" not in only(tmp_path, text)


@pytest.mark.parametrize(
    "line",
    [
        'secret_kay = "canary-secret"',
        'secret_key_env = "canary-secret"',
        'secret_key_file = "canary-secret"',
        'access_key = "canary secret"',
        'credential_process = "canary-secret \'x"',
        'secret_key = "canary\\nsecret"',
        'secret_key = ["canary-secret"]',
        'endpoint = "wss://x:canary@h/"',
    ],
)
def test_no_value_from_a_secrets_place_is_shown(tmp_path: Path, line: str) -> None:
    text = '[accounts.a]\nregions = ["r"]\n' + line
    assert "canary" not in "".join(problems(tmp_path, text))


# Other functions


def test_included_asks_the_patterns(tmp_path: Path) -> None:
    main = write(tmp_path / "accounts.toml", 'include = ["accounts.d/*.toml"]')
    assert accounts_file.included(main, tmp_path / "accounts.d/new.toml")
    assert not accounts_file.included(main, tmp_path / "accounts.d/.new.toml")
    assert not accounts_file.included(main, tmp_path / "accounts.d/deep/new.toml")
    assert not accounts_file.included(main, tmp_path / "new.toml")
    assert not accounts_file.included(write(main, DOCKER), tmp_path / "accounts.d/new.toml")


def test_included_works_below_a_directory_with_brackets(tmp_path: Path) -> None:
    main = write(tmp_path / "[x]/accounts.toml", 'include = ["accounts.d/*.toml"]')
    assert accounts_file.included(main, tmp_path / "[x]/accounts.d/new.toml")
    (tmp_path / "[x]/accounts.d").mkdir()
    write(tmp_path / "[x]/accounts.d/new.toml", DOCKER)
    assert accounts_file.load(main).sources


def test_nearest() -> None:
    assert accounts_file.nearest("regoins", ["regions", "hosts"]) == "regions"
    assert accounts_file.nearest("x" * 100_000, ["regions"]) is None


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert accounts_file.locate(Path("x")) == Path("x")
    if not Path("/etc/hypermux/accounts.toml").exists():
        with pytest.raises(UsageFault, match="no accounts file"):
            accounts_file.locate()
    user = write(tmp_path / "config/accounts.toml", "")
    (tmp_path / "config/hypermux").mkdir()
    user = user.rename(tmp_path / "config/hypermux/accounts.toml")
    assert accounts_file.find() == user
    here = write(tmp_path / "accounts.toml", "")
    assert accounts_file.find() == here
