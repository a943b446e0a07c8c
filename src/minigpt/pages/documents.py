"""A template and what belongs into it -> one HTML document that asks for nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

# A character that could end the JSON's <script> element, or begin a comment or an entity. Everything that is not
# ASCII (U+2028 and U+2029 end a line in JavaScript) is escaped by json.dumps already.
_RISKY = {character: f"\\u{ord(character):04x}" for character in "<>&"}


def document(name: str, policy: str, *, shared: str | None = None, **parts: str) -> str:
    """Fill in a template of this folder: NAME.html, with NAME.css and NAME.js, which must be ASCII.

    Args:
        name: of the template.
        policy: what the document may run, see `policy_of`.
        shared: a style of several templates, without its ".css", for the placeholder `shared_style`.
        parts: HTML for each other placeholder, escaped already.

    Returns:
        The document as ASCII text.
    """
    parts |= {"policy": policy, "style": _file(f"{name}.css"), "script": _file(f"{name}.js")}
    if shared is not None:
        parts["shared_style"] = _file(f"{shared}.css")
    # one pass over the template, so that a title or a token that reads like a placeholder is left alone
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file(f"{name}.html"))
    # The script must stay byte for byte what was hashed, and it is ASCII: only text outside of it is rewritten here.
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def policy_of(*names: str, shared: Sequence[str] = (), more: Sequence[str] = ()) -> str:
    """Content-Security-Policy: nothing at all, but the scripts and the styles of these templates, by their hashes."""
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'"]
    for element, suffix, files in (("script", "js", names), ("style", "css", (*shared, *names))):
        rules.append(" ".join([f"{element}-src", *(_hash(f"{name}.{suffix}") for name in files)]))
    return "; ".join([*rules, *more])


def json_for_html(data: object) -> str:
    """JSON that may stand inside a <script type="application/json"> element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda match: _RISKY[match[0]], text)


def _hash(file: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_file(file).encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


@cache
def _file(name: str) -> str:
    return resources.files("minigpt.pages").joinpath(name).read_text(encoding="utf-8")
