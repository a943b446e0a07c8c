"""A text and its relations -> a probe of the model: tokens to show, windows to measure, links between tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from minigpt.data.relations import Example
from minigpt.data.tokenizers.base import Tokenizer, decode
from minigpt.errors import UserError
from minigpt.files import write_text
from minigpt.inspection.ablation import UNKNOWN
from minigpt.inspection.python_relations import python_relations
from minigpt.inspection.relations import Link, links, moved, token_spans, within

PROBE_TOKENS = 512
"""Tokens measured at each inspection during training, in windows of the full context; at least one window."""


@dataclass(frozen=True, eq=False)
class Probe:
    """The text on which a model is inspected, the same at every step."""

    tokens: tuple[int, ...]
    """Ids of the tokens whose attention maps are shown."""
    windows: Tensor
    """(B, T + 1) ids on which heads are scored; UNKNOWN after the end of a shorter text."""
    links: tuple[Link, ...]
    """Links between `tokens`."""
    window_links: tuple[tuple[Link, ...], ...]
    """Links within each window."""
    text: tuple[int, ...]
    """Ids of all tokens from which `tokens` and `windows` are cut."""
    text_links: tuple[Link, ...]
    """Links between them."""

    @property
    def following(self) -> int | None:
        """Id of the token after `tokens`, or None where the text ends with them."""
        T = len(self.tokens)
        return int(self.windows[0, T]) if len(self.windows) and self.windows.shape[1] > T else None

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        tokens: Sequence[int],
        context_length: int,
        most_shown: int,
        most_measured: int = PROBE_TOKENS,
        known: Sequence[Link] | None = None,
        *,
        one_by_one: bool = False,
    ) -> Probe:
        """Make a probe from the beginning of a text.

        Args:
            tokenizer: the one that encoded the tokens.
            tokens: one or more ids.
            context_length: of the model.
            most_shown: maximum number of tokens whose maps are shown.
            most_measured: maximum number of tokens in the windows; a single window may be longer.
            known: links between the tokens; those of Python code when not given.
            one_by_one: each text, from one end_of_text to the next, is a window of its own, as with data.mode=examples,
                and the longest is shown. Together, a model sees what it was never trained on: text after text.
        """
        if one_by_one:
            return cls._of_texts(tokenizer, tokens, context_length, most_shown, most_measured, known)
        shown = tuple(tokens[: min(most_shown, context_length)])
        windows = windows_of(tokens, context_length, most_measured)
        n_windows, T = len(windows), windows.shape[1] - 1
        used = tokens[: max(n_windows * T + 1, len(shown))]
        found = links_of_documents(tokenizer, used) if known is None else known
        return cls(
            shown,
            windows,
            within(found, 0, len(shown)),
            tuple(within(found, i * T, i * T + T) for i in range(n_windows)),
            tuple(used),
            within(found, 0, len(used)),
        )

    @classmethod
    def _of_texts(
        cls,
        tokenizer: Tokenizer,
        tokens: Sequence[int],
        context_length: int,
        most_shown: int,
        most_measured: int,
        known: Sequence[Link] | None,
    ) -> Probe:
        bounds = [0, *(i for i, token in enumerate(tokens) if token == tokenizer.end_of_text and i), len(tokens)]
        spans = list[tuple[int, int]]()
        for first, end in pairwise(bounds):  # a text longer than the context has several windows
            if sum(stop - start for start, stop in spans) < most_measured:
                spans += [(at, min(end, at + context_length)) for at in range(first, end, context_length)]
        used = tokens[: spans[-1][1] + 1]
        found = links_of_documents(tokenizer, used) if known is None else known
        first, end = max(spans, key=lambda span: span[1] - span[0])
        shown = (first, min(end, first + most_shown))
        # The target of a text's last token is the next end_of_text. A row without a target is dropped.
        spans = [(start, stop) for start, stop in spans if start + 1 < len(used)]
        T = max((min(stop, len(used) - 1) - start for start, stop in spans), default=0)
        windows = torch.full((len(spans), T + 1), UNKNOWN)
        for row, (start, stop) in zip(windows, spans, strict=True):
            row[: len(used[start : stop + 1])] = torch.tensor(used[start : stop + 1])
        return cls(
            tuple(used[slice(*shown)]),
            windows,
            within(found, *shown),
            tuple(within(found, *span) for span in spans),
            tuple(used),
            within(found, 0, len(used)),
        )

    def save(self, path: Path) -> None:
        """Write tokens and links as JSON, so that the same text can be inspected later.

        Raises:
            UserError: the file cannot be written.
        """
        links = [[link.name, link.query, *link.keys] for link in self.text_links]
        write_text(path, json.dumps({"tokens": self.text, "links": links}))


def windows_of(tokens: Sequence[int], context_length: int, most: int) -> Tensor:
    """(B, T + 1) windows from the beginning of a text, each of which predicts T tokens: as many as fit into `most`.

    At least one, of the whole context or the whole text; none for a text of one token.
    """
    T = min(context_length, len(tokens) - 1)
    if not T:
        return torch.zeros(0, 1).long()
    n = max(1, min(most, len(tokens) - 1) // T)
    return torch.tensor(tokens[: n * T + 1]).unfold(0, T + 1, T)


def read_probe(path: Path, vocab_size: int) -> tuple[list[int], list[Link]]:
    """Tokens and links of `Probe.save`.

    Raises:
        UserError: the file cannot be read, is damaged, or has tokens beyond the vocabulary.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        tokens = [int(token) for token in data["tokens"]]
        found = [Link(str(name), int(query), tuple(map(int, keys))) for name, query, *keys in data["links"]]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):  # OverflowError: 1e999
        raise UserError(f"{path}: is damaged; give a text as --text or --file") from None
    if not tokens or min(tokens) < 0 or max(tokens) >= vocab_size:
        raise UserError(f"{path}: was made with another tokenizer; give a text as --text or --file")
    if not all(link.keys and 0 <= min(link.keys) <= max(link.keys) < link.query < len(tokens) for link in found):
        raise UserError(f"{path}: is damaged; give a text as --text or --file")
    return tokens, found


def links_of_documents(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Link]:
    """Links of Python code within each document; end_of_text separates documents."""
    found: list[Link] = []
    ends = [i for i, token in enumerate(tokens) if token == tokenizer.end_of_text]
    for start, stop in zip([0, *(end + 1 for end in ends)], [*ends, len(tokens)], strict=True):
        document = tokens[start:stop]
        found += moved(links(python_relations(decode(tokenizer, document)), token_spans(tokenizer, document)), start)
    return found


def read_examples(tokenizer: Tokenizer, examples: Iterable[Example], most: int) -> tuple[list[int], list[Link]]:
    """Encode texts with known relations: their tokens, each text after an end_of_text, and the links between them.

    Args: examples are read until there are `most` tokens; the last text is not cut.

    Raises:
        UserError: the tokenizer cannot encode a text.
    """
    tokens: list[int] = []
    found: list[Link] = []
    for text, relations in examples:
        own = tokenizer.encode(text)
        found += moved(links(relations, token_spans(tokenizer, own)), len(tokens) + 1)
        tokens += [tokenizer.end_of_text, *own]
        if len(tokens) >= most:
            break
    return tokens, found
