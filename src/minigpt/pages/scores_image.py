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
_MARGIN, _TITLE, _LEFT, _SCALE = 10, 48, 18, 24
"""Pixels around each table; above it for its name, its best head and the head numbers; left of it for the layer
numbers; at the top of the picture for the colour bar."""
_BAR = 128  # pixels of the colour bar
_LEAST_LABEL = 14  # pixels between two numbers of an axis
_PAGE, _INK, _MUTED, _NOTHING = (255, 255, 255), (26, 31, 38), (89, 99, 110), (225, 229, 234)


def scores_image(scores: Mapping[str, npt.NDArray[np.floating]]) -> npt.NDArray[np.uint8]:
    """Draw a table for each of the main scores: layers are rows, heads are columns.

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
    width, height = _LEFT + max(SIDE, cell * n_head) + _MARGIN, _TITLE + cell * n_layer + _MARGIN
    columns = min(PER_ROW, len(names))
    rows = -(-len(names) // columns)
    # Room for the words beside the colour bar, where there is a single score.
    size = max(columns * width, 2 * SIDE) + _MARGIN, _SCALE + rows * height + _MARGIN
    picture = Image.new("RGB", size, _PAGE)
    _draw_scale(picture)
    for number, name in enumerate(names):
        left, top = _MARGIN + number % columns * width, _SCALE + _MARGIN + number // columns * height
        picture.paste(Image.fromarray(_table(scores[name], cell)), (left + _LEFT, top + _TITLE))
        _draw_words(picture, (left, top), cell, name, scores[name])
    return np.array(picture)


def _draw_scale(picture: Image.Image) -> None:
    """The colour bar from 0 to 1, and what the axes are."""
    draw, font, middle = ImageDraw.Draw(picture), ImageFont.load_default(), _MARGIN + 6
    bar = COLOURS[np.linspace(0, 255, _BAR).round().astype(int)][None].repeat(8, axis=0)
    picture.paste(Image.fromarray(bar), (_MARGIN + 12, middle - 4))
    draw.text((_MARGIN, middle), "0", fill=_INK, font=font, anchor="lm")
    draw.text((_MARGIN + _BAR + 18, middle), "1", fill=_INK, font=font, anchor="lm")
    draw.text((_MARGIN + _BAR + 36, middle), "rows: layers, columns: heads", fill=_MUTED, font=font, anchor="lm")


def _draw_words(
    picture: Image.Image, corner: tuple[int, int], cell: int, name: str, score: npt.NDArray[np.floating]
) -> None:
    """A table's name, its best head, and the numbers of layers and heads, thinned where they would overlap."""
    draw, font, (left, top) = ImageDraw.Draw(picture), ImageFont.load_default(), corner
    draw.text((left, top), name.replace("_", " "), fill=_INK, font=font)
    draw.text((left, top + 14), _best(score), fill=_MUTED, font=font)
    every = -(-_LEAST_LABEL // cell)
    for layer in range(0, len(score), every):
        middle = top + _TITLE + layer * cell + cell // 2
        draw.text((left + _LEFT - 4, middle), str(layer), fill=_MUTED, font=font, anchor="rm")
    for head in range(0, score.shape[1], every if score.shape[1] < 100 else 2 * every):
        middle = left + _LEFT + head * cell + cell // 2
        draw.text((middle, top + _TITLE - 9), str(head), fill=_MUTED, font=font, anchor="mm")


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
