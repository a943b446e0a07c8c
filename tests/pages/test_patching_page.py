"""Heat maps of patches in a real browser: colours, tooltips, tokens on the axis, and hostile tokens that stay text."""

from typing import Any

import pytest
import torch
from attention_pages import HOSTILE, TITLE

from minigpt.pages.colormap import DIVERGING_COLOURS
from minigpt.pages.documents import Page
from minigpt.pages.patching import HeatMap, render_patching

CLEAN = ("Once", " upon", "\u2423a", "\u21b5", "B")
EFFECTS = torch.tensor([[0.0, 1.0, -0.5, 0.25, 0.0], [0.5, torch.nan, 0.0, 0.0, 2.0]])


def page_of(clean: tuple[str, ...] = CLEAN, corrupted: tuple[str, ...] = (*CLEAN[:1], " under", *CLEAN[2:])) -> Page:
    positions = [f"{i} \u201c{token}\u201d" for i, token in enumerate(clean)]
    by_position = HeatMap("stream", "A note.", ("layer", "position"), ["0", "1"], positions, EFFECTS, 3 * EFFECTS)
    small = torch.tensor([[0.1, -0.2], [0.0, 0.05]])
    by_head = HeatMap("heads", "Another.", ("layer", "head"), ["0", "1"], ["0", "1"], small, 3 * small)
    return render_patching(
        [by_position, by_head],
        title=TITLE,
        metric="logit difference",
        prompts=(clean, corrupted),
        ends=(3.0, 0.0),
        position=len(clean) - 1,
        facts={"method": "activation patching"},
    )


@pytest.fixture
def show(open_view: Any) -> Any:
    """show(page) opens it."""
    return open_view


def test_zero_is_white_and_colours_of_either_sign_get_stronger_away_from_it() -> None:
    assert DIVERGING_COLOURS[127].tolist() == [255, 255, 255]
    darkness = 255.0 - DIVERGING_COLOURS.mean(axis=1)
    assert (darkness[:127] >= darkness[1:128]).all()
    assert (darkness[128:] >= darkness[127:-1]).all()
    assert DIVERGING_COLOURS[0, 2] > DIVERGING_COLOURS[0, 0], "negative effects are blue"
    assert DIVERGING_COLOURS[254, 0] > DIVERGING_COLOURS[254, 2], "positive ones are red"


def test_each_cell_has_the_colour_of_its_effect_on_one_scale_or_on_that_of_its_map(show: Any) -> None:
    view = show(page_of())
    stream, heads = (f"#maps section:nth-child({number}) canvas" for number in (1, 2))

    def colour(effect: float, limit: float) -> list[int]:
        return [*DIVERGING_COLOURS[127 + round(127 * effect / limit)].tolist(), 255]

    pixels = view.pixels(stream)
    assert pixels.shape == (2, 5, 4)
    assert pixels[0, 0].tolist() == [255, 255, 255, 255]
    assert pixels[1, 1, 3] == 0, "no such patch"
    assert pixels[0, 2].tolist() == colour(-0.5, 2.0)
    assert pixels[1, 4].tolist() == colour(2.0, 2.0)
    assert view.pixels(heads)[0, 1].tolist() == colour(-0.2, 2.0)
    view.page.locator("input[value=own]").check(force=True)
    assert view.pixels(heads)[0, 1].tolist() == colour(-0.2, 0.2)
    assert view.pixels(stream)[0, 2].tolist() == colour(-0.5, 2.0)


def test_the_pointer_and_the_arrows_tell_what_a_cell_is(show: Any) -> None:
    view = show(page_of())
    box = view.page.locator("#maps canvas").nth(0).bounding_box()
    view.page.mouse.move(box["x"] + 1.5 / 5 * box["width"], box["y"] + 0.25 * box["height"])
    tip = "layer 0, position 1 \u201c upon\u201d, corrupted \u201c under\u201d\neffect 1.000, logit difference 3.000"
    assert view.text("#tip") == tip
    assert view.page.locator("#tip").is_visible()
    view.page.mouse.move(box["x"] + 1.5 / 5 * box["width"], box["y"] + 0.75 * box["height"])
    assert view.text("#tip").endswith("no such patch")
    view.page.mouse.move(1, 1)
    assert not view.page.locator("#tip").is_visible()
    heads = view.page.locator("#maps canvas").nth(1)
    heads.focus()
    for key in ("ArrowDown", "ArrowRight"):
        view.page.keyboard.press(key)
    assert view.text("#readout") == "heads, head 0.1: effect \u22120.200, logit difference \u22120.600"
    assert (view.state("map"), view.state("row"), view.state("column")) == ("1", "0", "1")


def test_the_tokens_of_both_prompts_stand_above_and_at_the_axis_and_those_that_differ_are_marked(show: Any) -> None:
    view = show(page_of())
    assert view.text("h1") == TITLE
    assert view.page.locator("#clean .token").all_text_contents() == list(CLEAN)
    assert view.page.locator("#corrupted .differs").all_text_contents() == [" under"]
    assert "1 token differing" in " ".join(view.text("header").split())
    assert view.page.locator("#clean .read").all_text_contents() == ["B"]
    axis = view.page.locator(".columns.upright span")
    assert axis.all_text_contents() == [CLEAN[0], " upon |  under", *CLEAN[2:]]
    cells, canvas = axis.nth(4).bounding_box(), view.page.locator("#maps canvas").nth(0).bounding_box()
    assert cells["x"] + cells["width"] == pytest.approx(canvas["x"] + canvas["width"], abs=1), "under its column"


def test_hostile_tokens_and_titles_stay_text(show: Any) -> None:
    view = show(page_of(HOSTILE[:5], (HOSTILE[5], *HOSTILE[1:5])))
    assert view.page.locator("#clean .token").all_text_contents() == list(HOSTILE[:5])
    assert view.page.locator("img, b b").count() == 0
    box = view.page.locator("#maps canvas").nth(0).bounding_box()
    view.page.mouse.move(box["x"] + 2, box["y"] + 2)
    assert HOSTILE[0] in view.text("#tip")


def test_a_narrow_window_scrolls_a_wide_map_and_not_the_page(show: Any) -> None:
    tokens = tuple(f"word{i}" for i in range(60))
    effects = torch.linspace(-1, 1, 120).view(2, 60)
    positions = [f"{i} {token}" for i, token in enumerate(tokens)]
    wide = HeatMap("stream", "", ("layer", "position"), ["0", "1"], positions, effects, effects)
    page = render_patching(
        [wide], title="t", metric="logit", prompts=(tokens, tokens), ends=(1.0, 0.0), position=59, facts={}
    )
    view = show(page, width=360, height=640)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert view.page.evaluate("(f => f.scrollWidth > f.clientWidth)(document.querySelector('.frame'))")
