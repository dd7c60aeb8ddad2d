"""`hypermux watch`: sources in the foreground, records on the terminal, nothing kept."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import trio
from attrs import define, evolve, frozen

from hypermux.cli import handshake, watching
from hypermux.cli.filtering import read_filters
from hypermux.cli.keys import credential_source, key_options
from hypermux.cli.logs import configure
from hypermux.cli.printing import make_formatter, notice, printing_options
from hypermux.cli.running import run_service
from hypermux.cli.tail import print_records
from hypermux.config import accounts_file, credentials
from hypermux.config.settings import Settings
from hypermux.core import lines, rendering
from hypermux.core.filters import DOCKER_FIELDS, HYPER_FIELDS
from hypermux.core.selection import Selection, Selector
from hypermux.downstream.console import (
    Color,
    Formatter,
    Output,
    Printer,
    StdoutWriter,
    run_console,
)
from hypermux.model.accounts import RegionSigning, Tls
from hypermux.model.errors import DiskFault, Undelivered, UsageFault
from hypermux.service import Service

log = logging.getLogger("hypermux.watch")

PEM = click.Path(exists=True, dir_okay=False, readable=True)


@frozen
class Selected:
    """Prints only what was selected."""

    printer: Printer
    selector: Selector

    def format(self, block: bytes) -> bytes:
        """See `Printer.format`."""
        return self.printer.format(self.selector.select(block)[0])


@frozen
class PrettyEvents:
    """The events alone, indented; all else as `aside` prints it."""

    aside: Formatter

    def format(self, block: bytes) -> bytes:
        """See `Printer.format`."""
        events = []
        for line in block.splitlines(keepends=True):
            raw = lines.event_of(line)
            events.append(self.aside.format(line) if raw is None else rendering.pretty(raw))
        return b"".join(events)


@click.command("watch")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The accounts file.")
@click.option(
    "--docker",
    multiple=True,
    metavar="URL",
    help="A Docker or Podman host, or context:NAME; repeats.",
)
@click.option("--addr", metavar="HOST:PORT", help="One account at this address, without a file.")
@key_options
@click.option(
    "--region",
    help="With --addr: the region; else the host's, else us-west-1.",
)
@click.option("--path", default="/events/ws", show_default=True, help="With --addr: the path.")
@click.option("--ca", type=PEM, help="With --addr: the authority to trust (PEM).")
@click.option("--insecure", is_flag=True, help="With --addr: accept any certificate.")
@click.option("--pin", multiple=True, metavar="sha256:…", help="With --addr: the server's key.")
@click.option("--plain", is_flag=True, help="With --addr: no TLS.")
@click.option(
    "--region-signing",
    type=click.Choice(["explicit", "legacy"]),
    default="explicit",
    help="With --addr: legacy signs as the original client did.",
)
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE[,…]", help="Select events.")
@click.option("--pretty", is_flag=True, help="Indented JSON; with --addr of the events alone.")
@click.option("--debug", is_flag=True, help="With --addr: print a curl and a wscat command line.")
@click.option("--output", "file", type=click.Path(path_type=Path), help="Append records there too.")
@printing_options
def command(
    config: Path | None,
    docker: tuple[str, ...],
    addr: str | None,
    access_key: str | None,
    secret_key_file: str | None,
    region: str | None,
    path: str,
    ca: str | None,
    insecure: bool,
    pin: tuple[str, ...],
    plain: bool,
    region_signing: RegionSigning,
    filters: tuple[str, ...],
    pretty: bool,
    debug: bool,
    file: Path | None,
    output: Output | None,
    color: Color,
) -> None:
    """Watch one account (--addr), Docker hosts (--docker), or all of an accounts file.

    With none of them and no accounts file: the engine that the docker command would take. Where
    a service runs with that accounts file already, its stream is read instead. Nothing is kept
    when it ends, but what --output FILE was given. With --addr events are printed as received,
    unless -o says otherwise. Ctrl-C ends it.
    """
    if sum([config is not None, bool(docker), addr is not None]) > 1:
        raise UsageFault("--config, --docker and --addr exclude each other")
    if addr is None and (
        debug or access_key or secret_key_file or region or ca or insecure or pin or plain
    ):
        raise UsageFault(
            "--access-key, --region, --ca, --insecure, --pin, --plain, --debug need --addr"
        )
    if pretty and output not in (None, "pretty"):
        raise UsageFault("--pretty and -o exclude each other")
    if addr is not None:
        endpoint = watching.hyper_endpoint(addr, path, plain=plain)
        keys = credential_source(access_key, secret_key_file)
        credentials.load(keys, file="watch")  # a key that cannot be read is told before anything
        if region is None:
            region = watching.region_of(endpoint.host)
        handshake.check_region(region)
        settings = watching.one_account(
            endpoint,
            region,
            keys,
            tls=Tls(
                verify=not insecure,
                ca=None if ca is None else os.path.abspath(ca),
                pins=watching.pins_of(pin, plain=plain),
            ),
            filters=read_filters(filters, HYPER_FIELDS),
            region_signing=region_signing,
        )
        raw = make_formatter(output or "raw", color)
        _watch(settings, PrettyEvents(raw) if pretty else raw, file, debug=debug)
        return
    formatter = make_formatter("pretty" if pretty else output, color)
    selected = read_filters(filters, DOCKER_FIELDS)
    found = None if docker else config or accounts_file.find()
    if found is None:
        hosts = docker or [watching.default_docker()]
        _watch(watching.docker_hosts(hosts, filters=selected), formatter, file)
        return
    settings = accounts_file.load(found)
    printer = Selected(formatter, Selector(Selection(filters=selected)))
    if _serves(settings.socket.path):
        if file is not None:
            raise UsageFault(
                f"a service runs with {settings.file}; its records are in {settings.state_dir}: "
                "--output would write them a second time"
            )
        notice(f"a service runs with {settings.file}: reading from {settings.socket.path}")
        print_records(settings.socket.path, {}, printer)
        return
    configure(settings.log.level, "human")
    for warning in settings.warnings:
        log.warning("%s", warning)
    accounts_file.need_sources(settings)
    _run_ephemeral(settings, printer, file, None)


def _serves(path: Path) -> bool:
    """Say whether something answers at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except PermissionError:
            raise UsageFault(f"a service may run at {path}: this user cannot reach it") from None
        except OSError:
            return False
        return True


