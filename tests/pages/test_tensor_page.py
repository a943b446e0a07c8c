"""Attention weights of a user's own in the attention page: any shape, sign and range, one text or two."""

import itertools

import numpy as np
import pytest
import torch
from attention_pages import HOSTILE

import minigpt
from minigpt import UserError
from minigpt.inspection import packing
from minigpt.pages.colormap import DIFFERENCE_COLOURS

WORDS = ["The", "cat", "sat", "down"]
GERMAN = ["Die", "Katze", "setzte", "sich", "hin"]
RANDOM = np.random.default_rng(0)


def readout_at(view, query, key, shape):
    """The weight that the page tells for a cell of a rectangular map."""
    view.page.locator("#large").scroll_into_view_if_needed()
    box = view.page.locator("#large").bounding_box()
    view.page.mouse.move(
        box["x"] + (key + 0.5) / shape[1] * box["width"], box["y"] + (query + 0.5) / shape[0] * box["height"]
    )
    return view.text("#readout-weight")


def test_cross_attention_has_the_tokens_of_both_texts_and_every_weight(open_view):
    weights = RANDOM.dirichlet(np.ones(5), size=(2, 3, 4))
    view = open_view(minigpt.show_attention(weights, WORDS, GERMAN, title="translation"))
    assert view.text("h1") == "translation"
    assert view.page.locator(".thumb").count() == 6
    view.page.locator(".thumb").nth(4).click()
    for query, key in itertools.product(range(4), range(5)):
        shown = float(readout_at(view, query, key, (4, 5)).strip("<"))
        assert shown == pytest.approx(weights[1, 1, query, key], abs=packing.MAX_ERROR + 6e-4)
        assert view.text("#readout-query") == f"\u201c{WORDS[query]}\u201d"
        assert view.text("#readout-key") == f"\u201c{GERMAN[key]}\u201d"
    assert view.pixels().shape[:2] == (4, 5)


def test_a_token_of_either_text_shows_the_weights_to_the_other(open_view):
    weights = np.zeros((4, 5))
    weights[2, 3], weights[1, 3] = 0.9, 0.4
    view = open_view(minigpt.show_attention(weights, WORDS, GERMAN))
    view.page.get_by_role("button", name="2: sat").click()
    assert (view.state("direction"), view.state("token")) == ("from", "2")
    assert view.ranking("one")[0] == (3, pytest.approx(0.9, abs=0.01))
    view.page.get_by_role("button", name="3: sich").click()
    assert (view.state("direction"), view.state("token")) == ("to", "3")
    assert view.page.locator("[name=direction][value=to]").is_checked()
    assert [token for token, _ in view.ranking("one")[:2]] == [2, 1]
    assert "sich" in view.text("#text-title")
    view.page.keyboard.press("]")
    assert view.state("token") == "4"
    view.page.locator("[name=direction][value=from]").check(force=True)
    assert view.state("token") == "3"  # there are four queries


