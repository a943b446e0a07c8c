"""The attention grid: a picture with a small map for every head; rows are layers, columns are heads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from minigpt.inspection import packing
from minigpt.inspection.snapshot import Snapshot
from minigpt.pages.colormap import COLOURS

Picture = npt.NDArray[np.uint8]

MAX_PIXELS = 2400
"""Longest side of the picture; many heads make the cells smaller, not the picture larger."""

_BACKGROUND = (255, 255, 255)
_SEPARATOR = (208, 213, 219)
_INK = (64, 70, 78)
_GAP = 3  # pixels between two cells: one of line and one of air on each side
_LEFT, _TOP, _EDGE = (
    46,
    18,
    2,
)  # room for "layer 11" and "head 11" in PIL's default font, and on the other sides
_LABEL_PIXELS = 16  # least distance between two labels
_FULL_LABEL_PIXELS = 44  # cells this wide have room for "head 11", narrower ones for "11"


def grid_image(snapshot: Snapshot, *, cell_pixels: int = 96) -> Picture:
    """Draw every head of a snapshot as one cell of a table.

    Colours follow the square root of the weight, as in the page: a head that spreads its attention would be all dark
    on a linear scale. A map larger than its cell keeps the largest weight of each pixel, so that a diagonal of one
    token's width stays visible.

    Args:
        snapshot: (n_layer, n_head, T, T) weights.
        cell_pixels: side of one map, in pixels. Cells shrink where the picture would pass `MAX_PIXELS`.

    Returns:
        (height, width, 3) uint8 RGB, each side at most `MAX_PIXELS` = 2400 (for up to 500 layers and heads).

    Raises:
        ValueError: `cell_pixels` is less than 1.
    """
    if cell_pixels < 1:
        raise ValueError(f"cell_pixels must be 1 or more, got {cell_pixels}")
    n_layer, n_head, _, _ = snapshot.weights.shape
    room = MAX_PIXELS - max(_LEFT, _TOP) - _EDGE
    cell = max(1, min(cell_pixels, room // max(n_layer, n_head) - _GAP))
    pitch = cell + _GAP
    picture = np.empty((_TOP + n_layer * pitch + _EDGE, _LEFT + n_head * pitch + _EDGE, 3), dtype=np.uint8)
    picture[:] = _BACKGROUND
    for layer in range(n_layer):
        for head in range(n_head):
            top, left = _TOP + layer * pitch, _LEFT + head * pitch
            picture[top : top + cell + 2, left : left + cell + 2] = _SEPARATOR
            inside = np.s_[top + 1 : top + 1 + cell, left + 1 : left + 1 + cell]
            picture[inside] = _cell(snapshot.weights[layer, head], cell)
    return _label(picture, n_layer, n_head, pitch)


def save_png(path: str | os.PathLike[str], image: Picture) -> None:
    """Write an RGB picture as PNG; missing folders are created.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG")


def _cell(weights: packing.Weights, pixels: int) -> Picture:
    """(T, T) weights -> (pixels, pixels, 3) colours; above the diagonal is background."""
    T = len(weights)
    levels = packing.compand(weights).astype(np.int16)
    levels[np.triu_indices(T, 1)] = -1  # less than every level, so that the maximum below prefers any weight
    if T > pixels:
        # token i goes to pixel floor(i * pixels / T), as in paint.js; a pixel begins at the first such token
        starts = -(-np.arange(pixels) * T // pixels)
        levels = np.maximum.reduceat(np.maximum.reduceat(levels, starts, axis=0), starts, axis=1)
    else:
        nearest = np.arange(pixels) * T // pixels
        levels = levels[np.ix_(nearest, nearest)]
    colours = COLOURS[np.maximum(levels, 0)]
    colours[levels < 0] = _BACKGROUND
    return colours


def _label(picture: Picture, n_layer: int, n_head: int, pitch: int) -> Picture:
    """Write layer numbers on the left and head numbers on top, skipping some where they would touch."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default()
    every = -(-_LABEL_PIXELS // pitch)
    for layer in range(0, n_layer, every):
        middle = _TOP + layer * pitch + pitch // 2
        draw.text((_LEFT - 4, middle), f"layer {layer}", fill=_INK, font=font, anchor="rm")
    for head in range(0, n_head, every):
        text = f"head {head}" if pitch >= _FULL_LABEL_PIXELS else str(head)
        draw.text((_LEFT + head * pitch + pitch // 2, _TOP // 2), text, fill=_INK, font=font, anchor="mm")
    return np.array(image)
