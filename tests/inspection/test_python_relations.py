"""Relations of Python code: the right ones, none that is not so, and no text that is too odd, deep or long."""

import re
import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import ROOT

from minigpt.data.relations import Relation, Span
from minigpt.inspection.python_relations import python_relations

KINDS = {"bracket", "previous occurrence", "definition", "attribute", "keyword argument", "block"}


def shown(text: str, span: Span) -> str:
    """The span's text, and the how manieth of its kind it is if there are several: "x2"."""
    own = text[slice(*span)]
    word = rf"(?<!\w){re.escape(own)}(?!\w)" if own[0].isalnum() else re.escape(own)
    places = [match.start() for match in re.finditer(word, text)]
    return own if len(places) == 1 else f"{own}{places.index(span[0]) + 1}"


def found(kind: str, text: str) -> list[str]:
    relations = python_relations(text)
    return [f"{shown(text, r.source)} > {shown(text, r.target)}" for r in relations if r.name == kind]


CASES: list[tuple[str, str, list[str]]] = [
    # -- bracket
    ("bracket", "f(a[1], {b: (2)})", ["] > [", ")1 > (2", "} > {", ")2 > (1"]),
    ("bracket", "x = '([{' # ([{\ny = [']']", ["]2 > [3"]),
    ("bracket", 'x = """(\n(""" + f(\n)', [") > (3"]),
    ("bracket", "a = f'{b[0]}' + c[0]", ["]2 > [2"]),
    ("bracket", "f(a[1", []),
    ("bracket", "f(a]) + (1)", []),
    ("bracket", "(1)) + (2)", [")1 > (1"]),
    ("bracket", "print('it) + (1)", []),
    # -- previous occurrence
    ("previous occurrence", "if a: b.a(a=c, d=b)", ["a2 > a1", "a3 > a2", "b2 > b1"]),
    ("previous occurrence", "True; True; not not x # x\n'x'", []),
    ("previous occurrence", "a = f'{a}' + a", ["a3 > a1"]),
    ("previous occurrence", "ﬁ = 1; fi", ["fi > ﬁ"]),
    # -- attribute
    ("attribute", "a.b.c(d).e[0].f", ["b > a", "c > b"]),
    ("attribute", "(a) . b + (a\n .\n c).d", ["b > a1", "c > a2", "d > c"]),
    ("attribute", "self.x = other.x.y", ["x1 > self", "x2 > other", "y > x2"]),
    ("attribute", "'東京🙂'; é.ü = [ñ . ß]", ["ü > é", "ß > ñ"]),
    ("attribute", "@a.b\nclass A: c = d.e", ["b > a", "e > d"]),
    ("attribute", "a = f'{b.c}' + d.e", ["e > d"]),
    ("attribute", '"x".join(a)', []),
    # -- keyword argument
    ("keyword argument", "f(a, b=1, *c, d=g(e=2), **h)", ["b > f", "d > f", "e > g"]),
    ("keyword argument", "a.run(key=1).stop(now=2)", ["key > run", "now > stop"]),
    ("keyword argument", "f()(a=1) + g[0](b=1)", []),
    ("keyword argument", "@dataclass(frozen=True)\nclass A(B, metaclass=C): pass", ["frozen > dataclass"]),
    ("keyword argument", "f(\n  é = 1, b\n=2)", ["é > f", "b > f"]),
    # -- block
    (
        "block",
        "def f(a,\n      b):  # c\n\n    # d\n    x = 1\n    if x:\n        y(\n1)\n    return y\nz",
        ["x1 > def f(a,\n      b):", "if > def f(a,\n      b):", "y1 > if x:", "return > def f(a,\n      b):"],
    ),
    ("block", "if a:\n\tb\n\n\tc\nelse:\n\td; e", ["b > if a:", "c > if a:", "d > else:"]),
    ("block", "while a: b\nc", []),
    (
        "block",
        "class A:\r\n  def f(self):\r\n    '''a\r\n    b'''\r\n  c",
        ["def > class A:", "'''a\r\n    b''' > def f(self):", "c > class A:"],
    ),
    ("block", "    a\n    b\nif c:\n  d", ["d > if c:"]),
    ("block", "if a:\n    if b", ["if2 > if a:"]),
    # -- definition: statements
    ("definition", "x = 1; y = x", ["x2 > x1"]),
    ("definition", "x", []),
    ("definition", "x = 1\nx = x + 1\nx", ["x3 > x1", "x4 > x2"]),
    ("definition", "x = 1\nx += 1\nx", ["x2 > x1", "x3 > x2"]),
    ("definition", "x: int = 1\nx: int = x\n", ["x3 > x1"]),
    ("definition", "a, (b, *c) = d = e\na, b, c, d", ["a2 > a1", "b2 > b1", "c2 > c1", "d2 > d1"]),
    ("definition", "x = x = 1\nx[x] = x.y = x", ["x3 > x2", "x4 > x2", "x5 > x2", "x6 > x2"]),
    ("definition", "for x in x:\n  x\nelse: x", ["x3 > x1", "x4 > x1"]),
    ("definition", "with open(x) as x, x as y: x, y", ["x3 > x2", "x4 > x2", "y2 > y1"]),
    ("definition", "(x := (x := 1) + 1)\nx", ["x3 > x1"]),
    ("definition", "while (x := x + 1): x\ndel x", ["x3 > x1", "x4 > x1"]),
    (
        "definition",
        "import a.b, c.d as e\nfrom f import g as h, i\nfrom j import *\na, b, c, d, e, f, g, h, i",
        ["a2 > a1", "e2 > e1", "h2 > h1", "i2 > i1"],
    ),
    ("definition", "try: pass\nexcept (A) as e: e\nexcept B: e", ["e2 > e1", "e3 > e1"]),
    (
        "definition",
        "match a:\n case {'b': b, **c}: b, c\n case [d, *e] as f: d, e, f\n case A(g=h) | h: h\n case _: _",
        ["b3 > b2", "c2 > c1", "d2 > d1", "e2 > e1", "f2 > f1", "h3 > h2"],
    ),
    ("definition", "x = 1\nf'{x}' f'''\n{x}'''\nx", ["x4 > x1"]),
    ("definition", "é = '東京🙂'; ß = é; 'ñ', ß", ["é2 > é1", "ß2 > ß1"]),
    ("definition", "ﬁ = 1; fi", ["fi > ﬁ"]),
    # -- definition: functions
    (
        "definition",
        "def f(a, /, b, *c, d, **e): a, b, c, d, e, f",
        ["a2 > a1", "b2 > b1", "c2 > c1", "d2 > d1", "e2 > e1", "f2 > f1"],
    ),
    ("definition", "a = 1\ndef f(a=a, b: a = 2) -> a: a\na", ["a3 > a1", "a4 > a1", "a5 > a1", "a6 > a2", "a7 > a1"]),
    ("definition", "@g\nasync  def  g (x) : await g(x)", ["g3 > g2", "x2 > x1"]),
    (
        "definition",
        "x = 1\ndef f():\n  y = x\n  def g():\n    return x, y\n  return g",
        ["x2 > x1", "x3 > x1", "y2 > y1", "g2 > g1"],
    ),
    ("definition", "x = 1\ndef f():\n  print(x)\n  x = 2", []),
    ("definition", "x = 1\ndef f():\n  global x\n  x = 2\n  x\nx", ["x4 > x3", "x5 > x3"]),
    ("definition", "x = 0\ndef f():\n  x = 1\n  def g():\n    nonlocal x\n    x = 2\n  g(); x", ["g2 > g1", "x5 > x4"]),
    ("definition", "def f(): g()\ndef g(): f()", ["f2 > f1"]),
    ("definition", "x = 1\nf = lambda x=x, *y: (x, y)\nx", ["x3 > x1", "x4 > x2", "y2 > y1", "x5 > x1"]),
    # -- definition: classes and comprehensions
    ("definition", "class A: pass\nclass A(A):\n  b = A", ["A3 > A1", "A4 > A2"]),
    (
        "definition",
        "x = 1\nclass A:\n  x = x\n  y = x\n  def f(self, z=x): return self, x, y",
        ["x3 > x1", "x4 > x2", "x5 > x2", "self2 > self1", "x6 > x1"],
    ),
    ("definition", "x = 1\n[x for x in x if x]\nx", ["x4 > x1", "x5 > x3", "x6 > x1"]),
    ("definition", "{a: b for a, b in c for d in a if b}", ["a3 > a2", "b3 > b2"]),
    ("definition", "class A:\n  x = 1\n  y = [x for _ in x]", ["x3 > x1"]),
    ("definition", "def f():\n  any((y := x) for x in z)\n  return x, y", ["y2 > y1"]),
]


