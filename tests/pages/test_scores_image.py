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
    bright = np.argwhere((scores_image({"induction": score}) == COLOURS[255]).all(-1))
    dark = np.argwhere((scores_image({"induction": score}) == COLOURS[0]).all(-1))
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
