"""Split patterns of tokenizers -> regular expressions of JavaScript (flag u) with the same matches.

tiktoken reads them with Rust's fancy-regex, `tokenizers` with Oniguruma. JavaScript has no possessive quantifiers, its
\\s has U+FEFF and lacks U+0085, and older browsers cannot ignore case in a group. Which characters are letters is the
engine's Unicode version: characters that are newer than one of the two may be split differently.
"""

from __future__ import annotations

import re

from minigpt.errors import UserError

_CATEGORY = re.compile("L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?")
"""Unicode's general categories of assigned characters, which all these engines know by the same names."""
_ESCAPES = {"s": r"\p{White_Space}", "S": r"\P{White_Space}", "d": r"\p{Nd}", "D": r"\P{Nd}"}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_OTHER_CASES = {"s": "sS\u017f", "k": "kK\u212a"}
"""Letters that are equal without case to more than their capital: the long s and the sign of kelvin."""
_ONE_CHARACTER = re.compile("ff|fi|fl|ss|st")
"""Without case, Oniguruma takes these two letters for one character, such as the German sharp s."""
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})([?+]?)")
_GROUPS = ("(?:", "(?=", "(?!", "(?i:")


def javascript_pattern(pattern: str, *, oniguruma: bool) -> str:
    """The pattern in JavaScript's syntax.

    Args:
        pattern: of a tokenizer.
        oniguruma: whether that engine reads it, otherwise Rust's.

    Raises:
        UserError: it has a construct that is not known to mean the same in JavaScript.
    """
    return _Translation(pattern, oniguruma=oniguruma).result()


def literal_pattern(text: str) -> str:
    """A pattern of JavaScript that matches this text."""
    return "".join(_quoted(character) for character in text)


def _quoted(character: str, *, in_class: bool = False) -> str:
    special = "^$\\.*+?()[]{}|/" + ("-" if in_class else "")
    return f"\\{character}" if character in special else character


