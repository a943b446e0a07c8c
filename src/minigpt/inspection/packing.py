"""Attention weights between 0 and 1 -> small bytes and back: triangle, square root, difference, deflate, base64.

A page with every head of a model has to stay a few MB. Four steps do it, and parts/attention/data.js undoes them (where
even these are too large, `thin` and `encode_earlier` round more):

1. keep the lower triangle, row after row: a causal model has nothing above the diagonal;
2. store a weight p as the byte q = rint(255 * sqrt(p)), and read it as p = (q / 255)**2. The square root spends the
   256 levels where the weights are: a token that attends evenly to 500 others gives each 0.002, which a linear byte
   would round to 0 or to twice as much;
3. store the difference from the previous snapshot (bytes that wrap at 256): heads change little between steps;
4. deflate without a header (what browsers call "deflate-raw"), then base64, since HTML is text.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]

MAX_ERROR = 1 - (254.5 / 255) ** 2
"""Largest absolute error of one weight, 0.0039: reached half a level below 1, where the square is steepest."""

_EVEN_BELOW = 80
"""`thin` leaves only even levels below this one: off by (80**2 - 78.5**2) / 255**2, which is less than MAX_ERROR."""

_BOUNDS = (14, 42, 63, 78, 90, 101, 111, 120, 128, 136, 143, 150, 156, 162)
_TOP = len(_BOUNDS)
"""The bin of the levels that stay exact: those from the last bound on, weights above 0.4."""
_MARGIN = 6
"""A level this near to the bin of the step after takes that bin, if it is one of the lower two (weights below 0.03)."""
COARSE_ERROR = max((b - 0.5) ** 2 - (a - 0.5) ** 2 for a, b in pairwise(_BOUNDS)) / 255**2
"""Largest absolute error of a weight in `encode_earlier`, 0.034: the width of a bin. Its levels start at _BOUNDS."""

SIGNED_ERROR = 1 - (126.5 / 127) ** 2
"""Largest error of a value from -1 to 1 after `compand_signed`, 0.0079."""

_SHORTEST = 1e-4
LENGTH_ERROR = _SHORTEST ** (-0.5 / 254) - 1
"""Largest relative error of a length of at least 1e-4 of the longest: half a level, 1.9 %."""


def compand(weights: npt.NDArray[np.floating]) -> Levels:
    """Round weights from 0 to 1 to 256 levels, evenly spaced in their square root; uint8 of the same shape."""
    levels: Levels = np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)  # clips rounding noise
    return levels


def compand_signed(values: npt.NDArray[np.floating]) -> Levels:
    """Round values from -1 to 1 to levels 1 to 255, 128 for 0, evenly spaced in the root of their size."""
    roots = np.sign(values) * np.sqrt(np.clip(np.abs(values), 0, 1))
    return np.rint(128 + 127 * roots).astype(np.uint8)


def thin(levels: Levels) -> Levels:
    """Round small levels to even ones: still within MAX_ERROR, and a bit less for each of the many small weights."""
    return np.where(levels < _EVEN_BELOW, (levels + np.uint8(1)) & np.uint8(254), levels).astype(np.uint8)


def expand(levels: Levels) -> Weights:
    """Undo `compand` and `thin`, to within `MAX_ERROR`: (q / 255)**2."""
    return np.square(levels.astype(np.float32) / 255)


def compand_lengths(lengths: npt.NDArray[np.floating]) -> Levels:
    """Round lengths to 255 levels, evenly spaced in their logarithm: only ratios within a head matter.

    The attention page multiplies weights with the lengths of the values and normalises each row. This rounding changes
    a share p of such a row by at most p * (1 - p) * 2 * LENGTH_ERROR / (1 - LENGTH_ERROR), which is below 0.01.

    Args:
        lengths: (..., T), 0 or more.

    Returns:
        uint8 of the same shape: 0 for a length below 1e-4 of the longest in its row (last axis), 255 for the longest.
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    longest = lengths.max(axis=-1, keepdims=True)
    ratios = np.divide(lengths, longest, out=np.zeros_like(lengths), where=longest > 0)
    exponents = np.log(np.maximum(ratios, _SHORTEST / 2)) / math.log(_SHORTEST)
    levels = np.where(ratios < _SHORTEST, 0, np.rint(255 - 254 * exponents))
    return levels.astype(np.uint8)


def row_sum_error(n_tokens: int) -> float:
    """Largest error of the sum of `n_tokens` weights after `compand` and `expand`: 0.045 for 128 tokens."""
    # A rounded square root is off by at most d = 0.5 / 255, a weight p by d * (2 * sqrt(p) + d), and the square roots
    # of weights that sum to 1 sum to at most sqrt(n_tokens) (Cauchy and Schwarz).
    half_level = 0.5 / 255
    return half_level * (2 * math.sqrt(n_tokens) + n_tokens * half_level)


def pack(weights: npt.NDArray[np.floating]) -> Levels:
    """The lower triangles of (..., T, T) weights as levels: (..., T * (T + 1) / 2), row after row.

    Raises:
        ValueError: the last two axes are not square.
    """
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"weights must have shape (..., T, T), got {weights.shape}")
    return compand(triangle(weights))


