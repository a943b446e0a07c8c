"""What the attention page draws of the selected heads: token texts along the axes, lines, several heads in colours."""

import itertools

import pytest
from attention_pages import FIRST, HALF, HOSTILE, PREVIOUS, SELF, WORDS, history, known_heads

from minigpt.inspection.snapshot import Snapshot


def axis(view, name):
    return view.page.locator(f"#{name}-labels bdi").all_text_contents()


def lines(view):
    """(row at the left, row at the right, opacity) of each line."""
    found = view.page.evaluate(
        "[...document.querySelectorAll('#strands line')]"
        ".map(l => [+l.getAttribute('y1'), +l.getAttribute('y2'), +l.style.strokeOpacity, l.style.stroke])"
    )
    return [((y1 - 8) // 16, (y2 - 8) // 16, opacity, colour) for y1, y2, opacity, colour in found]


def test_token_texts_stand_along_both_axes_at_their_rows_and_columns(show):
    view = show(history())
    shown = [word.replace("\n", "↵").replace("\t", "→") for word in WORDS]
    assert sorted(axis(view, "row")) == sorted(axis(view, "column")) == sorted(shown)
    view.hover(9, 4)
    assert view.text("#row-labels .own") == shown[9]
    assert view.text("#column-labels .own") == shown[4]
    text, large = view.page.locator("#row-labels .own").bounding_box(), view.page.locator("#large").bounding_box()
    assert text["y"] + text["height"] / 2 == pytest.approx(large["y"] + 9.5 / 12 * large["height"], abs=1)
    text = view.page.locator("#column-labels .own").bounding_box()
    assert text["x"] + text["width"] / 2 == pytest.approx(large["x"] + 4.5 / 12 * large["width"], abs=1)


def test_where_not_all_texts_fit_they_keep_a_distance_and_that_of_the_pair_is_among_them(show):
    tokens = tuple(f"w{i}" for i in range(300))
    view = show([Snapshot(0, tokens, known_heads(300))])
    view.hover(201, 100)
    for name, own in (("row", "w201"), ("column", "w100")):
        places = view.page.evaluate(
            "([id, edge]) => [...document.getElementById(id).children].map(b => parseFloat(b.style[edge]))",
            [f"{name}-labels", "top" if name == "row" else "left"],
        )
        places.sort()
        side = view.page.locator("#large").bounding_box()["width"]
        assert min(b - a for a, b in itertools.pairwise(places)) / 100 * side >= 11.9
        assert view.text(f"#{name}-labels .own") == own
        assert 20 < len(places) < 300


def test_lines_connect_the_selected_token_with_what_it_attends_to_or_what_attends_to_it(show):
    view = show(history())
    view.select(HALF)
    view.page.get_by_label("Lines").check()
    assert view.state("picture") == "lines"
    assert not view.page.locator("#large").is_visible()
    view.page.locator("#left-tokens bdi").nth(9).click()
    assert (view.state("token"), view.state("direction")) == ("9", "from")
    drawn = {(left, right): opacity for left, right, opacity, _ in lines(view)}
    assert set(drawn) == {(9, 0), (9, 9)}
    assert drawn[9, 0] == pytest.approx(0.7**0.5, abs=0.01)
    view.page.locator("#right-tokens bdi").nth(9).click()
    assert (view.state("token"), view.state("direction")) == ("9", "to")
    assert [line[:2] for line in lines(view)] == [(9, 9)]
    assert view.text("#line-columns .own") == WORDS[9]
    view.page.locator("input[name=picture][value=map]").dispatch_event("click")
    assert view.page.locator("#large").is_visible()


def test_several_heads_are_drawn_in_colours_of_their_own(show):
    view = show(history())
    view.select(PREVIOUS)
    view.page.locator("#several").check()
    view.select(FIRST)
    assert view.state("overlaid") == "0.1 0.2"
    assert view.selected() == FIRST
    pixels = view.pixels()
    assert pixels[5, 4].tolist() == [0, 114, 178, 255], "the previous token: the first head's colour"
    assert pixels[5, 0].tolist() == [213, 94, 0, 255]
    assert pixels[5, 2, 3] == 0, "no weight of either head"
    assert pixels[1, 0, :3].tolist() == [106, 104, 89], "both: the mean"
    view.page.locator("#tokens span").nth(6).click()
    tint = "getComputedStyle(document.querySelectorAll('#tokens span')[{}]).backgroundColor"
    assert view.page.evaluate(tint.format(5)).startswith("rgba(0, 114, 178")
    assert view.page.evaluate(tint.format(0)).startswith("rgba(213, 94, 0")
    view.hover(6, 0)
    assert view.text("#readout-both") == "0.1 0.000, 0.2 1.000"
    view.page.locator("input[name=picture][value=lines]").dispatch_event("click")  # arrows still move heads
    assert {(right, colour) for _, right, _, colour in lines(view)} == {(5, "rgb(0, 114, 178)"), (0, "rgb(213, 94, 0)")}
    view.page.keyboard.press("ArrowLeft")
    assert view.selected() == PREVIOUS, "an arrow moves the head that was chosen last"
    view.page.locator("#several").uncheck()
    assert view.state("overlaid") == ""


def test_shift_and_a_click_adds_a_head_and_a_chip_takes_it_away(show):
    view = show(history(), other=history()[:1])
    view.select(SELF)
    view.page.locator(".thumb").nth(5).click(modifiers=["Shift"])
    assert view.state("overlaid") == "0.0 1.2"
    assert view.page.locator("#several").is_checked()
    assert view.page.locator(".thumb[aria-pressed=true]").count() == 2
    view.page.locator("#overlay button").first.click()
    assert view.state("overlaid") == ""
    assert view.selected() == HALF
    view.select(SELF)
    view.page.locator("#compare label").nth(2).click()
    assert view.state("overlaid") == "", "a difference has colours for its signs"
    assert view.page.locator("#several").is_disabled()


@pytest.mark.parametrize(("width", "height"), [(500, 420), (360, 700)])
def test_axes_lines_and_hostile_texts_never_scroll_sideways(show, width, height):
    tokens = (*HOSTILE[:6], "x" * 300, *WORDS[:5])
    view = show(history(tokens=tokens), width=width, height=height)
    assert set(HOSTILE[:6]) <= set(axis(view, "row"))
    for picture in ("map", "lines"):
        view.page.locator(f"input[name=picture][value={picture}]").dispatch_event("click")
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width
        assert view.page.locator("img").count() == 0
