"""Syntax tree and tokens of Python code -> the position of each name, and the binding that each use refers to."""

from __future__ import annotations

import ast
import tokenize
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from minigpt.data.relations import Span

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Placed = ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias | ast.excepthandler | ast.pattern


class Token(NamedTuple):
    """A token of `tokenize`, with its span in characters of the text."""

    kind: int
    text: str
    span: Span


class Names:
    """Spans of names in a text, looked up by the lines and byte columns of `ast`."""

    def __init__(self, text: str, tokens: Sequence[Token]) -> None:
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        self._lines = [0, *(np.flatnonzero(data == ord("\n")) + 1).tolist()]
        starts_character = (data & 0xC0) != 0x80
        self._characters = np.cumsum(np.concatenate([[0], starts_character])).tolist()  # before each byte
        # Includes keywords: tokenize has no kind of its own for them.
        self._spans = [token.span for token in tokens if token.kind == tokenize.NAME]
        self._starts = [start for start, _ in self._spans]
        self._ends = [end for _, end in self._spans]

    def start(self, node: Placed) -> int:
        """The character at which a node begins."""
        return self._characters[self._lines[node.lineno - 1] + node.col_offset]

    def end(self, node: Placed) -> int:
        """The character after a node."""
        line, column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self._characters[self._lines[line - 1] + column]

    def beginning(self, node: Placed) -> Span | None:
        """The name that a node begins with."""
        start = self.start(node)
        span = self.behind(start, 0)
        return span if span and span[0] == start else None

    def ending(self, node: Placed) -> Span | None:
        """The name that a node ends with."""
        end = self.end(node)
        i = bisect_left(self._ends, end)
        return self._spans[i] if i < len(self._ends) and self._ends[i] == end else None

    def behind(self, position: int, n: int) -> Span | None:
        """The n-th name or keyword, from 0, that begins at or after a position."""
        i = bisect_left(self._starts, position) + n
        return self._spans[i] if i < len(self._spans) else None

    def before(self, position: int) -> Span | None:
        """The last name or keyword that ends at or before a position."""
        i = bisect_right(self._ends, position) - 1
        return self._spans[i] if i >= 0 else None

    def last_of(self, node: ast.expr) -> Span | None:
        """The span of a name, or of an attribute's own name; None for other expressions."""
        return self.ending(node) if isinstance(node, ast.Name | ast.Attribute) else None


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes outside f-strings; iterative, as code may be nested deeper than Python's recursion limit."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.JoinedStr):
            yield node
            waiting += ast.iter_child_nodes(node)


def definitions(tree: ast.AST, names: Names) -> Iterator[tuple[Span, Span]]:
    """Each use of a name and its last binding earlier in the text, in its scope.

    The order of the text stands for the order of execution, in loops and branches too. A binding holds from where it
    takes effect: in `x = x + 1` the second x refers to an earlier binding.
    """
    reader = _Reader(names)
    reader.read(tree)
    for name, source, scope in reader.uses:
        target = scope.find(name, source[0])
        if target:
            yield source, target


@dataclass(eq=False)
class _Scope:
    kind: Literal["module", "class", "function", "comprehension"]
    around: _Scope | None = None
    bound: dict[str, list[tuple[int, Span]]] = field(default_factory=dict)
    """For each name its bindings: the character from which each holds, and the span of the name."""
    elsewhere: dict[str, _Scope] = field(default_factory=dict)
    """The scopes of names that are declared global or nonlocal."""

    def find(self, name: str, position: int) -> Span | None:
        """The binding that holds at a position, by Python's scoping rules."""
        own = scope = self.elsewhere.get(name, self)
        while True:
            bindings = scope.bound.get(name)
            # Names of a class are visible in its body, but not in its methods.
            if bindings and (scope is own or scope.kind != "class"):
                n_holding = bisect_right(bindings, position, key=lambda binding: binding[0])
                if n_holding:
                    return bindings[n_holding - 1][1]
                if scope.kind in {"function", "comprehension"}:
                    return None  # a local name that is bound only later
            if scope.around is None:
                return None
            scope = scope.around

    def outside(self, *kinds: str) -> _Scope:
        """This scope or the closest enclosing one that is of none of these kinds."""
        scope = self
        while scope.kind in kinds and scope.around:
            scope = scope.around
        return scope


