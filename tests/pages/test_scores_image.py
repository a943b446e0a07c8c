"""The picture of all scores: every head is a cell of its colour, whatever the model's size."""

import numpy as np
import pytest

from minigpt.pages.colormap import COLOURS
from minigpt.pages.scores_image import MOST_PIXELS, SHOWN, scores_image


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0, 3.0])
def test_a_score_has_its_colour(value: float) -> None:
    picture = scores_image({"induction": np.full((2, 3), value)})
    colour = COLOURS[round(255 * min(value, 1))]
    assert (picture == colour).all(-1).sum() > 2 * 3 * 20 * 20


def test_layers_are_rows_and_heads_are_columns() -> None:
    score = np.zeros((4, 6))
    score[3, 0] = 1.0
    picture = scores_image({"induction": score})[24:]  # below the colour bar
    bright, dark = (np.argwhere((picture == COLOURS[level]).all(-1)) for level in (255, 0))
    assert bright[:, 0].min() > dark[:, 0].mean()
    assert bright[:, 1].max() < dark[:, 1].mean()


def test_a_score_without_a_value_is_grey() -> None:
    picture = scores_image({"entropy": np.array([[np.nan, 0.5]]), "induction": np.full((1, 2), np.nan)})
    assert (picture == (225, 229, 234)).all(-1).sum() > 3 * 20 * 20


@pytest.mark.parametrize("shape", [(1, 1), (12, 12), (48, 25), (3, 128)], ids=str)
def test_the_picture_stays_small_and_has_a_cell_for_every_head(shape: tuple[int, int]) -> None:
    numbers = np.random.default_rng(0)
    picture = scores_image({name: numbers.random(shape) for name in SHOWN})
    assert picture.dtype == np.uint8
    assert max(picture.shape) < MOST_PIXELS


def test_unknown_scores_alone_make_no_picture() -> None:
    with pytest.raises(ValueError, match="none of induction"):
        scores_image({"mean_distance": np.ones((1, 1))})


@pytest.mark.parametrize("shape", [(2, 3), (12, 12), (30, 4)], ids=str)
def test_the_axes_have_numbers_and_the_colour_bar_its_range(shape: tuple[int, int]) -> None:
    """Scores without values leave only words, numbers and the colour bar."""
    picture = scores_image({"induction": np.full(shape, np.nan)}).astype(int)
    ink = (np.abs(picture - np.array([89, 99, 110])).max(-1) < 60) | (picture.max(-1) < 90)
    cells = np.argwhere((picture == (225, 229, 234)).all(-1))
    (top, left), (bottom, right) = cells.min(0), cells.max(0)
    assert ink[top:bottom, :left].any(), "layer numbers"
    assert ink[top - 14 : top, left:right].any(), "head numbers"
    bar = np.unique(picture[:24].reshape(-1, 3), axis=0)
    assert all((bar == COLOURS[level]).all(-1).any() for level in (0, 255))
    assert ink[top + (bottom - top) * 3 // 4 : bottom, :left].any(), "the axis reaches the last layers"
