"""How much of generated text is copied from the train text, token by token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minigpt.data.shards import Tokens

GRAM = 20
"""Tokens of a run whose occurrence in the train text counts in `Copied.share`."""
CHUNK = 1 << 16
"""Places searched at a time: the arrays of a chunk stay in a processor's cache."""
MOST_CHUNKS = 320
"""Most chunks searched: 21 million tokens, in about half a second on one core."""
_SLOT_BITS = 20
"""log2 of the number of slots of the table that rejects nearly all places."""
_BASE, _MIX = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
"""Odd 64-bit numbers: the base of the hash, which is invertible mod 2^64, and a factor that spreads small token ids."""


class Copied(NamedTuple):
    """How much of generated text is copied verbatim."""

    longest_tokens: int
    """Longest run of tokens of a sample that occurs in the train text."""
    share: float | None
    """Share of the samples' 20-grams of tokens that occur in the train text, 0..1; None if all samples are shorter."""
    n_searched: int
    """Train tokens that were searched."""


def find_copied(samples: Sequence[Sequence[int]], train: Tokens) -> Copied:
    """Search the train text for the runs of tokens that samples copy from it.

    Exact for what is searched: a rolling hash (Karp and Rabin 1987) picks few places, whose tokens are then compared.
    Generated tokens have no end_of_text, so no run crosses from one document to the next.

    Args:
        samples: the generated tokens of each sample, without its prompt.
        train: up to 21 million tokens are searched as a whole, of more as many in chunks spread evenly.
    """
    texts = [np.array(sample, np.uint32) for sample in samples]
    most = max(map(len, texts), default=0)
    powers = _Powers(CHUNK + max(most + 1, GRAM))  # windows of one more than a sample are asked for, too
    grams = list(_windows(texts, GRAM))
    missing = _Wanted(grams, GRAM, powers)
    longest, longer = 0, _Wanted(_windows(texts, 1), 1, powers)
    starts = _starts(len(train))
    for start in starts:
        if longest == most and not missing.windows:
            break
        chunk = _Chunk(train.read(start, min(start + CHUNK + most, len(train))), powers)
        if found := set(chunk.matches(missing)):
            missing = _Wanted(missing.windows - found, GRAM, powers)
        if chunk.has(longer):
            lengths = range(longest + 2, most + 1)
            # A run of n tokens holds one of n - 1, so bisection finds the longest.
            longest += 1 + bisect_left(
                lengths, True, key=lambda n: not chunk.has(_Wanted(_windows(texts, n), n, powers))
            )
            longer = _Wanted(_windows(texts, longest + 1), longest + 1, powers)
    share = sum(gram not in missing.windows for gram in grams) / len(grams) if grams else None
    return Copied(longest, share, min(len(train), len(starts) * CHUNK))


def _starts(n_tokens: int) -> Sequence[int]:
    """First places of the chunks: all of a text, or as many as are allowed, evenly spread."""
    if n_tokens <= MOST_CHUNKS * CHUNK:
        return range(0, n_tokens, CHUNK)
    return [n_tokens * i // MOST_CHUNKS for i in range(MOST_CHUNKS)]


def _windows(texts: Sequence[np.ndarray], n: int) -> Iterator[bytes]:
    """All runs of n tokens, as the bytes of uint32."""
    for text in texts:
        content = text.tobytes()
        yield from (content[4 * i : 4 * (i + n)] for i in range(len(text) - n + 1))


class _Powers:
    """Powers of the base and of its inverse, mod 2^64."""

    def __init__(self, n: int) -> None:
        """Args: n, number of powers."""
        self.up = np.cumprod(np.array([1] + [_BASE] * (n - 1), np.uint64))
        self.down = np.cumprod(np.array([1] + [pow(_BASE, -1, 1 << 64)] * (n - 1), np.uint64))


def _slots(hashes: np.ndarray) -> np.ndarray:
    # The high bits depend on all tokens, the low ones do not.
    return (hashes * np.uint64(_MIX)) >> np.uint64(64 - _SLOT_BITS)


class _Wanted:
    """Windows of n tokens to search for, and a table that is True at the slots of their hashes."""

    def __init__(self, windows: Iterable[bytes], n: int, powers: _Powers) -> None:
        """Args: windows, as the bytes of uint32; n, tokens of each; powers, at least n."""
        self.windows, self.n = set(windows), n
        tokens = np.frombuffer(b"".join(self.windows), np.uint32).reshape(-1, n)
        self.table = np.zeros(1 << _SLOT_BITS, bool)
        self.table[_slots((tokens * powers.up[:n]).sum(axis=1))] = True


class _Chunk:
    """A part of the train text, with prefix sums from which the hashes of all its windows follow."""

    def __init__(self, tokens: np.ndarray, powers: _Powers) -> None:
        """Args: tokens, from the chunk's first place on, enough for windows that begin in it; powers, as many."""
        self.tokens, self.powers = tokens.astype(np.uint32), powers
        self.sums = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum(self.tokens * powers.up[: len(tokens)], out=self.sums[1:])

    def matches(self, wanted: _Wanted) -> Iterator[bytes]:
        """The wanted windows that begin in this chunk, repeated where they occur again."""
        n, n_places = wanted.n, min(CHUNK, len(self.tokens) - wanted.n + 1)
        if not wanted.windows or n_places < 1:
            return
        # The sum of token i times base^i over a window, divided by the power of its first place.
        hashes = (self.sums[n : n + n_places] - self.sums[:n_places]) * self.powers.down[:n_places]
        for place in np.flatnonzero(wanted.table[_slots(hashes)]).tolist():
            window = self.tokens[place : place + n].tobytes()
            if window in wanted.windows:
                yield window

    def has(self, wanted: _Wanted) -> bool:
        """Whether any wanted window begins in this chunk."""
        return any(True for _ in self.matches(wanted))