def _watch(settings: Settings, printer: Printer, file: Path | None, *, debug: bool = False) -> None:
    """Run settings that were made from a command line."""
    configure("error", "human")
    told = isinstance(printer, Formatter) and printer.output == "line"
    announcer = watching.Announcer(settings, debug=debug, told_elsewhere=told)
    _run_ephemeral(settings, printer, file, announcer)
    if announcer.fatal is not None:
        raise announcer.fatal


def _run_ephemeral(
    settings: Settings, printer: Printer, file: Path | None, announcer: watching.Announcer | None
) -> None:
    """Run with a state directory that is gone afterwards.

    Raises Undelivered when something could not be printed: it is kept nowhere else.
    """
    console = _Console(printer, StdoutWriter())
    with tempfile.TemporaryDirectory(prefix="hypermux-") as state:
        settings = evolve(settings, state_dir=Path(state))
        trio.run(_run, settings, console, file, announcer)
    if console.cut:
        raise Undelivered("stdout took nothing more: the last records were not printed")


async def _run(
    settings: Settings, console: _Console, file: Path | None, announcer: watching.Announcer | None
) -> None:
    shutdown = trio.Event()
    if announcer is not None:
        announcer.give_up = shutdown.set
    with ExitStack() as stack:
        readers = [console]
        if file is not None:
            try:
                appended = stack.enter_context(file.open("ab"))
            except OSError as error:
                raise DiskFault(f"cannot append to {file}: {error.strerror}") from error
            readers.append(_Console(Formatter("json"), StdoutWriter(appended.fileno())))
        await run_service(
            settings,
            readers=readers,
            observer=announcer,
            serve_socket=False,
            shutdown=shutdown,
            at_exit=partial(shutil.rmtree, settings.state_dir, ignore_errors=True),
        )


@define(eq=False)
class _Console:
    """Prints a service's records from its first on; `cut` when it was ended before the last."""

    printer: Printer
    writer: StdoutWriter
    cut: bool = False

    async def __call__(self, service: Service) -> None:
        try:
            await run_console(
                service.horizon,
                service.open_reader,
                self.printer,
                self.writer,
                after=service.horizon.position.seq,
                run_sync=service.seams.reader_runner,
            )
        except trio.Cancelled:
            self.cut = True
            raise
