import numpy as np
import pytest
from PIL import Image

from minigpt.inspection.snapshot import Snapshot
from minigpt.pages.colormap import COLOURS
from minigpt.pages.grid import MAX_PIXELS, grid_image, save_png


def snapshot_of(maps):
    """(n_layer, n_head, T, T) -> a snapshot of that many meaningless tokens."""
    return Snapshot(0, ("x",) * maps.shape[-1], maps)


def diagonal(n_layer, n_head, n_tokens):
    return np.tile(np.eye(n_tokens, dtype=np.float32), (n_layer, n_head, 1, 1))


def count(image, colour):
    return int((image == np.array(colour, dtype=np.uint8)).all(-1).sum())


def test_lightness_of_the_colour_map_only_rises():
    linear = (COLOURS / 255) ** 2.2
    lightness = linear @ [0.2126, 0.7152, 0.0722]
    # Neighbours differ by less than a byte resolves, so two of them can tie; three levels apart they never do.
    assert (lightness[3:] > lightness[:-3]).all()
    assert (np.diff(lightness) > -0.0005).all()
    assert COLOURS.shape == (256, 3)


def test_rows_are_layers_and_columns_are_heads():
    maps = np.zeros((2, 3, 4, 4), dtype=np.float32)
    maps[..., 0] = 1  # every head attends to the first token ...
    maps[1, 2] = np.eye(4)  # ... but the last one, which attends to itself
    image = grid_image(snapshot_of(maps), cell_pixels=40)
    assert image.dtype == np.uint8
    height, width, channels = image.shape
    assert channels == 3
    assert height < width
    yellow = (image == COLOURS[255]).all(-1)
    corner = yellow[-45:, -45:]  # the cell at the bottom right, its border and edge
    assert corner.sum() == 4 * 10 * 10  # four squares, ten pixels a token
    others = yellow.sum() - corner.sum()
    assert others == 5 * 40 * 10  # five heads, a column of one token's width each


def test_a_diagonal_of_one_token_survives_in_a_cell_much_smaller_than_the_text():
    image = grid_image(snapshot_of(diagonal(1, 1, 500)), cell_pixels=50)
    assert count(image, COLOURS[255]) == 50


def test_a_cell_larger_than_the_text_enlarges_every_token_alike():
    image = grid_image(snapshot_of(diagonal(1, 1, 4)), cell_pixels=80)
    assert count(image, COLOURS[255]) == 4 * 20 * 20


def test_colours_follow_the_square_root_of_the_weight():
    quarter = np.array([[[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.25, 0.25, 0.25, 0.25]]]])
    image = grid_image(snapshot_of(quarter), cell_pixels=4)
    assert count(image, COLOURS[128]) == 4
    assert count(image, COLOURS[255]) == 3
    assert count(image, COLOURS[0]) == 3


@pytest.mark.parametrize(("n_layer", "n_head"), [(1, 1), (6, 6), (80, 64), (3, 200)])
def test_the_picture_of_a_large_model_stays_bounded(n_layer, n_head):
    image = grid_image(snapshot_of(diagonal(n_layer, n_head, 8)), cell_pixels=96)
    assert max(image.shape) <= MAX_PIXELS


def test_the_default_cell_is_96_pixels():
    image = grid_image(snapshot_of(diagonal(6, 6, 96)))
    assert 6 * 96 < image.shape[0] < 6 * 96 + 60
    assert count(image, COLOURS[255]) == 36 * 96


def test_a_cell_without_pixels_is_refused():
    with pytest.raises(ValueError, match="cell_pixels must be 1 or more, got 0"):
        grid_image(snapshot_of(diagonal(1, 1, 4)), cell_pixels=0)


def test_a_picture_is_written_as_png(tmp_path):
    image = grid_image(snapshot_of(diagonal(2, 2, 4)))
    save_png(tmp_path / "new" / "grid.png", image)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "grid.png")), image)
