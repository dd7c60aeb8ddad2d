"""`hypermux sign`: a signed upgrade request, printed and not sent."""

from __future__ import annotations

import json
import os
import time
from typing import Literal

import click

from hypermux.cli import handshake, watching
from hypermux.cli.filtering import read_filters
from hypermux.cli.keys import credential_source, key_options
from hypermux.config import credentials
from hypermux.core import signing
from hypermux.core.filters import HYPER_FIELDS
from hypermux.model.accounts import Endpoint, RegionSigning, Tls
from hypermux.model.errors import UsageFault

Format = Literal["headers", "curl", "wscat", "json"]

# Enough to see the answer, and the line ends by itself when it is piped into a shell.
CURL_TIME_S = 5


@click.command("sign")
@click.option("--addr", required=True, metavar="HOST[:PORT]", help="The server.")
@key_options
@click.option("--region", help="To sign for; else R of a host R.hyper.sh, else us-west-1.")
@click.option("--date", metavar="YYYYMMDDTHHMMSSZ", help="Sign as of then; else now.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE[,…]", help="Select events.")
@click.option(
    "--region-signing",
    type=click.Choice(["explicit", "legacy"]),
    default="explicit",
    show_default=True,
    help="legacy: take the region from --addr by the original client's rule.",
)
@click.option("--path", default="/events/ws", show_default=True, help="The path.")
@click.option("--plain", is_flag=True, help="ws:// instead of wss://.")
@click.option("--ca", type=click.Path(), metavar="FILE", help="The authority to trust (PEM).")
@click.option("--insecure", is_flag=True, help="Accept any certificate.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["headers", "curl", "wscat", "json"]),
    default="headers",
    show_default=True,
    help="What to print.",
)
def command(
    addr: str,
    access_key: str | None,
    secret_key_file: str | None,
    region: str | None,
    date: str | None,
    filters: tuple[str, ...],
    region_signing: RegionSigning,
    path: str,
    plain: bool,
    ca: str | None,
    insecure: bool,
    form: Format,
) -> None:
    """Print a signed request without sending it.

    `hypermux sign --format curl … | sh` shows the server's answer and ends after five seconds.
    What is printed lets its reader in for five minutes. Keys come from --access-key and
    --secret-key-file, or from HYPER_ACCESS_KEY and HYPER_SECRET_KEY.
    """
    endpoint = watching.hyper_endpoint(addr, path, plain=plain)
    if region_signing == "legacy":
        region = signing.legacy_region(addr)
    if region is None:
        region = watching.region_of(endpoint.host)
    handshake.check_region(region)
    query = read_filters(filters, HYPER_FIELDS).query()
    now_utc_s = time.time() if date is None else _parse_date(date)
    credential = credentials.load(credential_source(access_key, secret_key_file), file="sign")
    signed = signing.sign_upgrade(
        endpoint, query, credential=credential, region=region, now_utc_s=now_utc_s
    )
    tls = Tls(verify=not insecure, ca=None if ca is None else os.path.abspath(ca))
    click.echo(_render(form, endpoint, query, signed, tls))


def _render(form: Format, endpoint: Endpoint, query: str, signed: signing.Signed, tls: Tls) -> str:
    match form:
        case "curl":
            return handshake.curl_command(endpoint, query, signed, tls=tls, max_time_s=CURL_TIME_S)
        case "wscat":
            return handshake.wscat_command(endpoint, query, signed, tls=tls)
        case "headers":
            return "\n".join(f"{name}: {value}" for name, value in signed.headers)
    tree = {
        "url": handshake.url_with_query(endpoint, query),
        "canonical_request": signed.canonical_request,
        "string_to_sign": signed.string_to_sign,
        "signature": signed.signature,
        "authorization": signed.authorization,
        "headers": dict(signed.headers),
    }
    return json.dumps(tree, indent=2)


def _parse_date(text: str) -> float:
    try:
        return signing.parse_date(text)
    except ValueError as error:
        raise UsageFault(f"--date {text}: {error}") from None
