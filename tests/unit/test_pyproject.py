"""pyproject.toml declares what is imported, within bounds, and nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"hypermux", "simulator", "util_lib"} | {
    path.stem for path in (ROOT / "tests").glob("*/*.py")
}
# Run by name, or loaded by pytest: no file imports them.
NOT_IMPORTED = {"mypy", "ruff", "pytest_trio", "pytest_xdist"}


def imported(paths: Iterable[Path]) -> set[str]:
    """The first parts of the imported modules' names that are not Python's own."""
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OURS


def declared(*lists: Iterable[str]) -> set[str]:
    """The modules that the requirements bring: all are named like their packages."""
    return {
        re.split("[^A-Za-z0-9_-]", requirement)[0].replace("-", "_").lower()
        for requirements in lists
        for requirement in requirements
    }


EXTRAS = PROJECT["optional-dependencies"]


def test_what_the_package_imports_is_declared_and_all_of_it() -> None:
    found = imported((ROOT / "hypermux").rglob("*.py"))
    assert found == declared(PROJECT["dependencies"], EXTRAS["emulator"])


def test_what_the_tests_and_scripts_import_is_declared() -> None:
    scripts = (ROOT / "scripts").rglob("*.py")
    other = [ROOT / "scripts" / "util", ROOT / "scripts" / "verify"]
    found = imported([*(ROOT / "tests").rglob("*.py"), *scripts, *other])
    known = declared(PROJECT["dependencies"], *EXTRAS.values())
    assert found <= known
    assert declared(EXTRAS["dev"]) - NOT_IMPORTED <= found


def test_every_requirement_has_both_bounds() -> None:
    for requirement in (*PROJECT["dependencies"], *EXTRAS["emulator"], *EXTRAS["dev"]):
        assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+,<[0-9.]+", requirement), requirement
