"""The way to an endpoint in the accounts file: pins and proxies."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner

from hypermux.cli.check import command
from hypermux.config import accounts_file
from hypermux.config.settings import Settings
from hypermux.model.accounts import Endpoint, Proxy, Secret, Tls, uses_tls
from hypermux.model.errors import ConfigurationFault

HEX = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
PIN = "sha256:ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8="
OTHER = "sha256://///wARIjNEVWZ3iJmqu8zd7v8AESIzRFVmd4iZqrs="
HYPER = """
[accounts.prod]
access_key = "AK1"
secret_key_env = "PROD_SECRET"
endpoint = "wss://{region}.example.com/events/ws"
regions = ["us-west-1", "eu"]
"""
DOCKER = '[accounts.ci]\nupstream = "docker"\n'


def load(tmp_path: Path, text: str, mode: int = 0o600) -> Settings:
    path = tmp_path / "accounts.toml"
    path.write_text(text)
    path.chmod(mode)
    return accounts_file.load(path)


def problems(tmp_path: Path, text: str, mode: int = 0o600) -> list[str]:
    with pytest.raises(ConfigurationFault) as caught:
        load(tmp_path, text, mode)
    assert "canary" not in str(caught.value)
    return [f"{p.key}: {p.message}" for p in caught.value.problems]


def test_a_pin_in_every_form(tmp_path: Path) -> None:
    for written in (f'"{PIN}"', f'"sha256:{HEX}"', f'"{PIN.replace(":", "//")}"', f'["{PIN}"]'):
        settings = load(tmp_path, f"{HYPER}pin = {written}\n")
        assert [source.tls.pins for source in settings.sources] == [(PIN,), (PIN,)]
    assert load(tmp_path, f'{HYPER}pin = ["{PIN}", "{OTHER}"]').sources[0].tls.pins == (PIN, OTHER)
    inherited = load(tmp_path, f'[defaults]\npin = "{PIN}"\n{HYPER}')
    assert inherited.sources[0].tls == Tls(pins=(PIN,))


def test_what_is_no_pin_is_shown_with_the_right_form(tmp_path: Path) -> None:
    for wrong, says in (
        ('"deadbeef"', "is not a pin"),
        (f'"{PIN[:-4]}"', "44 characters of base64 or 64 of hex"),
        ("[]", "pins nothing"),
        ("5", "is not text"),
    ):
        found = problems(tmp_path, f"{HYPER}pin = {wrong}\n")
        assert len(found) == 1
        assert found[0].startswith("accounts.prod.pin")
        assert says in found[0]


def test_a_pin_makes_unverified_tls_no_matter_for_a_warning(tmp_path: Path) -> None:
    assert load(tmp_path, f"{HYPER}tls_verify = false\n").warnings
    assert not load(tmp_path, f'{HYPER}tls_verify = false\npin = "{PIN}"\n').warnings


def test_a_pin_is_for_tls(tmp_path: Path) -> None:
    tcp = load(tmp_path, f'{DOCKER}hosts = {{ a = "tcp://h:1", b = "unix:///s" }}\npin = "{PIN}"')
    a, b = tcp.sources
    assert uses_tls(a.endpoint, a.tls)
    assert not uses_tls(b.endpoint, b.tls)
    assert not uses_tls(a.endpoint, evolve(a.tls, pins=()))
    assert problems(tmp_path, f'{DOCKER}pin = "{PIN}"') == [
        "accounts.ci.pin: is for TLS, which no endpoint of this account uses"
    ]
    # What all accounts have need not suit every one.
    load(tmp_path, f'[defaults]\npin = "{PIN}"\n{DOCKER}')


def test_a_proxy(tmp_path: Path) -> None:
    settings = load(tmp_path, f'{HYPER}proxy = "http://p.example:3128"\n')
    assert [s.endpoint.proxy for s in settings.sources] == [Proxy("p.example", 3128)] * 2
    assert [s.endpoint.address for s in settings.sources] == [
        "us-west-1.example.com:443",
        "eu.example.com:443",
    ]
    login = load(tmp_path, f'{HYPER}proxy = "http://me%40x:canary%3A%2F@[::1]:3128/"\n')
    proxy = login.sources[0].endpoint.proxy
    assert proxy == Proxy("::1", 3128, Secret("me@x:canary:/"))
    assert str(proxy) == "http://[::1]:3128"
    assert "canary" not in f"{login!r} {login.sources[0].endpoint}"
    none = load(tmp_path, f'[defaults]\nproxy = "http://p:1"\n{HYPER}proxy = "none"\n')
    assert none.sources[0].endpoint.proxy is None


def test_sockets_and_ssh_have_no_proxy(tmp_path: Path) -> None:
    proxy = 'proxy = "http://p:1"\n'
    hosts = 'hosts = { a = "tcp://h:1", b = "unix:///s" }\n'
    a, b = load(tmp_path, f"[defaults]\n{proxy}{DOCKER}{hosts}").sources
    assert a.endpoint.proxy == Proxy("p", 1)
    assert b.endpoint.proxy is None
    load(tmp_path, f"[defaults]\n{proxy}{DOCKER}")
    assert "accounts.ci.proxy: is for TCP" in problems(tmp_path, f"{DOCKER}{proxy}")[0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("https://canary-user:canary@p:3128", "only http:// proxies"),
        ("socks5://canary@p:1", "only http:// proxies"),
        ("p:3128", "only http:// proxies"),
        ("http://p", "written http://HOST:PORT"),
        ("http://me:canary@p", "written http://HOST:PORT"),
        ("http://me:can@ary:p", "written http://HOST:PORT"),
        ("http://me:canary@p:99999", "written http://HOST:PORT"),
        ("http://me:canary@p:1/path", "written http://HOST:PORT"),
        ("http://:canary@p:1", "as %XX"),
        ("http://me%3Ayou:canary@p:1", "as %XX"),
        ("http://me:canary%0A@p:1", "as %XX"),
        ("http://[::canary@p:1", "written http://HOST:PORT"),
    ],
)
def test_a_wrong_proxy_is_told_without_its_text(tmp_path: Path, wrong: str, says: str) -> None:
    (found,) = problems(tmp_path, f'{HYPER}proxy = "{wrong}"\n')
    assert found.startswith("accounts.prod.proxy: ")
    assert says in found


def test_a_proxy_password_is_for_private_files(tmp_path: Path) -> None:
    text = f'{HYPER}proxy = "http://me:canary@p:1"\n'
    (found,) = problems(tmp_path, text, 0o644)
    assert found.startswith("accounts.prod.proxy: has a password in a file that others can read")
    load(tmp_path, f'{HYPER}proxy = "http://p:1"\n', 0o644)


def test_a_proxy_password_that_stands_elsewhere_too_is_masked(tmp_path: Path) -> None:
    text = f'{HYPER}proxy = "http://me:canary-pass@p:1"\nregion_signing = "canary-pass"\n'
    assert "region_signing" in problems(tmp_path, text)[0]


def test_check_shows_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROD_SECRET", "secret-key")
    path = tmp_path / "accounts.toml"
    path.write_text(
        f'{HYPER}proxy = "http://me:canary@p:1"\npin = "sha256:{HEX}"\ntls_verify = false\n'
        "redact = ['canary']\n"
    )
    path.chmod(0o600)
    result = CliRunner().invoke(command, ["-c", str(path)])
    assert result.exception is None, result.output
    assert "account prod: through the proxy http://p:1 with a password\n" in result.output
    assert f"account prod: pinned to {PIN}, certificates not verified\n" in result.output
    assert "account prod: what a pattern matches is not recorded\n" in result.output
    assert "canary" not in result.output


def test_redact(tmp_path: Path) -> None:
    text = f"{HYPER}redact = ['(?i)canary=\\S+', 'x+']\n"
    settings = load(tmp_path, text)
    assert settings.sources[0].redact == (r"(?i)canary=\S+", "x+")
    assert "canary" not in repr(settings)
    inherited = load(tmp_path, f"[defaults]\nredact = ['x+']\n{HYPER}").sources
    assert [source.redact for source in inherited] == [("x+",), ("x+",)]
    for wrong, says in (
        ("['x', '(canary']", "redact[1]: is not a regular expression: missing ), unterminated"),
        ("['(canary+)+']", "redact[0]: may take for ever"),
        ("['(canary)*']", "redact[0]: matches what is empty"),
        ("'canary'", "redact: is not an array: write it in brackets"),
        ("[5]", "redact[0]: is not a regular expression in quotes"),
    ):
        (found,) = problems(tmp_path, f"{HYPER}redact = {wrong}\n")
        assert found.startswith(f"accounts.prod.{says}")


def test_endpoints_over_ssh() -> None:
    for url in (
        "ssh://build1",
        "ssh://me@build1",
        "ssh://me@build1:2222",
        "ssh://me@[::1]:22/run/user/1000/podman/podman.sock",
        "ssh://_x.y-z@B.example/var/run/docker.sock",
    ):
        endpoint = Endpoint.parse(url)
        assert str(endpoint) == url
        assert endpoint.to_socket
        assert not endpoint.secure
    assert Endpoint.parse("ssh://me@build1/").path == ""
    assert Endpoint.parse("ssh://me@build1").address == "build1:22"
    assert Endpoint.parse("ssh://me@build1:2222").address == "build1:2222"


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=touch",
        "ssh://me@-v",
        "ssh://-l@host",
        "ssh://me:canary@host",
        "ssh://$(id)@host",
        "ssh://me@host/run/$(id).sock",
        "ssh://me@host/a b",
        "ssh://me@ho;st",
        "ssh://",
        "ssh://me@",
        "ssh://host:0",
        "ssh://host:70000",
        "ssh://host?x=1",
        "tcp://me@host:1",
    ],
)
def test_what_ssh_is_never_started_with(url: str) -> None:
    with pytest.raises(ValueError, match=r"ssh|host|port|query|user name") as caught:
        Endpoint.parse(url)
    assert "canary" not in str(caught.value)
