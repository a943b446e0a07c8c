"""Fill HTML templates: self-contained documents that load nothing and run only their own script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

# Characters that could end the JSON's <script> element, or begin a comment or an entity. json.dumps already escapes
# everything that is not ASCII (U+2028 and U+2029 end a line in JavaScript).
_RISKY = {character: f"\\u{ord(character):04x}" for character in "<>&"}


def document(name: str, policy: str, *, shared: str | None = None, **parts: str) -> str:
    """Fill in a template of this folder: NAME.html, with NAME.css and NAME.js, which must be ASCII.

    Args:
        name: of the template.
        policy: Content-Security-Policy, see `policy_of`.
        shared: name of a style shared by several templates, without ".css", for the placeholder `shared_style`.
        parts: HTML for each other placeholder, already escaped.

    Returns:
        The document as ASCII text.
    """
    parts |= {"policy": policy, "style": _file(f"{name}.css"), "script": _file(f"{name}.js")}
    if shared is not None:
        parts["shared_style"] = _file(f"{shared}.css")
    # One pass over the template, so that a title or a token that looks like a placeholder is not replaced.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file(f"{name}.html"))
    # The script must match its hash byte for byte. It is ASCII, so this rewrites only the text outside of it.
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def policy_of(*names: str, shared: Sequence[str] = (), more: Sequence[str] = ()) -> str:
    """Content-Security-Policy that allows only the scripts and styles of these templates, by their hashes."""
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'"]
    for element, suffix, files in (("script", "js", names), ("style", "css", (*shared, *names))):
        rules.append(" ".join([f"{element}-src", *(_hash(f"{name}.{suffix}") for name in files)]))
    return "; ".join([*rules, *more])


def json_for_html(data: object) -> str:
    """JSON that is safe inside a <script type="application/json"> element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda match: _RISKY[match[0]], text)


def _hash(file: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_file(file).encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


@cache
def _file(name: str) -> str:
    return resources.files("minigpt.pages").joinpath(name).read_text(encoding="utf-8")