class _Reader:
    """Collects bindings and uses of names. Iterative, as code may nest deeper than Python's recursion limit."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.module = _Scope("module")
        self.uses: list[tuple[str, Span, _Scope]] = []
        self._waiting: list[tuple[ast.AST, _Scope, int]] = []
        self._scopes = [self.module]

    def read(self, tree: ast.AST) -> None:
        self._waiting.append((tree, self.module, 0))
        while self._waiting:
            node, scope, holds = self._waiting.pop()
            n_before = len(self._waiting)
            self._visit(node, scope, holds)
            self._waiting[n_before:] = self._waiting[n_before:][::-1]  # visited in the order of the text
        for scope in self._scopes:
            for bindings in scope.bound.values():
                bindings.sort()

    def _later(self, scope: _Scope, *nodes: ast.AST | None, holds: int = 0) -> None:
        """Visit nodes next; their bindings hold from `holds`, or from their own end if that is later."""
        self._waiting += [(node, scope, holds) for node in nodes if node is not None]

    def _inside(self, kind: Literal["class", "function", "comprehension"], around: _Scope) -> _Scope:
        self._scopes.append(_Scope(kind, around))
        return self._scopes[-1]

    def _bind(self, name: str, span: Span | None, scope: _Scope, holds: int = 0) -> None:
        if span:
            scope = scope.elsewhere.get(name, scope)
            scope.bound.setdefault(name, []).append((max(holds, span[1]), span))

    def _use(self, node: ast.Name, scope: _Scope) -> None:
        span = self.names.beginning(node)
        if span:
            self.uses.append((node.id, span, scope))

    def _visit(self, node: ast.AST, scope: _Scope, holds: int) -> None:
        names = self.names
        match node:
            case ast.JoinedStr():
                pass
            case ast.Name(ctx=ast.Store()):
                self._bind(node.id, names.beginning(node), scope, holds)
            case ast.Name():
                self._use(node, scope)
            case ast.arg():
                self._bind(node.arg, names.beginning(node), scope)
            case ast.alias():
                span = names.ending(node) if node.asname else names.beginning(node)
                self._bind(node.asname or node.name.split(".")[0], span, scope)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._visit_function(node, scope)
            case ast.ClassDef():
                self._bind(node.name, names.behind(names.start(node), 1), scope, names.start(node.body[0]))
                self._later(scope, *node.decorator_list, *node.bases, *node.keywords)
                self._later(self._inside("class", scope), *node.body)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._visit_comprehension(node, scope)
            case ast.Assign():
                self._later(scope, node.value)
                self._later(scope, *node.targets, holds=names.end(node))
            case ast.AnnAssign() | ast.AugAssign():
                if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                    self._use(node.target, scope)
                self._later(scope, node.annotation if isinstance(node, ast.AnnAssign) else None, node.value)
                self._later(scope, node.target, holds=names.end(node))
            case ast.NamedExpr():
                self._later(scope, node.value)
                self._bind(node.target.id, names.beginning(node), scope.outside("comprehension"), names.end(node))
            case ast.For() | ast.AsyncFor():
                self._later(scope, node.iter)
                self._later(scope, node.target, holds=names.end(node.iter))
                self._later(scope, *node.body, *node.orelse)
            case ast.Global():
                scope.elsewhere |= dict.fromkeys(node.names, self.module)
            case ast.Nonlocal() if scope.around:
                for name in node.names:
                    scope.elsewhere[name] = self._nonlocal(name, scope.around)
            case _:
                if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping):
                    self._bind_text(node, scope)
                self._later(scope, *ast.iter_child_nodes(node))

    def _visit_function(self, node: Function, scope: _Scope) -> None:
        given, inside = node.args, self._inside("function", scope)
        all_given = (*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg)
        arguments = [argument for argument in all_given if argument]
        self._later(scope, *given.defaults, *given.kw_defaults, *(argument.annotation for argument in arguments))
        if isinstance(node, ast.Lambda):
            self._later(inside, *arguments, node.body)
            return
        n_before = 2 if isinstance(node, ast.AsyncFunctionDef) else 1  # async def
        span = self.names.behind(self.names.start(node), n_before)
        self._bind(node.name, span, scope, self.names.start(node.body[0]))
        self._later(scope, *node.decorator_list, node.returns)
        self._later(inside, *arguments, *node.body)

    def _visit_comprehension(self, node: Comprehension, scope: _Scope) -> None:
        inside = self._inside("comprehension", scope)
        for i, part in enumerate(node.generators):
            # The first iterable is evaluated in the enclosing scope.
            self._later(inside if i else scope, part.iter)
            self._later(inside, part.target, holds=self.names.end(part.iter))
            self._later(inside, *part.ifs)
        self._later(inside, *([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]))

    def _bind_text(
        self, node: ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping, scope: _Scope
    ) -> None:
        """Names that have no node of their own."""
        if isinstance(node, ast.MatchMapping):
            if node.rest:
                self._bind(node.rest, self.names.before(self.names.end(node)), scope)
        elif isinstance(node, ast.ExceptHandler):
            if node.name and node.type:
                self._bind(node.name, self.names.behind(self.names.end(node.type), 1), scope)
        elif node.name:
            self._bind(node.name, self.names.ending(node), scope)

    def _nonlocal(self, name: str, scope: _Scope) -> _Scope:
        """The closest enclosing function that has bound the name so far, or else the closest one."""
        closest = scope = scope.outside("class", "comprehension")
        while scope.kind == "function" and scope.around:
            if name in scope.bound:
                return scope
            scope = scope.around.outside("class", "comprehension")
        return closest
