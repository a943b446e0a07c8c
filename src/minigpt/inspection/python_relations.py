"""Python code -> which token refers to which earlier one, as the language itself says it.

Brackets, names and lines come from `tokenize`, the rest from `ast`. Code may end anywhere, as a probe does: where it
does not parse, the longest beginning that does is taken. What is inside f-strings is left out, since they are a
single token to Python 3.11.
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
# Of a carriage return alone, tokenize and ast think differently; the others are in no program.
_NO_PYTHON = re.compile("\r(?!\n)|[\0\ud800-\udfff]")


def python_relations(text: str) -> list[Relation]:
    """Relations of six kinds, in the order of their sources; few or none where the text is no Python.

    Relations:
        bracket: a closing bracket -> its opening one.
        previous occurrence: a name -> the same name before it, whatever it means there.
        definition: a name that is used -> where it was last bound before that in the text, in the scope it belongs to.
        attribute: an attribute -> the name or attribute whose it is.
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
    """The tokens up to the first that is no Python, f-strings without what is in them."""
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
    """The tree of the longest beginning that is said to be without error."""
    lines = list(io.StringIO(text))  # which a form feed does not end, as it does for str.splitlines
    attempt = 0
    while lines:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse("".join(lines))
        except SyntaxError as error:
            # What is unfinished may be unfinished again without its last line, and again; a few steps back are small,
            # but a long text is not parsed anew for each of its lines.
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
                return  # no Python from here on
            yield Relation("bracket", token.span, open_ones.pop().span)


def _previous_occurrences(tokens: list[Token]) -> Iterator[Relation]:
    last: dict[str, Span] = {}
    for token in tokens:
        if token.kind == tokenize.NAME and not keyword.iskeyword(token.text):
            name = unicodedata.normalize("NFKC", token.text)  # what Python takes for the same name
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
