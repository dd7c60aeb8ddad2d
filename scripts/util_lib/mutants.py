"""Small faults in a module's source, one at a time: what a test suite ought to notice.

Rules
- A mutant replaces one span of the source text, so that its lines keep their numbers and a
  difference shows what was changed and nothing else.
- Left alone: docstrings and other strings, annotations, imports, `__slots__`, and the keywords by
  which classes are declared (`kw_only`, `repr` ...): the type checker has an eye on those.
- Instead of what it returns a function returns nothing; instead of what counts as no, it does not:
  where that matters, the type checker sees it.
- A small number goes up and down by one, as a boundary would be missed. A large one is a size or a
  time somebody chose: by one more nobody would notice, so it is doubled and halved.
- The order is that of the source; the same source gives the same mutants.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from attrs import frozen

_COMPARISONS: Mapping[type[ast.cmpop], tuple[str, ...]] = {
    # the other side of the boundary, and the opposite
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
_OPERATORS: Mapping[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.BitXor: "&",
}
_NAMES: Mapping[str, str] = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "popleft": "pop",
    "appendleft": "append",
    "bisect_left": "bisect_right",
    "bisect_right": "bisect_left",
    "ceil": "floor",
    "floor": "ceil",
}
_DECLARING = frozenset(
    {"eq", "frozen", "hash", "init", "kw_only", "order", "repr", "slots", "strict"}
)
_DROPPED = (ast.AugAssign, ast.Delete, ast.Raise, ast.Continue, ast.Break)

LARGE = 100
_COMMENT = re.compile(r"\s+# .*$")

Span: TypeAlias = tuple[int, int]  # offsets in the source's bytes


@frozen
class Mutant:
    """One fault: `text` in place of `span`."""

    kind: str
    span: Span
    text: str
    # Lines of which a test must have run one to be able to notice; None: it acts at import.
    lines: range | None
    line: int
    # The function or class that it is in, with dots; empty: none.
    where: str

    def apply(self, source: str) -> str:
        """Return the source with the fault."""
        data = source.encode()
        start, end = self.span
        return (data[:start] + self.text.encode() + data[end:]).decode()

    def changes(self, source: str) -> tuple[str, str]:
        """Return the lines concerned as they are and as they become.

        Without indentation and comments, several in one.
        """
        before, after = source.splitlines(), self.apply(source).splitlines()
        was: list[str] = []
        becomes: list[str] = []
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        for tag, a, b, c, d in matcher.get_opcodes():
            if tag != "equal":
                was += (_COMMENT.sub("", line).strip() for line in before[a:b])
                becomes += (_COMMENT.sub("", line).strip() for line in after[c:d])
        return " ".join(was), " ".join(becomes)


def mutants(source: str) -> list[Mutant]:
    """Return every fault that this module makes in a source, in its order.

    Raises SyntaxError when the source is not Python.
    """
    found = _Finder(source).find()
    return sorted(set(found), key=lambda mutant: (mutant.span, mutant.kind, mutant.text))


class _Finder:
    """One walk over a source."""

    def __init__(self, source: str) -> None:
        self._data = source.encode()
        self._tree = ast.parse(source)
        self._where: list[str] = []
        self._starts = [0]
        for line in self._data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def find(self) -> Iterator[Mutant]:
        for statement in self._tree.body:
            yield from self._statement(statement, inside=False)

    # -- places in the text

    def _span(self, node: ast.expr | ast.stmt) -> Span:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self._data[start:end].decode()

    def _between(self, left: ast.expr, right: ast.expr, token: str) -> Span:
        """Return where an operator stands between its operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        gap = self._data[start:end]
        place = start + gap.index(token.encode())
        return place, place + len(token)

    def _mutant(self, kind: str, span: Span, text: str, lines: range | None, line: int) -> Mutant:
        return Mutant(kind, span, text, lines, line, ".".join(self._where))

    # -- statements

    def _statement(self, node: ast.stmt, *, inside: bool) -> Iterator[Mutant]:
        """`inside` a function: it runs when a test runs it; otherwise when it is imported."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._where.append(node.name)
            if isinstance(node, ast.ClassDef):
                for statement in node.body:
                    yield from self._statement(statement, inside=inside)
            else:
                yield from self._function(node)
            self._where.pop()
            return
        if self._is_left_alone(node):
            return
        lines = self._lines(node) if inside else None
        if inside:
            yield from self._drop(node, lines)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    yield from self._statement(child, inside=inside)
                elif isinstance(child, ast.ExceptHandler | ast.match_case):
                    for statement in child.body:
                        yield from self._statement(statement, inside=inside)
                elif isinstance(child, ast.AST):
                    yield from self._expressions(child, lines)
        if isinstance(node, ast.If | ast.While):
            yield from self._negate(node.test, lines)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Mutant]:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                yield from self._expressions(default, None)
        body = node.body
        if _is_docstring(body[0]):
            body = body[1:]
        # A body of one return is made to return nothing further below.
        if body and not isinstance(body[0], ast.Return | ast.Pass | ast.Raise):
            start, end = self._span(body[0])[0], self._span(body[-1])[1]
            text = "return" if node.name == "__init__" else "return None"
            if node.name != "__init__" and not _yields(node):
                yield self._mutant("body", (start, end), text, self._lines(body[0]), body[0].lineno)
        for statement in body:
            yield from self._statement(statement, inside=True)

    def _is_left_alone(self, node: ast.stmt) -> bool:
        if _is_docstring(node):
            return True
        if isinstance(node, ast.Assign):
            return any(isinstance(x, ast.Name) and x.id == "__slots__" for x in node.targets)
        if isinstance(node, ast.AnnAssign):
            return "TypeAlias" in ast.unparse(node.annotation)
        if isinstance(node, ast.If):
            return ast.unparse(node.test) == "TYPE_CHECKING"
        return False

    def _drop(self, node: ast.stmt, lines: range | None) -> Iterator[Mutant]:
        """Leave a statement out; a name that is not set would only fail at its next use."""
        to_names = isinstance(node, ast.Assign) and all(
            isinstance(target, ast.Name | ast.Tuple) for target in node.targets
        )
        if isinstance(node, _DROPPED) or (
            isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign)
            and not to_names
            and not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
        ):
            yield self._mutant("drop", self._span(node), "pass", lines, node.lineno)
        if isinstance(node, ast.Continue):
            yield self._mutant("loop", self._span(node), "break", lines, node.lineno)
        elif isinstance(node, ast.Break):
            yield self._mutant("loop", self._span(node), "continue", lines, node.lineno)
        elif isinstance(node, ast.Return):
            value = node.value
            if value is None:
                yield self._mutant("drop", self._span(node), "pass", lines, node.lineno)
            elif not (isinstance(value, ast.Constant) and not value.value):
                yield self._mutant("return", self._span(value), "None", lines, node.lineno)
        elif isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS:
            token = {"-": "+", "+": "-"}.get(_OPERATORS[type(node.op)])
            if token is not None:
                span = self._between(node.target, node.value, token)
                yield self._mutant("operator", span, _OPERATORS[type(node.op)], lines, node.lineno)

    # -- expressions

    def _expressions(self, top: ast.AST, lines: range | None) -> Iterator[Mutant]:
        left_alone = {
            id(keyword)
            for keyword in ast.walk(top)
            if isinstance(keyword, ast.keyword) and keyword.arg in _DECLARING
        }
        waiting = [top]
        while waiting:
            node = waiting.pop()
            if id(node) in left_alone or isinstance(node, ast.JoinedStr):
                continue
            waiting += ast.iter_child_nodes(node)
            if isinstance(node, ast.expr):
                for kind, span, text in self._expression(node):
                    yield self._mutant(kind, span, text, lines, node.lineno)
            if isinstance(node, ast.IfExp):
                yield from self._negate(node.test, lines)
            elif isinstance(node, ast.comprehension):
                for test in node.ifs:
                    yield from self._negate(test, lines)

    def _expression(self, node: ast.expr) -> Iterator[tuple[str, Span, str]]:
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for place, op in enumerate(node.ops):
                span = self._between(operands[place], operands[place + 1], _token(op))
                for text in _COMPARISONS[type(op)]:
                    yield "comparison", span, text
        elif isinstance(node, ast.BinOp):
            if type(node.op) in _OPERATORS:
                span = self._between(node.left, node.right, _token(node.op))
                yield "operator", span, _OPERATORS[type(node.op)]
        elif isinstance(node, ast.BoolOp):
            token, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield "boolean", self._between(left, right, token), other
        elif isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not | ast.USub):
                yield "unary", self._span(node), f"({self._text(node.operand)})"
        elif isinstance(node, ast.Constant):
            for text in _other_values(node.value):
                yield "constant", self._span(node), text
        elif isinstance(node, ast.Name) and node.id in _NAMES:
            yield "name", self._span(node), _NAMES[node.id]
        elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
            end = self._span(node)[1]
            yield "name", (end - len(node.attr), end), _NAMES[node.attr]

    def _negate(self, test: ast.expr, lines: range | None) -> Iterator[Mutant]:
        """Turn a condition round; one that compares has its opposite already."""
        single = isinstance(test, ast.Compare) and len(test.ops) == 1
        negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        if not (single or negated or isinstance(test, ast.Constant)):
            text = f"not ({self._text(test)})"
            yield self._mutant("condition", self._span(test), text, lines, test.lineno)

    @staticmethod
    def _lines(node: ast.stmt) -> range:
        """Return the lines of a statement, of a compound one those of its head."""
        body = getattr(node, "body", None)
        if isinstance(body, list) and body:
            return range(node.lineno, max(node.lineno, body[0].lineno - 1) + 1)
        return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _other_values(value: object) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (repr(not value),)
    if isinstance(value, int | float) and abs(value) < LARGE:
        return repr(value + 1), repr(value - 1)
    if isinstance(value, int):
        return repr(value * 2), repr(value // 2)
    if isinstance(value, float):
        return repr(value * 2.0), repr(value / 2.0)
    return ()


def _token(op: ast.cmpop | ast.operator) -> str:
    """Return how an operator is written; `is not` and `not in` by single spaces."""
    text = ast.unparse(
        ast.Compare(ast.Name("a"), [op], [ast.Name("b")])
        if isinstance(op, ast.cmpop)
        else ast.BinOp(ast.Name("a"), op, ast.Name("b"))
    )
    return text[1:-1].strip()


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str | type(...))
    )


def _yields(node: ast.AST) -> bool:
    return any(isinstance(x, ast.Yield | ast.YieldFrom | ast.Await) for x in ast.walk(node))