def test_signed_values_are_white_at_zero_and_keep_sign_and_size(open_view):
    values = np.array([[0.0, -2.0], [8.0, 0.5]])
    view = open_view(minigpt.show_attention(values, ["a", "b"]))
    pixels = view.pixels()[..., :3]
    assert (pixels[0, 0] == DIFFERENCE_COLOURS[128]).all()
    assert (pixels[1, 0] == DIFFERENCE_COLOURS[255]).all()
    told = [float(readout_at(view, *cell, (2, 2))) for cell in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert told == pytest.approx([0, -2, 8, 0.5], abs=8 * packing.SIGNED_ERROR)
    assert told[0] == 0
    assert view.text("#ticks span:last-child") == "8"
    assert "blue is below" in view.text("#intro")


def test_masked_scores_are_blank_and_in_no_list(open_view):
    scores = RANDOM.normal(size=(1, 2, 4, 4))
    scores = np.ma.masked_array(scores, mask=np.zeros_like(scores))
    scores[..., 1, 0] = np.ma.masked  # as good as -inf
    view = open_view(minigpt.show_attention(scores, WORDS))
    alpha = view.pixels()[..., 3]
    assert alpha[1, 0] == 0
    assert "gradient" in view.page.evaluate("getComputedStyle(document.querySelector('.square')).backgroundImage")
    assert view.state("signed") == "true"
    assert np.count_nonzero(alpha) == 15
    assert readout_at(view, 1, 0, (4, 4)) == "masked"
    view.page.mouse.click(*view.cell(1, 1))
    assert sorted(token for token, _ in view.ranking("one")) == [1, 2, 3]


def test_unnormalised_weights_of_several_steps_keep_their_range(open_view):
    weights = [np.full((3, 3), 20.0), np.full((3, 3), 5.0)]
    view = open_view(minigpt.show_attention(weights, WORDS[:3], steps=np.array([200, 10])))
    assert view.state("step") == "200"
    assert float(view.text("#readout-weight")) == pytest.approx(20, abs=0.1)
    assert len(view.text("#readout-weight")) == 5, "as every number of the page: fewer decimals from 10 on"
    assert not view.page.locator("#all").is_visible(), "the mean of one head is that head"
    view.page.locator("#slider").fill("0")
    assert view.state("step") == "10"
    assert float(view.text("#readout-weight")) == pytest.approx(5, abs=0.1)


def test_causal_weights_of_a_tensor_are_drawn_as_a_triangle(open_view):
    weights = torch.softmax(torch.full((4, 4), -torch.inf).triu(1) + torch.zeros(4, 4), -1).bfloat16()
    view = open_view(minigpt.show_attention(weights.requires_grad_(), WORDS))
    np.testing.assert_array_equal(view.pixels()[..., 3], np.tril(np.full((4, 4), 255)))
    assert "earlier ones" in view.text("#intro")


def test_attentions_as_hugging_face_returns_them_lose_their_batch_axis(open_view):
    attentions = tuple(torch.rand(1, 2, 4, 4).softmax(-1) for _ in range(3))
    view = open_view(minigpt.show_attention(attentions, WORDS))
    assert view.page.locator(".thumb").count() == 6
    weight = attentions[2][0, 1, 3, 0].item()
    view.page.locator(".thumb").nth(5).click()
    assert float(readout_at(view, 3, 0, (4, 4))) == pytest.approx(weight, abs=packing.MAX_ERROR + 6e-4)


def test_hostile_texts_of_both_sides_are_shown_as_text(open_view):
    n = len(HOSTILE)
    view = open_view(
        minigpt.show_attention(np.eye(n), HOSTILE, HOSTILE[::-1], title="</title><script>alert(1)</script>")
    )
    assert HOSTILE[0] in view.text("#tokens")  # open_view checks that nothing ran or loaded


def test_a_narrow_window_shows_a_wide_map_without_sideways_scrolling(open_view):
    view = open_view(minigpt.show_attention(np.ones((2, 40)), WORDS[:2], ["wort"] * 40), 360, 700)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(
    ("weights", "tokens", "more", "said"),
    [
        (np.eye(4), WORDS[:3], {}, r"tokens: there are 3 for 4 rows"),
        (np.ones((4, 5)), WORDS, {}, r"tokens: there are 4 for 5 columns; give the texts of the columns as keys="),
        (np.ones((4, 5)), WORDS, {"keys": WORDS}, r"keys: there are 4 for 5 columns"),
        (np.ones(4), WORDS, {}, r"weights: has shape \(4,\); give \(T, S\)"),
        (np.ones((2, 2, 2, 4, 4)), WORDS, {}, r"five axes.*one text of a batch.*steps="),
        (np.ones((0, 4, 4)), WORDS, {}, r"none of them 0"),
        ([[1, 2], [3]], WORDS[:2], {}, r"weights: not one array of numbers"),
        (
            np.array([[1, np.nan], [1, 1]]),
            WORDS[:2],
            {},
            r"1 values are NaN or \+inf.*layer 0, head 0, row 0, column 1",
        ),
        (np.array([[1, 1], [np.inf, 1]]), WORDS[:2], {}, r"row 1, column 0; set them to 0, or to -inf"),
        (np.eye(2) * 1j, WORDS[:2], {}, r"its values are of type complex128"),
        ([["1", "2"], ["3", "4"]], WORDS[:2], {}, r"its values are of type <U1"),
        (torch.eye(2, device="meta"), WORDS[:2], {}, r"weights: not one array of numbers \(Cannot copy out of meta"),
        (np.eye(2), None, {}, r"tokens=None: is not a list"),
        (np.eye(2), WORDS[:2], {"keys": 2}, r"keys=2: is not a list"),
        (np.eye(2), WORDS[:2], {"title": 5}, r"title=5: is not a text"),
        ([np.eye(2)], WORDS[:2], {"steps": 1}, r"steps=1: is not a list"),
        ([np.eye(2)], WORDS[:2], {"steps": [True]}, r"steps=\[True\]: give a whole number"),
        (None, WORDS[:2], {"steps": [1]}, r"weights=None: is not a list"),
        (np.eye(4), "abcd", {}, r"tokens: is one text; give a list"),
        (np.eye(2), [5, 6], {}, r"tokens: 5 is not a text; decode token ids first"),
        ([np.eye(2)], ["a", "b"], {"steps": [1, 2]}, r"weights: there are 1 for 2 steps"),
        ([np.eye(2)] * 2, ["a", "b"], {"steps": [1, 1]}, r"steps=\[1, 1\]: give each step once"),
        ([np.eye(2)], ["a", "b"], {"steps": [-1]}, r"steps=\[-1\]: give a whole number"),
        ([np.eye(2), np.eye(3)], ["a", "b"], {"steps": [1, 2]}, r"step 1 has shape .* and step 2 .*the same shape"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_a_remedy(weights, tokens, more, said):
    with pytest.raises(UserError, match=said):
        minigpt.show_attention(weights, tokens, **more)