def triangle(maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The lower triangles of (..., T, T) maps: (..., T * (T + 1) / 2), row after row."""
    rows, columns = np.tril_indices(maps.shape[-1])
    return maps[..., rows, columns]


def unpack(levels: Levels, n_tokens: int) -> Weights:
    """Undo `pack`: (..., T, T) float32, zero above the diagonal, each within `MAX_ERROR` of the packed weight.

    Raises:
        ValueError: the last axis does not hold a triangle with T = n_tokens.
    """
    triangle = n_tokens * (n_tokens + 1) // 2
    if levels.ndim < 1 or levels.shape[-1] != triangle:
        raise ValueError(f"{n_tokens} tokens need {triangle} levels per map, got shape {levels.shape}")
    weights = np.zeros((*levels.shape[:-1], n_tokens, n_tokens), dtype=np.float32)
    rows, columns = np.tril_indices(n_tokens)
    weights[..., rows, columns] = expand(levels)
    return weights


def encode_frames(frames: Sequence[Levels]) -> str:
    """Turn snapshots of levels, oldest first, into text: differences, raw deflate, base64.

    Raises:
        ValueError: the shapes differ.
    """
    # Weights of trained heads are so noisy that repeats are accidents: runs of one byte (Z_RLE) pack them as small as
    # Z_FILTERED, at up to 30 times its speed.
    parts: list[bytes] = []
    previous: Levels | None = None
    for frame in frames:
        if previous is not None and frame.shape != previous.shape:
            raise ValueError(f"frames must have one shape, got {previous.shape} and {frame.shape}")
        # uint8 wraps at 256, and so does the reader's sum
        parts.append((frame if previous is None else frame - previous).tobytes())
        previous = frame
    return _deflate(parts, zlib.Z_RLE)


def encode_earlier(frames: Sequence[Levels], last: Levels) -> str:
    """Turn the steps before the last into text of about 0.9 bits a weight, to within COARSE_ERROR.

    Most weights of a trained head are small noise, and their changes from step to step are as large. So there are only
    fifteen bins of levels, and a level is read as the mean of its bin in its head: rows still sum to about 1. Weights
    above 0.4 are exact. The bins come sorted by the levels of the step after, which a reader knows, so neighbours in
    this order are alike and the Huffman codes of deflate are short. A small weight that changes little keeps its bin.

    Measured on eight steps of a trained model with 6 x 6 heads and 128 tokens, in bits a weight: 5.8 exact, 3.0 with
    every eighth level, 2.1 with every 16th and Huffman codes alone, 1.5 with six bins of three steps in one byte, 1.7
    with every 16th sorted, 1.2 with these bins sorted, 0.9 without small changes. The mean error is 0.005.

    Newest step first, each as: (heads, 16) levels of the bins, two bins in a byte (the first in the low half), the
    exact levels, in the order of the cells.

    Args:
        frames: (..., n) levels of each earlier step, oldest first.
        last: (..., n) levels of the last step as `encode_frames` gets them.
    """
    bin_of, edges = np.digitize(np.arange(256), _BOUNDS).astype(np.uint8), np.array([0, *_BOUNDS, 256])
    after, parts = last.reshape(-1, last.shape[-1]), list[bytes]()
    n_heads = len(after)
    for frame in frames[::-1]:
        levels = frame.reshape(n_heads, -1)
        bins, own = bin_of[levels], bin_of[after]
        is_near = (own < 2) & (levels + _MARGIN >= edges[own]) & (levels < edges[own + 1] + _MARGIN)
        bins = np.where(is_near, own, bins)
        slots = (bins + 16 * np.arange(n_heads)[:, None]).ravel()
        sums, counts = (np.bincount(slots, each, 16 * n_heads) for each in (expand(levels).ravel(), None))
        table = compand(np.divide(sums, counts, out=np.zeros(16 * n_heads), where=counts > 0))
        ordered = bins.ravel()[np.argsort(after, axis=None, kind="stable")]
        pairs = np.concatenate([ordered, np.zeros(len(ordered) % 2, np.uint8)]).reshape(-1, 2)
        exact = levels[bins == _TOP]
        parts += [table.tobytes(), (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes(), exact.tobytes()]
        after = np.where(bins == _TOP, levels, table[slots].reshape(levels.shape))
    return _deflate(parts, zlib.Z_HUFFMAN_ONLY, memory=7)  # a small memory starts new Huffman codes often


def encode_json(data: object) -> str:
    """Turn plain data into text of a third of its size: JSON, raw deflate, base64."""
    return _deflate([json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")])


def _deflate(parts: Iterable[bytes], strategy: int = zlib.Z_DEFAULT_STRATEGY, memory: int = 9) -> str:
    """Raw deflate, base64. Level 9 saves 0.2 % and takes up to 2.5 times as long; wbits -15: no header, no checksum."""
    compressor = zlib.compressobj(level=6, wbits=-15, memLevel=memory, strategy=strategy)
    packed = [compressor.compress(part) for part in parts]
    return base64.b64encode(b"".join([*packed, compressor.flush()])).decode("ascii")
