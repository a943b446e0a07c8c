"""The pages' scripts and styles need no browser newer than those that a page names when it fails."""

import re
from pathlib import Path

import pytest

from minigpt import pages

NEWER = {
    r"\b(Object|Map)\.groupBy\b": "Chrome 117, Safari 17.4",
    r"\bArray\.fromAsync\b": "Chrome 121",
    r"\b(from|setFrom|to)(Base64|Hex)\(": "Chrome 140, Firefox 133, Safari 18.2",
    r"\.(toSorted|toReversed|toSpliced)\(": "Chrome 110",
    r"\.with\(": "Chrome 110",
    r"\b(toWellFormed|isWellFormed)\b": "Chrome 111",
    r"\bPromise\.(withResolvers|try)\b": "Chrome 119, Safari 17.4",
    r"\bIterator\.|\.(keys|values|entries|matchAll)\([^()]*\)\.\w+\(": "Chrome 122, Safari 18.4: helpers of iterators",
    r"\.(union|intersection|difference|symmetricDifference|isSubsetOf|isSupersetOf|isDisjointFrom)\(": "Chrome 122",
    r"\b(Float16Array|f16round|getFloat16|setFloat16|sumPrecise)\b": "Chrome 135",
    r"\bRegExp\.escape\b": "Chrome 136",
    r"/[dgimsuy]*v[dgimsuy]*[\s;,.)\]]": "Chrome 112, Safari 17: the flag v of a regular expression",
    r'RegExp\([^\n]*, "[a-z]*v[a-z]*"\)': "Chrome 112, Safari 17: the flag v",
    r"\(\?-?[ims]+-?[ims]*:": "Chrome 125: flags in a group",
    r"\bAbortSignal\.any\b|\bURL\.(canParse|parse)\b": "Chrome 116",
    r"\bIntl\.Segmenter\b": "Firefox 125",
    r"\b(scheduler|navigation|trustedTypes)\.\w+|\b(startViewTransition|requestIdleCallback)\b": "Chrome alone",
    r"\b(show|toggle|hide)Popover\b|\bsetHTML(Unsafe)?\(|\bmoveBefore\(|\bcheckVisibility\(": "Chrome 106 to 133",
    r"\b(ariaLabelledByElements|popover)\b": "Chrome 114",
    r"\busing \w+ =|\bimport defer\b": "Chrome 134",
    r"color-mix\(|light-dark\(|oklch\(|anchor\(|@scope\b|@starting-style\b|@property\b|subgrid": "Chrome 111 to 125",
    r"^\s+&(?![&#\w])|\{\s*&(?![&#\w])": "Chrome 112: nested rules",
}
"""What came after Chrome 105, Firefox 121 and Safari 16.4, as a pattern, with the first browsers that have it."""

# Object.entries and the like give arrays, whose functions are old.
_ARRAYS = re.compile(r"\b(Object|Array)\.(keys|values|entries|from)\((?:[^()]|\([^()]*\))*\)")
FILES = sorted(path for path in Path(pages.__file__).parent.rglob("*") if path.suffix in (".js", ".css", ".html"))


def newer_in(text: str) -> list[str]:
    """What is newer in a script or style, with the browsers."""
    code = _ARRAYS.sub("array", re.sub(r"(^|\s)//.*", "", text))
    found = ((re.search(pattern, code, re.MULTILINE), since) for pattern, since in NEWER.items())
    return [f"{match[0].strip()}: {since}" for match, since in found if match]


def test_no_page_asks_for_a_browser_newer_than_it_names() -> None:
    assert {path.name: newer for path in FILES if (newer := newer_in(path.read_text(encoding="utf-8")))} == {}
    assert "use Chrome 105, Firefox 121, Safari 16.4 or newer" in (FILES[0].parent / "parts/page.js").read_text()


@pytest.mark.parametrize(
    "code",
    [
        "Map.groupBy(tokens, f)",
        "tokens.entries().map(f)",
        "text.matchAll(regex).map(f)",
        "text.match(/[a--b]/gv);",
        "tokens.with(0, 1)",
        'new RegExp(pattern, "gv")',
        "/(?i:a)/u",
        "Uint8Array.fromBase64(text)",
    ],
)
def test_what_is_newer_is_found(code: str) -> None:
    assert len(newer_in(code)) == 1


def test_functions_of_arrays_are_no_helpers_of_iterators() -> None:
    assert newer_in("Object.entries(f(found)).map(g); [...map.values()].map(g); // tokens.with(0)") == []
