"""The Python twin of pages/parts/attention/data.js: undoes what `minigpt.inspection.packing` writes into a page."""

import base64
import json
import zlib

import numpy as np


def decode_frames(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """(number of frames, *shape) uint8 levels from the text of `encode_frames`."""
    changes = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True), wbits=-15), dtype=np.uint8)
    return np.cumsum(changes.reshape(-1, *shape), axis=0, dtype=np.uint8)


def expand_lengths(levels: np.ndarray) -> np.ndarray:
    """float32 lengths as shares of the longest in their row, from the levels of `compand_lengths`."""
    ratios = 1e-4 ** ((255 - levels.astype(np.float64)) / 254)
    return np.where(levels == 0, 0, ratios).astype(np.float32)


def decode_earlier(text: str, last: np.ndarray, n_earlier: int) -> np.ndarray:
    """(n_earlier, *last.shape) levels from the text of `encode_earlier`, oldest first."""
    stream = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True), wbits=-15), dtype=np.uint8)
    n_heads, top, steps = last.size // last.shape[-1], 14, []
    after = last.ravel()
    for _ in range(n_earlier):
        table, bins = stream[: 16 * n_heads], stream[16 * n_heads :][: (last.size + 1) // 2]
        stream = stream[table.size + bins.size :]
        bins_in_order = np.stack([bins & 15, bins >> 4], axis=1).ravel()[: last.size]
        own = np.empty(last.size, np.uint8)
        own[np.argsort(after, kind="stable")] = bins_in_order
        after = table[own + 16 * np.repeat(np.arange(n_heads), last.shape[-1])]
        n_exact = np.count_nonzero(own == top)
        after[own == top], stream = stream[:n_exact], stream[n_exact:]
        steps.append(after.reshape(last.shape))
    assert stream.size == 0
    return np.stack(steps[::-1])


def details_of(run: dict) -> dict:
    """Scores, next tokens and causes of a run's data."""
    return json.loads(zlib.decompress(base64.b64decode(run["details"]), wbits=-15))
