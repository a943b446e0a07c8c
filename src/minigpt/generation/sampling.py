"""Sampling: logits of the next token -> the token drawn.

The filters are the steps of `apply_filters`, each with a setting in `GenerationConfig` (config/sampling.py): to add
one, add both. In numpy, one row at a time: for so little arithmetic PyTorch's call overhead would dominate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minigpt.config import GenerationConfig
from minigpt.errors import UserError

FIRST_SORTED = 256
"""Tokens sorted for top_p at first; sorting a whole large vocabulary would take longer than the model."""

SIFTED_FROM = 128
"""Logits for each of top_k's from which dropping most of them before the exact selection saves time."""

Mask = npt.NDArray[np.bool_]


class Candidates(NamedTuple):
    """The tokens left to sample from, with their logits."""

    tokens: npt.NDArray[np.int64]
    """(n,) ids, ascending."""
    logits: npt.NDArray[np.float64]
    """(n,) logits."""

    def kept(self, mask: Mask) -> Candidates:
        """The tokens where a mask (n,) is true."""
        index = np.flatnonzero(mask)  # faster than a boolean mask where few are left
        return Candidates(self.tokens[index], self.logits[index])


def apply_filters(
    logits: npt.NDArray[np.floating[Any]],
    config: GenerationConfig,
    seen: Sequence[int] = (),
    permitted: Mask | None = None,
) -> Iterator[tuple[str, Candidates]]:
    """Apply the filters in Hugging Face's order, so that equal settings mean the same there.

    It yields after each filter, so that an explanation can show what each of them removed; a draw needs the last only.

    Args:
        logits: (V,), not modified.
        config: the filters.
        seen: tokens that repetition_penalty applies to.
        permitted: (V,) tokens allowed at this position; None for all.

    Yields:
        Name of the setting and the tokens left; first "permitted".

    Raises:
        UserError: no token is left.
    """
    V = len(logits)
    # In float64, as a cumulative sum over a large vocabulary loses digits that top_p and the draw need.
    candidates = Candidates(_all_tokens(V), logits.astype(np.float64))
    if permitted is not None:
        candidates = candidates.kept(permitted)
    yield "permitted", candidates
    if config.forbidden_tokens:
        candidates = candidates.kept(~_among(config.forbidden_tokens, V)[candidates.tokens])
        yield "forbidden_tokens", candidates
    if not len(candidates.tokens):
        raise UserError(
            "no token is left to draw: forbidden_tokens, min_new_tokens and the spaces at the prompt's end exclude all "
            "of them; change one"
        )
    if config.repetition_penalty != 1.0:
        # Keskar et al. 2019 (arXiv:1909.05858): divided if positive, multiplied if negative, so always less likely.
        repeated, values = _among(seen, V)[candidates.tokens], candidates.logits
        penalised = np.where(values > 0, values / config.repetition_penalty, values * config.repetition_penalty)
        candidates = Candidates(candidates.tokens, np.where(repeated, penalised, values))
        yield "repetition_penalty", candidates
    if config.temperature == 0:
        return  # greedy: the filters below all keep the likeliest token
    if config.temperature != 1.0:
        candidates = Candidates(candidates.tokens, candidates.logits / config.temperature)
        yield "temperature", candidates
    if config.top_k is not None and config.top_k < V:
        if config.top_k < len(candidates.tokens):
            # By value, not by place: ties with the k-th token stay, whichever comes first in the vocabulary.
            if len(candidates.tokens) >= SIFTED_FROM * config.top_k:
                candidates = candidates.kept(candidates.logits >= _below_nth(candidates.logits, config.top_k))
            candidates = candidates.kept(candidates.logits >= _likeliest(candidates.logits, config.top_k).min())
        yield "top_k", candidates  # even if nothing is left to filter: all tokens of a text have the same steps
    if config.top_p is not None and config.top_p < 1:  # nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751
        candidates = candidates.kept(candidates.logits >= _nucleus_threshold(candidates.logits, config.top_p))
        yield "top_p", candidates
    if config.min_p:  # Nguyen et al. 2024, arXiv:2407.01082; a ratio of probabilities is a difference of logits
        candidates = candidates.kept(candidates.logits >= candidates.logits.max() + np.log(config.min_p))
        yield "min_p", candidates


class Generator:
    """Uniform random numbers of a seed: those of `torch.rand` with `torch.Generator().manual_seed(seed)`, on a CPU."""

    def __init__(self, seed: int) -> None:
        # Both are the Mersenne Twister (MT19937), seeded by its authors' init_genrand with the lowest 32 bits.
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)

    def uniform(self) -> float:
        """A float64 in [0, 1)."""
        numbers = self._state.bytes(8)  # two of 32 bits; torch puts the first above the second, and takes 53 bits
        bits = int.from_bytes(numbers[:4], "little") << 32 | int.from_bytes(numbers[4:], "little")
        return (bits & (2**53 - 1)) * 2.0**-53


def draw(candidates: Candidates, temperature: float, generator: Generator) -> int:
    """Draw one token by inverse transform sampling, with the row's own generator so that rows stay independent.

    Args:
        candidates: the last one from `apply_filters`.
        temperature: 0 is greedy.
        generator: one number is drawn from it, at temperature 0 none.
    """
    if temperature == 0:
        return int(candidates.tokens[candidates.logits.argmax()])
    cumulative = np.exp(candidates.logits - candidates.logits.max()).cumsum()  # unnormalised
    # side="right" and a factor below 1 never select a token of probability 0, at either end.
    place = np.searchsorted(cumulative, generator.uniform() * (1 - 2.0**-52) * cumulative[-1], side="right")
    return int(candidates.tokens[place])


def _among(tokens: Sequence[int], V: int) -> Mask:
    """(V,) mask of these tokens."""
    mask = np.zeros(V, dtype=np.bool_)
    mask[list(tokens)] = True
    return mask


@cache
def _all_tokens(V: int) -> npt.NDArray[np.int64]:
    tokens = np.arange(V)
    tokens.flags.writeable = False  # it is shared
    return tokens


def _below_nth(logits: npt.NDArray[np.float64], n: int) -> float:
    """A lower bound of the nth largest logit that few logits reach, at a fraction of the cost of finding that logit."""
    n_groups = 8 * n
    grouped = logits[: len(logits) // n_groups * n_groups].reshape(-1, n_groups)
    return float(_likeliest(grouped.max(axis=0), n).min())  # n groups have a logit of at least the nth largest maximum


def _likeliest(logits: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """The n largest logits, unsorted."""
    return np.partition(logits, len(logits) - n)[-n:]


def _nucleus_threshold(logits: npt.NDArray[np.float64], top_p: float) -> float:
    """The smallest logit in the nucleus: the likeliest tokens whose probabilities add up to top_p."""
    largest = logits.max()
    total, n = np.exp(logits - largest).sum(), FIRST_SORTED
    # Sort the likeliest n only, and eight times as many while these do not hold top_p.
    while True:
        n = min(n, len(logits))
        likeliest = np.sort(_likeliest(logits, n))[::-1]
        cumulative = np.exp(likeliest - largest).cumsum() / total
        if n == len(logits) or cumulative[-1] >= top_p:
            return float(likeliest[min(int((cumulative < top_p).sum()), n - 1)])
        n *= 8
