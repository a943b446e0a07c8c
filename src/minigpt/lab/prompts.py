"""A text, a token and a position that a user names on the command line -> ids, or one line of what is wrong."""

from __future__ import annotations

from minigpt.data.tokenizers.base import Tokenizer, decode
from minigpt.errors import UserError
from minigpt.runs.loading import LoadedModel


def encode_text(loaded: LoadedModel, text: str, option: str = "--text", more: int = 0) -> list[int]:
    """Ids of a text, after the token that a document begins with where the model knows one, as `minigpt inspect`.

    Args:
        loaded: the model and its tokenizer.
        text: what the user typed.
        option: its name, for messages.
        more: tokens that may go beyond the context, such as a last one that is only predicted.

    Raises:
        UserError: no text, one with characters that the tokenizer lacks, or one longer than the context.
    """
    tokenizer, T = loaded.tokenizer, loaded.model.config.context_length
    if not text:
        raise UserError(f"{option}: the text is empty; give one")
    start = tokenizer.end_of_text if loaded.config.data.mode == "examples" else tokenizer.begin_of_text
    tokens = [*([] if start is None else [start]), *tokenizer.encode(text)]
    if len(tokens) > T + more:
        raise UserError(f"{option}: {len(tokens)} tokens do not fit the context of {T}; shorten the text")
    return tokens


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


def check_position(position: int, n_tokens: int, option: str = "--position") -> int:
    """The position, counted from the start.

    Raises:
        UserError: there is no such one.
    """
    if not -n_tokens <= position < n_tokens:
        raise UserError(f"{option} {position}: there are {n_tokens} positions; give {-n_tokens} to {n_tokens - 1}")
    return position % n_tokens


def written(tokenizer: Tokenizer, token: int) -> str:
    """A token for a cell of a table: quoted, so that its spaces are seen and it cannot break the line or the table."""
    return repr(decode(tokenizer, [token])).replace("|", "\\|")
