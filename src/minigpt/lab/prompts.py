"""A text and a token that a user names on the command line -> ids, or one line of what is wrong."""

from __future__ import annotations

from minigpt.data.tokenizers.base import Tokenizer, decode
from minigpt.errors import UserError
from minigpt.generation.text import encode_prompt
from minigpt.pages.tokens import label
from minigpt.runs.loading import LoadedModel


def encode_text(loaded: LoadedModel, text: str) -> list[int]:
    """Ids of a text, after the token that a document begins with where the model knows one, as `minigpt inspect`.

    Raises:
        UserError: no text, one with characters that the tokenizer lacks, or one longer than the context.
    """
    if not text:
        raise UserError("the text is empty: give one as --text")
    T, from_start = loaded.model.config.context_length, loaded.config.data.mode == "examples"
    return encode_prompt(loaded.tokenizer, text, T, from_start=from_start)


def encode_token(tokenizer: Tokenizer, text: str, option: str) -> int:
    """The id of a text that is one token.

    Raises:
        UserError: it is none or several, which are listed.
    """
    ids = tokenizer.encode(text)
    if len(ids) == 1:
        return ids[0]
    parts = ", ".join(written(tokenizer, token) for token in ids[:6]) + (", ..." if len(ids) > 6 else "")
    raise UserError(
        f"{option} {text!r}: is {len(ids)} tokens{f' ({parts})' if ids else ''}, not one; "
        "give one token, a space before a word included"
    )


def written(tokenizer: Tokenizer, token: int) -> str:
    """A token for a message or a cell of a table: quoted, with marks for what is invisible, on one line."""
    return f"“{label(tokenizer, token)}”".replace("|", "\\|")


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """A token for a file: its text as it is; empty for an id that only the model has, as some models of others do."""
    return decode(tokenizer, [token]) if token < tokenizer.vocab_size else ""