class _Translation:
    """One pass over a pattern, from left to right."""

    def __init__(self, pattern: str, *, oniguruma: bool) -> None:
        self.pattern, self.oniguruma = pattern, oniguruma
        self.place = 0
        self.parts: list[str] = []
        self.opened: list[tuple[int, bool]] = []
        """Index in parts and `folding` before it, for each open group."""
        self.folding = False
        self.atom = 0
        """Index in parts of what a quantifier would repeat."""
        self.n_atomic = 0

    def result(self) -> str:
        while self.place < len(self.pattern):
            self._step()
        if self.opened:
            raise self._refusal("an open group")
        return "".join(self.parts)

    def _step(self) -> None:
        character = self.pattern[self.place]
        if character in "*+?{":
            self._quantifier()
        elif character == "(":
            self._open()
        elif character == ")":
            self._close()
        elif character == "|":
            self.parts.append("|")
            self.place += 1
            self.atom = len(self.parts)
        elif character == "[":
            self._add(self._class())
        elif character == ".":
            self.place += 1
            self._add(r"[^\n]")
        elif character == "$" and not self.oniguruma:
            self.place += 1
            self._add("$")
        elif character in "^$":  # Oniguruma: of a line, not of the text
            raise self._refusal(character)
        else:
            self._single()

    def _add(self, atom: str) -> None:
        self.atom = len(self.parts)
        self.parts.append(atom)

    def _single(self) -> None:
        character = self._character()
        if len(character) > 1:
            self._add(character)
        elif self.folding and character.isalpha():
            self._add(f"[{self._cases(character)}]")
        else:
            self._add(_quoted(character))

    def _character(self) -> str:
        """The next character, or a class such as \\s in JavaScript's syntax."""
        if self.pattern[self.place] != "\\":
            self.place += 1
            return self.pattern[self.place - 1]
        found = re.compile(r"\\(?:([pP])\{(\w+)\}|(.))", re.DOTALL).match(self.pattern, self.place)
        if found is None:
            raise self._refusal("an escape")
        self.place = found.end()
        kind, category, escaped = found.groups()
        if kind:
            if _CATEGORY.fullmatch(category) is None or self.folding:
                raise self._refusal(found[0])
            return found[0]
        if escaped in _ESCAPES:
            return _ESCAPES[escaped]
        if escaped.isalnum() and escaped not in _CONTROLS:
            raise self._refusal(found[0])
        return _CONTROLS.get(escaped, escaped)

    def _cases(self, letter: str) -> str:
        """All letters that a letter equals without case."""
        lower = letter.lower()
        if not lower.isascii():
            raise self._refusal(f"(?i:...) with {letter}")
        return _OTHER_CASES.get(lower, lower + lower.upper())

    def _class(self) -> str:
        """A character class such as [^\\s\\p{L}]."""
        start = self.place
        self.place += 1
        inside = "["
        if self.pattern.startswith("^", self.place):
            inside += "^"
            self.place += 1
        while not self.pattern.startswith("]", self.place):
            if self.place >= len(self.pattern) or self.pattern.startswith(("[", "&&", "--", "~~"), self.place):
                raise self._refusal(self.pattern[start : self.place + 2])
            inside += self._member()
        self.place += 1
        if inside in ("[", "[^"):
            raise self._refusal("[]")
        return inside + "]"

    def _member(self) -> str:
        """A character, a range or a class within a class."""
        first = self._character()
        if len(first) > 1:
            return first
        rest = self.pattern[self.place : self.place + 2]
        if len(rest) == 2 and rest[0] == "-" and rest[1] != "]":
            self.place += 1
            last = self._character()
            if len(last) > 1 or last < first or self.folding or rest[1] == "[":
                raise self._refusal(f"{first}-{last}")
            return f"{_quoted(first, in_class=True)}-{_quoted(last, in_class=True)}"
        if self.folding and first.isalpha():
            return self._cases(first)
        return _quoted(first, in_class=True)

    def _open(self) -> None:
        kind = next((kind for kind in _GROUPS if self.pattern.startswith(kind, self.place)), "(")
        if kind == "(" and self.pattern.startswith("(?", self.place):
            raise self._refusal(self.pattern[self.place : self.place + 3])
        self.opened.append((len(self.parts), self.folding))
        self.folding |= kind == "(?i:"
        self.parts.append("(?:" if kind in ("(", "(?i:") else kind)
        self.place += len(kind)
        self.atom = len(self.parts)
        inside = re.sub(r"\[.*?\]", ".", self.pattern[self.place :].split(")")[0]).lower()
        if self.folding and self.oniguruma and _ONE_CHARACTER.search(inside):
            raise self._refusal("(?i:...) with ff, fi, fl, ss or st")

    def _close(self) -> None:
        if not self.opened:
            raise self._refusal(")")
        self.atom, self.folding = self.opened.pop()
        self.parts.append(")")
        self.place += 1

    def _quantifier(self) -> None:
        found = _QUANTIFIER.match(self.pattern, self.place)
        # In Oniguruma, {1,3}+ repeats what {1,3} matches: it is not possessive.
        if found is None or self.atom >= len(self.parts) or (self.oniguruma and "}" in found[0][:-1]):
            raise self._refusal(self.pattern[self.place])
        self.place = found.end()
        repeated = "".join(self.parts[self.atom :])
        if found[1] == "+":
            # What a lookahead matched is never tried otherwise, as after a possessive quantifier.
            self.n_atomic += 1
            name = f"a{self.n_atomic}"
            self.parts[self.atom :] = [f"(?=(?<{name}>{repeated}{found[0][:-1]}))\\k<{name}>"]
        else:
            self.parts[self.atom :] = [repeated + found[0]]
        self.atom = len(self.parts)  # a second quantifier would be another engine's syntax

    def _refusal(self, construct: str) -> UserError:
        return UserError(
            f"the tokenizer's split pattern {self.pattern!r:.60} has {construct!r}, which the live page cannot say in "
            "JavaScript: look into this model with `minigpt inspect`"
        )
