"""The mutation tool: its faults are the ones it says, and it tells noticed ones from others."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str) -> Any:
    spec = spec_from_file_location(name, ROOT / "scripts" / "util_lib" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # attrs asks for it
    spec.loader.exec_module(module)
    return module


MUTANTS = load("mutants")
CORE = sorted((ROOT / "hypermux" / "core").glob("*.py"))


def faults(body: str) -> set[str]:
    """Return what the mutants of a function's body make of its line, but for an empty body."""
    source = f"def f(a, b, c):\n    {body}\n"
    found = set()
    for mutant in MUTANTS.mutants(source):
        if mutant.kind != "body":
            text = mutant.apply(source)
            ast.parse(text)
            found.add(text.splitlines()[1].strip())
    return found


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("return a < b", {"return a <= b", "return a >= b", "return None"}),
        ("return a >= b", {"return a > b", "return a < b", "return None"}),
        ("return (a) == (b)", {"return (a) != (b)", "return None"}),
        ("return a is not b", {"return a is b", "return None"}),
        ("return a not in b", {"return a in b", "return None"}),
        ("return a < b <= c", {"return a <= b <= c", "return a >= b <= c", "return a < b < c",
                               "return a < b > c", "return None"}),
        ("return a + b", {"return a - b", "return None"}),
        ("return a // b", {"return a * b", "return None"}),
        ("return a and b and c", {"return a or b and c", "return a and b or c", "return None"}),
        ("return not a", {"return (a)", "return None"}),
        ("return -a", {"return (a)", "return None"}),
        ("return True", {"return False", "return None"}),
        ("return 7", {"return 8", "return 6", "return None"}),
        ("return 60_000", {"return 120000", "return 30000", "return None"}),
        ("return 0.5", {"return 1.5", "return -0.5", "return None"}),
        ("return min(a, b)", {"return max(a, b)", "return None"}),
        ("return a.popleft()", {"return a.pop()", "return None"}),
        ("return a if b and c else 'x'",
         {"return a if not (b and c) else 'x'", "return a if b or c else 'x'", "return None"}),
        ("return [x for x in a if x]", {"return [x for x in a if not (x)]", "return None"}),
        ("return None", set()),
        ("return", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a = b", set()),
        ("a += b", {"pass", "a -= b"}),
        ("a.append(b)", {"pass"}),
        ("raise a", {"pass"}),
        ("if a: b()", {"if not (a): b()", "if a: pass"}),
        ("for x in a: break", {"for x in a: pass", "for x in a: continue"}),
        ("'text'", set()),
        ("return 'text'", {"return None"}),
    ],
)  # fmt: skip
def test_a_line_and_its_faults(line: str, becomes: set[str]) -> None:
    assert faults(line) == becomes


def test_a_body_is_left_out_as_a_whole_and_a_generator_is_not() -> None:
    source = 'def f(a):\n    """Say."""\n    b = a\n    g(b)\n\ndef h():\n    x = 1\n    yield x\n'
    (body,) = (m for m in MUTANTS.mutants(source) if m.kind == "body")
    assert body.apply(source).startswith('def f(a):\n    """Say."""\n    return None\n\ndef h')
    assert body.lines == range(3, 4)


def test_declarations_are_left_alone() -> None:
    source = (
        "import x\nX: TypeAlias = A | B\n"
        "class C:\n    __slots__ = ('a', 'b')\n    a: int | None = field(default=None, eq=False)\n"
        "    def __init__(self, a: int | str) -> None:\n        super().__init__()\n"
    )
    assert [m.kind for m in MUTANTS.mutants(source)] == ["drop"]


def test_what_acts_at_import_concerns_every_test() -> None:
    source = "LEAST = 5\ndef f(a=2):\n    return (\n        a +\n        LEAST)\n"
    lines = {mutant.apply(source): mutant.lines for mutant in MUTANTS.mutants(source)}
    assert lines[source.replace("LEAST = 5", "LEAST = 6")] is None
    assert lines[source.replace("a=2", "a=1")] is None
    assert lines[source.replace("a +", "a -")] == range(3, 6)


def test_a_head_is_not_its_body() -> None:
    source = "def f(a):\n    while (\n        a > 1\n    ):\n        a = g(a)\n    return a\n"
    (head,) = (m for m in MUTANTS.mutants(source) if m.text == ">=")
    assert head.lines == range(2, 5)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_every_fault_in_the_core_is_one_place_that_still_parses(path: Path) -> None:
    source = path.read_text()
    found = MUTANTS.mutants(source)
    assert found == MUTANTS.mutants(source)
    assert len({mutant.apply(source) for mutant in found} | {source}) == len(found) + 1
    for mutant in found[:: max(1, len(found) // 20)]:
        ast.parse(mutant.apply(source))


@pytest.mark.slow
def test_the_command_counts_what_is_noticed() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "mutate.py"), "--module", "backoff"]
    done = subprocess.run(
        [*command, "--sample", "6", "--seed", "1", "--workers", "1", "--least", "50"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["backoff", "6", "mutants"]
    bar = subprocess.run(
        [*command, "--sample", "1", "--least", "101"], capture_output=True, text=True, timeout=120
    )
    assert bar.returncode == 1
