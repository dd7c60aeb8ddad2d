"""`hypermux journal`: list, check, read and repair the files of a journal."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from hypermux.cli.printing import make_formatter, notice, printing_options
from hypermux.cli.selecting import build_request, selection_options
from hypermux.config import accounts_file
from hypermux.core.recording import rfc3339
from hypermux.core.rendering import duration
from hypermux.core.request import BadRequest, Request
from hypermux.downstream.asking import ask
from hypermux.downstream.checking import Check, Report, sentence
from hypermux.downstream.console import Color, Output, StdoutWriter
from hypermux.downstream.journal import LOCK
from hypermux.downstream.onlooker import Onlooker, SegmentInfo
from hypermux.downstream.repair import Repair
from hypermux.downstream.storage import DiskStorage, is_locked, translated
from hypermux.model.errors import ConfigurationFault, DamagedData, Unreachable, UsageFault
from hypermux.model.records import Cursor
from hypermux.model.status import Status

F = TypeVar("F", bound=Callable[..., Any])

# A service that is there answers within a round of its loop. One that does not is read without it.
_ANSWER_S = 5.0
# The name of the directory beside `journal.toml`'s other names in a state directory.
_JOURNAL = "journal"
_WIDTH_OF_A_FILE = 200
# Damage that is told of one by one; the rest is counted.
_TOLD = 100
# They are held until the end is reached: some 100 MiB at the most.
_MOST_LAST = 200_000
_COLUMNS = (
    "segment", "records", "last seq", "size", "from", "to", "epoch", "index", "stored",
)  # fmt: skip


def place_options(function: F) -> F:
    """Add `--dir` and `-c` to a command, as arguments `directory` and `config`."""
    function = click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path),
        help="Take the state directory from there.",
    )(function)
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        help="The journal's directory, or the state directory that has it.",
    )(function)


@click.group("journal")
def command() -> None:
    """Look after the files that everything is recorded in.

    All but `repair` work beside a running service, without it, and on a copy; they show what is
    known to be on the disk and hold nothing up.
    """


@command.command("ls")
@place_options
@click.option("-o", "--format", "output", type=click.Choice(["text", "json"]), default="text")
def ls(directory: Path | None, config: Path | None, output: Literal["text", "json"]) -> None:
    """List the segments: their records, sizes, times and epochs, and what is kept in all.

    `index` says whether a segment can be searched without reading it; the one that is written to
    has its index in memory.
    """
    onlooker = look(directory, config)
    found = onlooker.list()
    if output == "json":
        click.echo(json.dumps(_document(onlooker, found)))
        return
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "segment",
        "records",
        "last seq",
        "size",
        "from",
        "to",
        "epoch",
        "index",
        "stored",
    ):
        right = name in ("records", "last seq", "size")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for info in found:
        table.add_row(
            info.name,
            str(info.last_seq - info.first_seq + 1),
            str(info.last_seq),
            _mib(info.size),
            _moment(info.from_ns),
            _moment(info.to_ns),
            ", ".join(info.epochs),
            "yes" if info.index else "no",
            "zstd" if info.compressed else "plain",
        )
    console.print(table)
    console.print(_total(onlooker, found))


@command.command("cat")
@place_options
@selection_options
@click.option(
    "-n", "--lines", type=click.IntRange(0, _MOST_LAST), help="The last N records of them."
)
@printing_options
def cat(
    directory: Path | None,
    config: Path | None,
    lines: int | None,
    output: Output | None,
    color: Color,
    **selection: Any,
) -> None:
    """Print the records of a journal, from its files: all of it, or what is selected.

    The same records as those of `tail --no-follow --after start`, and the same selection. Lines
    that are not known to be on the disk are not shown. Nothing is
    checked: damaged lines are printed as they are, and `journal verify` finds them.
    """
    formatter = make_formatter(output, color)
    wanted = build_request(formatter.output, **selection)
    wanted["follow"] = False
    if wanted.get("after") == "live":
        raise UsageFault("--after live: there is nothing behind the end; `hypermux tail` waits")
    try:
        request = Request.of(wanted, time.time_ns())
    except BadRequest as error:
        raise UsageFault(str(error)) from None
    onlooker = look(directory, config)
    writer = StdoutWriter()
    for block in onlooker.blocks(request) if lines is None else onlooker.last(request, lines):
        writer.write(formatter.format(block))
    if onlooker.behind and onlooker.damage is None and not onlooker.told:
        notice(
            f"the last {onlooker.behind} bytes are not shown: they are not known to be on the "
            "disk, or no whole records"
        )


@command.command("verify")
@place_options
def verify(directory: Path | None, config: Path | None) -> None:
    """Check every byte: checksums, order, epochs, and what lies beside the segments.

    Exits 65 when anything is wrong, with file, line, byte and what to do.
    """
    onlooker = look(directory, config)
    report = _check(onlooker)
    _tell(onlooker.directory, report)
    if not report.sound:
        damages = len(report.damages)
        parts = [f"{damages} damaged places"] if damages else []
        parts += [f"{len(report.faults)} files that do not fit"] if report.faults else []
        raise DamagedData(
            f"{onlooker.directory}: {' and '.join(parts)}. Restore the files from a copy, or stop "
            "the service and run `hypermux journal repair`: it keeps all good records, and tells "
            "readers what is lost"
        )


@command.command("repair")
@place_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def repair(directory: Path | None, config: Path | None, yes: bool) -> None:
    """Make a damaged journal whole again; the service has to be stopped.

    Good records keep their bytes and their place; gap records stand where others are lost. What
    was damaged is kept beside, and a new epoch begins. Says what it will do, and asks.
    """
    place, _ = _find(directory, config)
    storage = DiskStorage()
    _look_at(place, storage, None)  # there is one: no lock is left where there is no journal
    with translated(place, "lock"):
        try:
            lock = storage.lock(place / LOCK)
        except BlockingIOError:
            raise Unreachable(f"a hypermux holds {place}: stop it first") from None
    try:
        onlooker = Onlooker.open(place, storage, told_seq=None, locked=False)
        report = _check(onlooker)
        work = Repair(
            place, storage, report, onlooker.manifest, secrets.token_hex(4), time.time_ns()
        )
        plan = work.plan()
        if not plan:
            click.echo(f"{place}: nothing is damaged")
            return
        for line in plan[:_TOLD]:
            click.echo(line)
        if len(plan) > _TOLD:
            click.echo(f"… {len(plan) - _TOLD - 1} more; at last: {plan[-1]}")
        if not yes:
            if not sys.stdin.isatty():
                raise UsageFault("nothing was changed: say --yes to have it done")
            click.confirm("Do it?", abort=True)
        work.run()
        click.echo(f"repaired: readers go on, and `hypermux run` begins in epoch {work.epoch}")
    finally:
        lock.close()


# Finding it


def _find(directory: Path | None, config: Path | None) -> tuple[Path, Path | None]:
    """Return where the journal is, and the socket of its service, if it is known."""
    if directory is not None:
        inner = directory / _JOURNAL
        return (inner if inner.is_dir() else directory), None
    path = config or accounts_file.find()
    if path is None:
        return accounts_file.default_state_dir() / _JOURNAL, accounts_file.default_socket_path()
    try:
        settings = accounts_file.load(path)
    except ConfigurationFault as error:
        # Who looks at a journal need not be able to read the service's secrets.
        if (state := accounts_file.state_dir(path)) is not None:
            return state / _JOURNAL, accounts_file.socket_path(path)
        raise UsageFault(
            f"{error}\nname the journal's directory with --dir, whatever is wrong there"
        ) from None
    return settings.state_dir / _JOURNAL, settings.socket.path


def look(directory: Path | None, config: Path | None) -> Onlooker:
    """Return the journal that the options name. Raises UsageFault, DiskFault."""
    place, socket = _find(directory, config)
    return _look_at(place, DiskStorage(), socket)


def _look_at(place: Path, storage: DiskStorage, socket: Path | None) -> Onlooker:
    locked = is_locked(place / LOCK)
    told = _told(place, socket) if locked and socket is not None else None
    return Onlooker.open(place, storage, told_seq=told, locked=locked)


def _told(place: Path, socket: Path) -> int | None:
    """Return the last record that the service at the socket shows, None if it is not this one's."""
    try:
        answer = ask(socket, "GET", "/status", timeout_s=_ANSWER_S)
        if answer.status != 200:
            return None
        journal = msgspec.json.decode(answer.body, type=Status).journal
        if not place.samefile(journal.directory):
            return None
        return Cursor.parse(journal.cursor).seq
    except (Unreachable, OSError, ValueError):
        return None


