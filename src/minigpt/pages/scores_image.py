"""Picture of the head scores: a small table of layers and heads for each score, the brighter the higher.

It is legible as a thumbnail in a dashboard and in a terminal (`wandb leet`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from minigpt.pages.colormap import COLOURS

SHOWN = ("induction", "duplicate_token", "previous_token", "first_token", "current_token", "entropy")
"""Scores between 0 and 1, in the order of their tables."""
PER_ROW = 3
SIDE = 168
"""Pixels of the longer side of a table."""
MOST_PIXELS = 2400
_MARGIN, _TITLE = 10, 34
_PAGE, _INK, _MUTED, _NOTHING = (255, 255, 255), (26, 31, 38), (89, 99, 110), (225, 229, 234)


def scores_image(scores: Mapping[str, npt.NDArray[np.floating]]) -> npt.NDArray[np.uint8]:
    """Draw a table for each of the main scores.

    Args:
        scores: name -> (n_layer, n_head); those of SHOWN are drawn, clipped to 0..1; NaN is grey.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: none of SHOWN is among the scores.
    """
    names = [name for name in SHOWN if name in scores]
    if not names:
        raise ValueError(f"none of {', '.join(SHOWN)} is among the scores")
    n_layer, n_head = scores[names[0]].shape
    cell = max(1, min(SIDE // max(n_layer, n_head), MOST_PIXELS // (PER_ROW * n_head), 32))
    width, height = max(SIDE, cell * n_head) + _MARGIN, cell * n_layer + _TITLE + _MARGIN
    columns = min(PER_ROW, len(names))
    rows = -(-len(names) // columns)
    picture = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), _PAGE)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for number, name in enumerate(names):
        left, top = _MARGIN + number % columns * width, _MARGIN + number // columns * height
        draw.text((left, top), name.replace("_", " "), fill=_INK, font=font)
        draw.text((left, top + 14), _best(scores[name]), fill=_MUTED, font=font)
        picture.paste(Image.fromarray(_table(scores[name], cell)), (left, top + _TITLE))
    return np.array(picture)


def _table(score: npt.NDArray[np.floating], cell: int) -> npt.NDArray[np.uint8]:
    levels = np.rint(255 * np.clip(np.nan_to_num(score), 0, 1)).astype(np.uint8)
    colours = np.where(np.isnan(score)[..., None], np.array(_NOTHING, dtype=np.uint8), COLOURS[levels])
    table = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    if cell >= 6:  # lines between heads, where they leave room for the heads
        table[::cell] = table[:, ::cell] = _PAGE
    return table


def _best(score: npt.NDArray[np.floating]) -> str:
    if np.isnan(score).all():
        return "no value"
    layer, head = np.unravel_index(np.nanargmax(score), score.shape)
    return f"most: {layer}.{head} with {score[layer, head]:.2f}"
