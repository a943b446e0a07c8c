"""Attention weights between 0 and 1 -> small bytes and back: triangle, square root, difference, deflate, base64.

A page with every head of a model has to stay a few MB. Four steps do it, and parts/attention/data.js undoes them:

1. keep the lower triangle, row after row: a causal model has nothing above the diagonal;
2. store a weight p as the byte q = rint(255 * sqrt(p)), and read it as p = (q / 255)**2. The square root spends the
   256 levels where the weights are: a token that attends evenly to 500 others gives each 0.002, which a linear byte
   would round to 0 or to twice as much;
3. store the difference from the previous snapshot (bytes that wrap at 256): heads change little between steps;
4. deflate without a header (what browsers call "deflate-raw"), then base64, since HTML is text.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]

MAX_ERROR = 1 - (254.5 / 255) ** 2
"""Largest absolute error of one weight, 0.0039: reached half a level below 1, where the square is steepest."""

_COARSE = 8
COARSE_ERROR = (248**2 - 243.5**2) / 255**2
"""The same after `coarsen`, 0.034: reached half a level below the middle between the two highest multiples of 8."""

_SHORTEST = 1e-4
LENGTH_ERROR = _SHORTEST ** (-0.5 / 254) - 1
"""Largest relative error of a length of at least 1e-4 of the longest: half a level, 1.9 %."""


def compand(weights: npt.NDArray[np.floating]) -> Levels:
    """Round weights from 0 to 1 to 256 levels, evenly spaced in their square root; uint8 of the same shape."""
    levels: Levels = np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)  # clips rounding noise
    return levels


def coarsen(levels: Levels) -> Levels:
    """Round to every eighth level: halves the bytes of trained heads, whose noise does not compress."""
    return np.minimum((levels.astype(np.uint16) + _COARSE // 2) // _COARSE * _COARSE, 255).astype(np.uint8)


def expand(levels: Levels) -> Weights:
    """Undo `compand`, to within `MAX_ERROR`, and `coarsen`, to within `COARSE_ERROR`: (q / 255)**2."""
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
    rows, columns = np.tril_indices(weights.shape[-1])
    return compand(weights[..., rows, columns])


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
    # Measured: level 9 saves 0.2 % and takes up to 2.5 times as long. Z_FILTERED, made for differences, which rarely
    # repeat but cluster around 0, saves 4 to 8 %. wbits -15: the largest window, without header and checksum.
    compressor = zlib.compressobj(level=6, wbits=-15, memLevel=9, strategy=zlib.Z_FILTERED)
    parts: list[bytes] = []
    previous: Levels | None = None
    for frame in frames:
        if previous is not None and frame.shape != previous.shape:
            raise ValueError(f"frames must have one shape, got {previous.shape} and {frame.shape}")
        # uint8 wraps at 256, and so does the reader's sum
        change = frame if previous is None else frame - previous
        parts.append(compressor.compress(change.tobytes()))
        previous = frame
    parts.append(compressor.flush())
    return base64.b64encode(b"".join(parts)).decode("ascii")
