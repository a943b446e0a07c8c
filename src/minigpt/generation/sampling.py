"""Logits of the next token -> the token drawn.

What narrows the choice is applied in this order, each to what the one before has left: forbidden tokens, the penalty of
repetitions, temperature, top_k, top_p, min_p. It is Hugging Face's order, so the same settings mean the same there.

In numpy and for one row at a time: a draw looks at many numbers once, and PyTorch's calls would take longer than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minigpt.config import GenerationConfig
from minigpt.errors import UserError

FIRST = 256
"""Likeliest tokens that are sorted for top_p at first: sorting all of a large vocabulary costs more than the model."""

Mask = npt.NDArray[np.bool_]


class Choice(NamedTuple):
    """The tokens that may still be drawn."""

    tokens: npt.NDArray[np.int64]
    """(n,) ids, ascending."""
    logits: npt.NDArray[np.float64]
    """(n,) of each."""

    def kept(self, mask: Mask) -> Choice:
        """Those that a mask (n,) says."""
        index = np.flatnonzero(mask)  # looking up a few is faster than passing over many
        return Choice(self.tokens[index], self.logits[index])


def narrowed(
    logits: npt.NDArray[np.floating[Any]],
    config: GenerationConfig,
    seen: Sequence[int] = (),
    permitted: Mask | None = None,
) -> Iterator[tuple[str, Choice]]:
    """What each setting that is on leaves to choose from, in their order.

    Args:
        logits: (V,), left as they are.
        config: which filters; a temperature of 0 narrows nothing more, as the likeliest token is left by all.
        seen: the tokens that count as repeated.
        permitted: (V,) the tokens that may come at this place at all; None for all.

    Yields:
        The setting's name and what it leaves; first "permitted".

    Raises:
        UserError: no token is left.
    """
    V = len(logits)
    choice = Choice(np.arange(V), logits.astype(np.float64))
    if permitted is not None:
        choice = choice.kept(permitted)
    yield "permitted", choice
    if config.forbidden_tokens:
        choice = choice.kept(~_among(config.forbidden_tokens, V)[choice.tokens])
        yield "forbidden_tokens", choice
    if not len(choice.tokens):
        raise UserError(
            "no token is left to draw: forbidden_tokens, min_new_tokens and the spaces at the prompt's end exclude all "
            "of them; change one"
        )
    if config.repetition_penalty != 1.0:
        repeated, values = _among(seen, V)[choice.tokens], choice.logits
        penalised = np.where(values > 0, values / config.repetition_penalty, values * config.repetition_penalty)
        choice = Choice(choice.tokens, np.where(repeated, penalised, values))
        yield "repetition_penalty", choice
    if config.temperature == 0:
        return
    if config.temperature != 1.0:
        choice = Choice(choice.tokens, choice.logits / config.temperature)
        yield "temperature", choice
    if config.top_k is not None and config.top_k < len(choice.tokens):
        choice = choice.kept(choice.logits >= _likeliest(choice.logits, config.top_k).min())
        yield "top_k", choice
    if config.top_p is not None and config.top_p < 1:
        choice = choice.kept(choice.logits >= _edge(choice.logits, config.top_p))
        yield "top_p", choice
    if config.min_p:
        choice = choice.kept(choice.logits >= choice.logits.max() + np.log(config.min_p))
        yield "min_p", choice


def draw(choice: Choice, temperature: float, generator: torch.Generator) -> int:
    """One token, from the row's own random state, so that no row depends on those beside it.

    Args:
        choice: as the last of `narrowed`.
        temperature: 0 takes the likeliest.
        generator: on the CPU; one number is taken from it.
    """
    if temperature == 0:
        return int(choice.tokens[choice.logits.argmax()])
    reached = np.exp(choice.logits - choice.logits.max()).cumsum()  # the distribution's quantiles, times a factor
    height = torch.rand(1, generator=generator, dtype=torch.float64).item()
    # To the right of equal values and never at the very top: a token of no probability adds nothing and is passed over.
    place = np.searchsorted(reached, height * (1 - 2.0**-52) * reached[-1], side="right")
    return int(choice.tokens[place])


def _among(tokens: Sequence[int], V: int) -> Mask:
    """(V,) whether each token is one of these."""
    mask = np.zeros(V, dtype=np.bool_)
    mask[list(tokens)] = True
    return mask


def _likeliest(logits: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """The n largest, in any order."""
    return np.partition(logits, len(logits) - n)[-n:]


def _edge(logits: npt.NDArray[np.float64], top_p: float) -> float:
    """The smallest logit among the likeliest tokens whose probabilities reach top_p."""
    largest = logits.max()
    total, n = np.exp(logits - largest).sum(), FIRST
    while True:
        n = min(n, len(logits))
        likeliest = np.sort(_likeliest(logits, n))[::-1]
        before = np.exp(likeliest - largest).cumsum() / total
        if n == len(logits) or before[-1] >= top_p:
            return float(likeliest[min(int((before < top_p).sum()), n - 1)])
        n *= 8
