"""Generated tokens -> HTML: marks for invisible characters, tints for surprise."""

from __future__ import annotations

import codecs
import html
import math
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from minigpt.config import GenerationConfig
from minigpt.data.tokenizers.base import Tokenizer
from minigpt.generation.generator import Completion

MOST_BITS = 10
"""Surprise in bits from which on the tint is strongest, see parts/tokens.css."""
ENDS = {
    "end_of_text": "ended by end_of_text",
    "stop_token": "ended by a stop token",
    "stop": "ended by a stop text, crossed out",
    "length": "ended by max_new_tokens",
    "context": "ended by a full context",
}
"""`Completion.ended` in words."""
_MARKS = {"\n": "↵", "\t": "→", " ": "␣", "\x7f": "␡"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}


def label(tokenizer: Tokenizer, token: int) -> str:
    """Text of a single token, with marks for invisible characters; bytes of half a character as ‹c3›."""
    if token == tokenizer.end_of_text:
        return "‹end of text›"
    if token >= tokenizer.vocab_size:
        return f"‹{token}, no text›"
    return "".join(_mark(character) or character for character in _text(tokenizer, token)) or "∅"


def tokens_html(
    tokenizer: Tokenizer, tokens: Sequence[int], n_prompt: int, bits: Sequence[float], n_kept: int | None = None
) -> str:
    """A text with one element per token; generated tokens are tinted by their surprise.

    Copying it gives the text: the style draws the marks. Only invisible characters other than spaces, tabs and line
    breaks are replaced by their marks. A character of several tokens is in the element of the last.

    Args:
        tokenizer: of the tokens.
        tokens: ids of the prompt and of the generated tokens.
        n_prompt: number of prompt tokens.
        bits: surprise of each generated token.
        n_kept: number of generated tokens that are part of the text; the rest is a stop text. All when not given.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    parts = []
    for i, token in enumerate(tokens):
        drawn = i - n_prompt
        classes = ["token", "prompt" if drawn < 0 else f"bits-{min(MOST_BITS, round(bits[drawn]))}"]
        if n_kept is not None and drawn >= n_kept:
            classes.append("cut")
        title = "prompt" if drawn < 0 else f"{bits[drawn]:.2f} bits"
        parts.append(f'<span class="{" ".join(classes)}" title="{title}">{_inside(tokenizer, token, decoder)}</span>')
    return "".join(parts)


def n_kept(tokenizer: Tokenizer, written: Completion) -> int:
    """Number of generated tokens that are entirely part of the text; those of a stop text are not."""
    if written.ended != "stop":
        return len(written.tokens)
    prompt = written.prompt
    spaces = len(prompt) - len(prompt.rstrip(" ") or prompt)  # token healing generates them again
    left = spaces + len(written.text)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for number, token in enumerate(written.tokens):
        left -= len(decoder.decode(tokenizer.decode_bytes([token])))
        if left < 0:
            return number
    return len(written.tokens)


def mean(values: Sequence[float]) -> float:
    """The mean, or 0 without values: a text may have no tokens."""
    return math.fsum(values) / len(values) if values else 0.0


def settings_text(config: GenerationConfig) -> str:
    """Sampling settings of a text; those that are off are left out."""
    shown = {
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "min_p": config.min_p,
        "repetition_penalty": None if config.repetition_penalty == 1 else config.repetition_penalty,
        "forbidden_tokens": config.forbidden_tokens,
        "min_new_tokens": config.min_new_tokens or None,
        "max_new_tokens": config.max_new_tokens,
        "stop": [repr(text) for text in config.stops],
        "stop_tokens": config.stop_tokens,
        "overflow": config.overflow,
    }
    texts = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in shown.items()}
    return " · ".join(f"{name} {value}" for name, value in texts.items() if value not in (None, ""))


def scale_html() -> str:
    """Legend of the tints."""
    steps = "".join(
        f'<span class="token bits-{level}">{level if level < MOST_BITS else f"{level}+"}</span>'
        for level in range(MOST_BITS + 1)
    )
    return f'<p class="scale"><span class="token prompt">prompt</span> <span>surprise in bits {steps}</span></p>'


def _inside(tokenizer: Tokenizer, token: int, decoder: codecs.IncrementalDecoder) -> str:
    if token == tokenizer.end_of_text or token >= tokenizer.vocab_size:
        return f'<i class="special" data-mark="{label(tokenizer, token).strip("‹›")}"></i>'
    text = decoder.decode(tokenizer.decode_bytes([token]))
    if not text or any(_is_byte(character) for character in text):
        text = _text(tokenizer, token)
    return "".join(_shown(kind, "".join(group)) for kind, group in groupby(text, _kind)) or '<i data-mark="∅"></i>'


def _shown(kind: str, characters: str) -> str:
    if kind == "space":
        return f'<i class="space">{characters}</i>'
    if kind == "plain":
        return html.escape(characters)
    moves = "\n\t"  # these stay in the text after their marks; others are invisible or reverse the line's direction
    return "".join(f'<i data-mark="{_mark(each)}"></i>{each if each in moves else ""}' for each in characters)


def _kind(character: str) -> str:
    return "space" if character == " " else "plain" if _mark(character) is None else "mark"


def _mark(character: str) -> str | None:
    """Mark of an invisible character; None for a visible one."""
    number = ord(character)
    if character in _MARKS:
        return _MARKS[character]
    if _is_byte(character):
        return f"‹{number - 0xDC00:02x}›"
    if number < 0x20:
        return chr(0x2400 + number)  # Unicode has a picture of each control character
    return f"‹U+{number:04X}›" if unicodedata.category(character) in _INVISIBLE else None


def _text(tokenizer: Tokenizer, token: int) -> str:
    """Bytes of incomplete characters become lone surrogates (surrogateescape)."""
    return tokenizer.decode_bytes([token]).decode("utf-8", errors="surrogateescape")


def _is_byte(character: str) -> bool:
    return 0xDC80 <= ord(character) <= 0xDCFF
