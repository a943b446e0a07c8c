"""Python code -> which token refers to which earlier one, by the rules of the language.

Brackets, names and lines come from `tokenize`, the rest from `ast`. A probe may end in the middle of a statement, so
only a prefix that parses is used. The contents of f-strings are skipped: to Python 3.11 an f-string is a single token.
"""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
import unicodedata
import warnings
from collections.abc import Iterator

from minigpt.data.relations import Relation, Span
from minigpt.inspection.python_names import Names, Token, definitions, walk

_OPENING = {")": "(", "]": "[", "}": "{"}
_LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
# tokenize and ast disagree about a lone carriage return; NUL and surrogates are not valid in source code.
_NO_PYTHON = re.compile("\r(?!\n)|[\0\ud800-\udfff]")


def python_relations(text: str) -> list[Relation]:
    """Relations of six kinds, sorted by source; few or none where the text is not Python.

    Relations:
        bracket: a closing bracket -> its opening one.
        previous occurrence: a name -> its previous occurrence, whatever it refers to there.
        definition: a use of a name -> its last binding earlier in the text, in its scope.
        attribute: an attribute -> the name or attribute before its dot.
        keyword argument: its name -> the name of the callee.
        block: the first word of each line of a block -> the line that opens the block.
    """
    if wrong := _NO_PYTHON.search(text):
        text = text[: wrong.start()]
    tokens = list(_tokens(text))
    found = [*_brackets(tokens), *_previous_occurrences(tokens), *_blocks(tokens)]
    if tree := _parsed(text):
        names = Names(text, tokens)
        for kind, pairs in (
            ("attribute", _attributes(tree, names)),
            ("keyword argument", _keyword_arguments(tree, names)),
            ("definition", definitions(tree, names)),
        ):
            found += [Relation(kind, source, target) for source, target in pairs if source and target]
    return sorted(found, key=lambda relation: (relation.source, relation.name))


def _tokens(text: str) -> Iterator[Token]:
    """Tokens up to the first error, without the contents of f-strings."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    f_string = {getattr(tokenize, name, None): step for name, step in (("FSTRING_START", 1), ("FSTRING_END", -1))}
    depth = 0  # in f-strings, whose parts are tokens since Python 3.12
    try:
        for kind, string, (row, column), (end_row, end_column), _ in tokenize.generate_tokens(
            io.StringIO(text).readline
        ):
            if kind == tokenize.ERRORTOKEN:
                return
            depth += f_string.get(kind, 0)
            if not depth and max(row, end_row) <= len(starts):
                yield Token(kind, string, (starts[row - 1] + column, starts[end_row - 1] + end_column))
    except (tokenize.TokenError, SyntaxError):
        return


def _parsed(text: str) -> ast.AST | None:
    """Syntax tree of a prefix that parses: lines from each reported error on are dropped."""
    lines = list(io.StringIO(text))  # unlike str.splitlines, does not split at form feeds
    attempt = 0
    while lines:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse("".join(lines))
        except SyntaxError as error:
            # Without its last line an unfinished statement may still be unfinished. The first cuts are small; later
            # ones double, so that a long text is not parsed once per line.
            attempt += 1
            n_lines = min((error.lineno or 1) - 1, len(lines) - max(1, 2**attempt // 128))
            del lines[max(n_lines, 0) :]
        except (ValueError, RecursionError, MemoryError):
            return None
    return None


def _brackets(tokens: list[Token]) -> Iterator[Relation]:
    open_ones: list[Token] = []
    for token in tokens:
        if token.kind == tokenize.OP and token.text in _OPENING.values():
            open_ones.append(token)
        elif token.kind == tokenize.OP and token.text in _OPENING:
            if not open_ones or open_ones[-1].text != _OPENING[token.text]:
                return  # not Python from here on
            yield Relation("bracket", token.span, open_ones.pop().span)


def _previous_occurrences(tokens: list[Token]) -> Iterator[Relation]:
    last: dict[str, Span] = {}
    for token in tokens:
        if token.kind == tokenize.NAME and not keyword.iskeyword(token.text):
            name = unicodedata.normalize("NFKC", token.text)  # Python compares names in this form
            if name in last:
                yield Relation("previous occurrence", token.span, last[name])
            last[name] = token.span


def _blocks(tokens: list[Token]) -> Iterator[Relation]:
    openers: list[Span | None] = []
    last_line: Span | None = None
    line: list[Token] = []
    for token in tokens:
        if token.kind == tokenize.INDENT:
            openers.append(last_line)  # none, if the text begins within a block
        elif token.kind == tokenize.DEDENT:
            openers.pop()
        elif token.kind == tokenize.NEWLINE and line:
            last_line = (line[0].span[0], line[-1].span[1])
            line = []
        elif token.kind not in _LAYOUT:
            opener = openers[-1] if openers and not line else None
            if opener:
                yield Relation("block", token.span, opener)
            line.append(token)


def _attributes(tree: ast.AST, names: Names) -> Iterator[tuple[Span | None, Span | None]]:
    for node in walk(tree):
        if isinstance(node, ast.Attribute):
            yield names.last_of(node), names.last_of(node.value)


def _keyword_arguments(tree: ast.AST, names: Names) -> Iterator[tuple[Span | None, Span | None]]:
    for node in walk(tree):
        if isinstance(node, ast.Call):
            for argument in node.keywords:
                if argument.arg:
                    yield names.beginning(argument), names.last_of(node.func)