def names_of_cases() -> list[str]:
    return [f"{kind}: {code[:40]}" for kind, code, _ in CASES]


@pytest.mark.parametrize(("kind", "code", "expected"), CASES, ids=names_of_cases())
def test_code_has_these_relations_of_a_kind_and_no_others(kind: str, code: str, expected: list[str]) -> None:
    assert found(kind, code) == expected


def test_relations_come_in_the_order_of_their_sources_and_know_nothing_of_line_ends() -> None:
    code = "class A:\n    def f(self, x):\n        return self.g(x, y=[x])\n"
    relations = python_relations(code)
    assert {relation.name for relation in relations} == KINDS
    assert [relation.source for relation in relations] == sorted(relation.source for relation in relations)
    windows = code.replace("\n", "\r\n")
    assert shown_all(windows) == shown_all(code)
    assert found("block", windows)


def shown_all(text: str) -> list[tuple[str, str, str]]:
    return [(r.name, shown(text, r.source), shown(text, r.target)) for r in python_relations(text)]


def check(text: str) -> list[Relation]:
    """The relations of a text, each of which must be what it is said to be."""
    relations = python_relations(text)
    for relation in relations:
        (start, stop), (first, last) = relation.source, relation.target
        assert 0 <= first < last <= start < stop <= len(text), relation
        source, target = text[start:stop], text[first:last]
        if relation.name == "bracket":
            assert target + source in {"()", "[]", "{}"}
        elif relation.name in {"definition", "previous occurrence"}:
            assert unicodedata.normalize("NFKC", source) == unicodedata.normalize("NFKC", target)
        elif relation.name != "block":
            assert source.isidentifier()
            assert target.isidentifier()
            assert text[last:start].strip() or relation.name == "attribute"
        if relation.name == "attribute":
            assert re.fullmatch(r"[\s)\\]*(#.*\s*)*\.[\s\\]*", text[last:start])
        assert relation.name in KINDS
    return relations


