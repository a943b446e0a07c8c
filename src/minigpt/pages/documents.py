"""Self-contained HTML pages: they load nothing, and run only their own script.

A page is parts/page.html around NAME.html of this folder, with the shared styles and script of `parts` before its own
NAME.css and NAME.js. The live page has a folder, and its script is several files of it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources

import numpy as np

# Shared styles of a page, in this order.
_STYLES = {
    "attention": ("theme", "tools"),
    "explanation": ("theme", "tools", "tokens"),
    "film": ("theme", "tools", "tokens"),
    "live": ("theme", "tools", "tokens"),
    "patching": ("theme", "tools", "tokens"),
    "report": ("theme",),
    "study": ("theme",),
}

# Scripts of `parts` shared by pages or apart for their size, in this order, before a page's own.
_ATTENTION = [
    *("data", "paint", "overlay", "text", "axes", "lines", "links", "scores", "table", "curves", "causes"),
    *("opening", "summary"),
]
_SCRIPTS = {"attention": ("page", *(f"attention/{name}" for name in _ATTENTION))}

# Pages with a folder of their own, NAME/NAME.html and NAME/NAME.css: its files with their script, in this order.
_FOLDERS = {
    "live": (
        "engine_client",
        "page",
        "maps",
        "head_scores",
        "panel_next",
        "changes",
        "panels_interventions",
        "panel_why",
        "panel_compare",
        "panel_lens",
        "write_tree",
        "panel_write",
        "lesson_figures",
        "lesson",
        "guess",
    )
}

# Characters that could end the JSON's <script> element, or begin a comment or an entity. json.dumps already escapes
# everything that is not ASCII (U+2028 and U+2029 end a line in JavaScript).
_RISKY = {character: f"\\u{ord(character):04x}" for character in "<>&"}

_NOTEBOOK_FRAME = 'sandbox="allow-scripts" class="minigpt" style="width:100%; height:95vh; min-height:760px; border:0"'
_FOLLOW_HEIGHT = """<script>
addEventListener("message", (event) => {
  const height = Number(event.data?.minigptHeight);
  for (const frame of document.querySelectorAll("iframe.minigpt"))
    if (height > 0 && frame.contentWindow === event.source)
      Object.assign(frame.style, { height: `${height}px`, minHeight: 0 });
});
</script>"""


class Page(str):
    """An HTML document; a notebook shows it as the last expression of a cell."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """The document in a sandboxed frame, which may run its script and nothing else.

        The frame is as high as its content, which page.js tells it; without scripts, as high as the window.
        """
        return frame_html(self, _NOTEBOOK_FRAME) + _FOLLOW_HEIGHT


def document(name: str, title: str, *, policy: str | None = None, **parts: str) -> Page:
    """Fill in a template of this folder: NAME.html, with NAME.css and NAME.js, which must be ASCII.

    Args:
        name: of the template.
        title: plain text.
        policy: Content-Security-Policy; `policy_of(name)` when not given.
        parts: HTML for each other placeholder, already escaped.

    Returns:
        The document as ASCII text.
    """
    parts |= {"title": html.escape(title), "policy": policy or policy_of(name)}
    parts |= {"style": _style(name), "script": _script(name)}
    template = _file("parts/page.html").replace("{{content}}", _file(f"{_stem(name)}.html").strip())
    # One pass over the template, so that a title or a token that looks like a placeholder is not replaced.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    # The script must match its hash byte for byte. It is ASCII, so this rewrites only the text outside of it.
    return Page(page.encode("ascii", "xmlcharrefreplace").decode("ascii"))


def frame_html(page: str, attributes: str) -> str:
    """A page inside another. In single quotes, since the data of a page is full of double ones."""
    inside = page.replace("&", "&amp;").replace("'", "&#39;")
    return f"<iframe {attributes} srcdoc='{inside}'></iframe>"


def policy_of(*names: str, scripts: Sequence[str] = (), more: str = "") -> str:
    """Content-Security-Policy that allows only the scripts and styles of these templates, by their hashes.

    Args:
        names: of the templates.
        scripts: texts of further scripts.
        more: further directives, each after a semicolon.
    """
    allowed = " ".join(_hash(script) for script in (*scripts, *(_script(name) for name in names)))
    styles = " ".join(_hash(_style(name)) for name in names)
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; script-src {allowed}; style-src {styles}{more}"


def joined_scripts(folder: str, names: Iterable[str]) -> str:
    """One script of several files of a folder beside this module; they share one scope."""
    return "".join(_file(f"{folder}/{name}.js") for name in names)


def rounded(values: Iterable[float]) -> list[float | None]:
    """Four digits each, for JSON: null for NaN, which it lacks."""
    return [None if math.isnan(value) else float(f"{value:.4g}") for value in values]


def json_for_html(data: object) -> str:
    """JSON that is safe inside a <script type="application/json"> element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda match: _RISKY[match[0]], text)


def base64_of(array: np.ndarray) -> str:
    """The bytes of an array as text, for the data of a page."""
    return base64.b64encode(array.tobytes()).decode("ascii")


def tiles_html(tiles: Iterable[tuple[str, str, str]]) -> str:
    """The main results in large letters: (name, number, note) each, in plain text."""
    shown = [
        f'<div class="tile"><b>{html.escape(number)}</b> {html.escape(name)}<small>{html.escape(note)}</small></div>'
        for name, number, note in tiles
    ]
    return f'<div class="tiles">{"".join(shown)}</div>'


def facts_html(facts: Mapping[str, str]) -> str:
    """A list of names and texts; those without a text are left out."""
    rows = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items() if text]
    return f"<dl>{''.join(rows)}</dl>"


def paragraphs_html(texts: Iterable[str]) -> str:
    """A <p> for each text."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def _style(name: str) -> str:
    return "".join([*(_file(f"parts/{part}.css") for part in _STYLES[name]), _file(f"{_stem(name)}.css")])


def _script(name: str) -> str:
    shared = "".join(_file(f"parts/{part}.js") for part in _SCRIPTS.get(name, ("page",)))
    return shared + (joined_scripts(name, _FOLDERS[name]) if name in _FOLDERS else _file(f"{name}.js"))


def _stem(name: str) -> str:
    return f"{name}/{name}" if name in _FOLDERS else name


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


@cache
def _file(name: str) -> str:
    return resources.files("minigpt.pages").joinpath(name).read_text(encoding="utf-8")
