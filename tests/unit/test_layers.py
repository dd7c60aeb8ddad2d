"""The ladder of rooms: imports go one way, wherever in a file they stand."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

PACKAGE = Path(__file__).parents[2] / "hypermux"

# Each room with those that it may import from.
LADDER: dict[str, set[str]] = {
    "": set(),  # hypermux/__init__.py, whose version is for everybody
    "model": set(),
    "core": {"model"},
    "config": {"model", "core"},
    "upstream": {"model", "core", "config"},
    "downstream": {"model", "core", "config"},
    "service": {"model", "core", "config", "upstream", "downstream"},
    "emulator": {"model", "core"},
    "client": set(),
    "cli": {"model", "core", "config", "upstream", "downstream", "service", "emulator", "client"},
    "__main__": {"cli"},
}
KNOWS_TRIO = {"upstream", "downstream", "emulator", "service", "cli"}
EVENT_LOOPS = {"anyio", "asyncio", "trio", "trio_websocket"}
# Decisions take time, chance and bytes as arguments.
NOT_IN_CORE = {
    *("io", "logging", "multiprocessing", "os", "pathlib", "secrets", "select", "shutil"),
    *("signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time"),
}
CLOCKS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}
# The emulator is there to find mistakes in the signer: it must not share them.
EMULATOR_SHARES = {"hypermux.core", "hypermux.core.filters"}


@frozen
class File:
    """One module of the package: its dotted name and its syntax tree."""

    module: str
    is_package: bool
    tree: ast.Module

    @property
    def room(self) -> str:
        return room_of(self.module)

    def imports(self) -> Iterator[str]:
        """Yield what is imported, in functions and for type checkers too.

        `from a import b` may name a module a.b or not; both a and a.b are yielded.
        """
        package = self.module if self.is_package else self.module.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: 1 - node.level or None] if node.level else []
                module = ".".join([*above, *filter(None, [node.module])])
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)

    def foreign(self) -> set[str]:
        """Return the top-level names of what is imported from elsewhere."""
        return {name.partition(".")[0] for name in self.imports()} - {"hypermux", "__future__"}

    def attributes(self) -> Iterator[tuple[str, str]]:
        """Yield `a.b` wherever it is looked up on a plain name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                yield node.value.id, node.attr


def room_of(module: str) -> str:
    """Return the room of `hypermux.ROOM.…`, "" for the package itself and its version."""
    room = module.split(".")[1] if "." in module else ""
    return "" if room == "__version__" else room


def read(path: Path) -> File:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return File(module, is_package, ast.parse(path.read_text(encoding="utf-8")))


FILES = [read(path) for path in sorted(PACKAGE.rglob("*.py"))]


def test_every_file_is_in_a_room_of_the_ladder() -> None:
    assert len(FILES) > 40
    assert {file.room for file in FILES} <= set(LADDER)


def test_imports_go_down_the_ladder() -> None:
    assert [
        (file.module, name)
        for file in FILES
        for name in file.imports()
        if name.partition(".")[0] == "hypermux"
        and room_of(name) not in LADDER[file.room] | {"", file.room}
    ] == []


def test_only_rooms_with_connections_know_an_event_loop() -> None:
    assert [
        (file.module, name)
        for file in FILES
        for name in file.foreign() & EVENT_LOOPS
        if file.room not in KNOWS_TRIO
    ] == []


def test_core_and_model_have_no_clock_no_chance_and_no_files() -> None:
    pure = [file for file in FILES if file.room in {"core", "model"}]
    assert [(file.module, file.foreign() & NOT_IN_CORE) for file in pure] == [
        (file.module, set()) for file in pure
    ]
    assert [
        (file.module, attribute)
        for file in pure
        for attribute in file.attributes()
        # random.Random is the type of an argument.
        if attribute in CLOCKS or (attribute[0] == "random" and attribute[1] != "Random")
    ] == []


def test_the_emulator_checks_signatures_by_code_of_its_own() -> None:
    emulator = [file for file in FILES if file.room == "emulator"]
    assert emulator
    shared = {name for file in emulator for name in file.imports() if room_of(name) == "core"}
    assert {".".join(name.split(".")[:3]) for name in shared} <= EMULATOR_SHARES


def test_the_client_needs_the_standard_library_alone() -> None:
    for file in FILES:
        if file.room == "client":
            assert file.foreign() <= sys.stdlib_module_names


def test_nothing_is_imported_by_a_computed_name() -> None:
    loaders = {"import_module", "__import__"}
    found = {
        file.module
        for file in FILES
        for node in ast.walk(file.tree)
        if (isinstance(node, ast.Name) and node.id in loaders)
        or (isinstance(node, ast.Attribute) and node.attr in loaders)
    }
    assert found <= {"hypermux.cli.root"}, "only the root command may: it loads what was asked for"


def test_imports_in_functions_and_relative_ones_count() -> None:
    source = "def f():\n    from ..upstream import x\n    import trio.abc\nfrom . import y\n"
    tree = ast.parse(source)
    found = set(File("hypermux.core.made_up", False, tree).imports())
    assert {"hypermux.upstream", "hypermux.upstream.x", "hypermux.core.y", "trio.abc"} <= found
    found = set(File("hypermux.core", True, tree).imports())
    assert {"hypermux.upstream", "hypermux.core.y"} <= found