EVERYTHING = "\n".join(code.replace("\r", "") for _, code, _ in CASES[26:])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("model/compiling.py", 21),
        ("pages/colormap.py", 5),
        ("model/cache.py", 51),
        pytest.param("model/compiling.py", 7, marks=pytest.mark.slow),
        pytest.param("pages/colormap.py", 1, marks=pytest.mark.slow),
        pytest.param("model/cache.py", 17, marks=pytest.mark.slow),
    ],
)
def test_a_file_may_end_at_any_character(name: str, step: int) -> None:
    text = (ROOT / "src/minigpt" / name).read_text(encoding="utf-8")
    whole = set(check(text))
    by_tokens = {"bracket", "previous occurrence", "block"}
    for stop in range(0, len(text), step):
        relations = check(text[:stop])
        # What the last word and the last line may still become, nobody knows.
        line = text.rfind("\n", 0, stop) + 1
        known = {r for r in relations if r.name in by_tokens and r.source[1] < line}
        assert known == {r for r in whole if r.name in by_tokens and r.source[1] < line}


def test_hard_code_may_end_and_begin_at_any_character() -> None:
    text = EVERYTHING.replace("\n", "\r\n")
    for cut in range(0, len(text), 12):
        check(text[:cut])
        check(text[cut : cut + 200])