# Telling


def _check(onlooker: Onlooker) -> Report:
    """Check, with the progress on a terminal."""
    if not sys.stderr.isatty():
        return Check(onlooker).run()
    total = sum(info.size for info in onlooker.list()) or 1
    with click.progressbar(length=total, label="checking", file=sys.stderr, show_eta=True) as bar:
        return Check(onlooker, lambda done: bar.update(done - bar.pos)).run()


def _tell(place: Path, report: Report) -> None:
    for segment, damage in report.damages[:_TOLD]:
        click.echo(f"{place}/{sentence(segment.name, damage)}")
    if (more := len(report.damages) - _TOLD) > 0:
        click.echo(f"… and {more} damaged places more")
    for fault in report.faults:
        click.echo(f"{place / fault.name}: {fault.reason}")
    for remark in report.remarks:
        click.echo(remark)
    words = "all of them sound" if report.sound else "not all of it is sound"
    click.echo(
        f"{len(report.segments)} segments, {report.records} records, {_mib(report.size)}: {words}"
    )


def _document(onlooker: Onlooker, found: list[SegmentInfo]) -> dict[str, Any]:
    return {
        "directory": str(onlooker.directory),
        "epoch": _epoch(onlooker),
        "first_seq": found[0].first_seq,
        "last_seq": onlooker.position.seq,
        "size": sum(info.size for info in found),
        "segments": [
            {
                "name": info.name,
                "first_seq": info.first_seq,
                "last_seq": info.last_seq,
                "records": info.last_seq - info.first_seq + 1,
                "size": info.size,
                "from": None if info.from_ns is None else rfc3339(info.from_ns),
                "to": None if info.to_ns is None else rfc3339(info.to_ns),
                "epochs": info.epochs,
                "index": info.index,
                "compressed": info.compressed,
                "last": info.last,
            }
            for info in found
        ],
    }


def _total(onlooker: Onlooker, found: list[SegmentInfo]) -> str:
    records = onlooker.position.seq - found[0].first_seq + 1
    size = _mib(sum(info.size for info in found))
    parts = [f"{len(found)} segments, {records} records, {size}"]
    began, ended = found[0].from_ns, found[-1].to_ns or found[-1].from_ns
    if began is not None and ended is not None:
        parts.append(f"retention covers {duration(max(0, ended - began))}")
    if (epoch := _epoch(onlooker)) is not None:
        parts.append(f"the last record is {epoch}:{onlooker.position.seq}")
    return "; ".join(parts)


def _epoch(onlooker: Onlooker) -> str | None:
    return None if onlooker.manifest is None else onlooker.manifest.epochs[-1].name


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.1f} KiB"


def _moment(ns: int | None) -> str:
    return "" if ns is None else rfc3339(ns)[:19].replace("T", " ")
