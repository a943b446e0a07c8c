"""The Python twin of pages/parts/attention/data.js: undoes what `minigpt.inspection.packing` writes into a page."""

import base64
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