def test_what_is_cut_off_loses_only_what_does_not_parse() -> None:
    code = (
        "class A:\n    def f(self, x):\n        y = x.a\n        for z in y:\n            try:\n                print(("
    )
    assert found("attribute", code) == ["a > x2"]
    assert found("definition", code) == ["x2 > x1"]
    assert found("definition", code + "y.b))\n            finally: z") == ["x2 > x1", "y2 > y1", "y3 > y1", "z2 > z1"]


fragments = st.lists(
    st.sampled_from(
        ["x", "y = ", "def f(a):\n", "    ", "\n", "\r\n", "\r", "(", ")", "[", "]", "{", "}", ".", "'", '"']
    )
    | st.sampled_from(
        ['"""', "f'{", "}'", "\\\n", "#", "lambda x: ", " for x in y", "if x:\n", "class A:\n", "\t", ";"]
    )
    | st.sampled_from(["\0", "\ufeff", "\f", "\ud800", "\u2028", "\x1c", "é", "東京", "🙂", "ﬁ", "0x", "1_", "@", ":="])
    | st.sampled_from(
        ["import a as b\n", "global x\n", "match x:\n case ", "except E as e:\n", "async ", "**", "*", ","]
    )
    | st.text(max_size=3)
).map("".join)


@given(fragments)
@settings(max_examples=150, deadline=None)
def test_no_text_is_too_odd(text: str) -> None:
    check(text)


@pytest.mark.parametrize("wrong", ["\0", "\ud800", "\r", "?"])
def test_what_no_program_holds_ends_what_is_read(wrong: str) -> None:
    code = "x = 1\ny = x.z\n"
    assert shown_all(code + wrong + "x = (x)\n(x)\n") == shown_all(code)


def test_a_text_of_no_code_has_few_relations() -> None:
    text = "Once upon a time there was a dog (Rex), and the dog didn't bark. The dog (Rex) slept."
    found = [(r.name, text[slice(*r.source)]) for r in check(text)]
    assert found == [("previous occurrence", "a"), ("bracket", ")"), ("previous occurrence", "dog")]
    assert check("") == check("\n\n") == check("# x (x)\n") == []


LONG = {
    "one line": "x = [" + "é.a(b=x), " * 8_000 + "]",
    "one string": "x = '" + "é" * 1_000_000 + "'; x.y",
    "bindings": "x = x\n" * 12_000,
    "decorators": "@a\n" * 5_000,
    "continuations": "x\\\n" * 10_000,
    "attributes": "a" + ".a" * 20_000,
    "sum": "a" + "+a" * 20_000,
    "calls": "f(a=" * 10_000,
    "brackets": "(" * 20_000 + ")" * 20_000,
    "not": "not " * 20_000 + "x",
    "lambdas": "lambda x: " * 10_000 + "x",
    "quotes": "'''\n" + "x = '\n" * 10_000,
    "blocks": "".join(" " * i + "if x:\n" for i in range(500)),
    "tries": "try:\n x\n" * 5_000,
    "comprehensions": "[x for x in " * 10_000,
    "digits": "9" * 100_000,
}


@pytest.mark.parametrize("name", LONG)
def test_nothing_is_too_deep_or_too_long(name: str) -> None:
    text = LONG[name]
    began = time.process_time()
    relations = python_relations(text)
    # Each takes at most 5 s on a slow core; what is quadratic takes minutes.
    assert time.process_time() - began < 20
    n_chars = len(text)
    assert all(0 <= r.target[0] < r.target[1] <= r.source[0] < r.source[1] <= n_chars for r in relations)


def test_code_that_is_deep_but_parses_is_read_to_its_end() -> None:
    depth = 3 * sys.getrecursionlimit() // 4
    text = "x = 1\ny = x" + " + x" * depth
    assert len([r for r in python_relations(text) if r.name == "definition"]) == depth + 1
