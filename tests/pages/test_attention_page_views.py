"""What else the maps of the attention page can show: weights times values, and the difference of two runs."""

import dataclasses

import numpy as np
import pytest
from attention_pages import FIRST, HALF, INDUCTION, PREVIOUS, SELF, UNIFORM, WORDS, history, known_heads

from minigpt.inspection.snapshot import Snapshot
from minigpt.pages.colormap import DIFFERENCE_COLOURS

LENGTHS = np.broadcast_to(np.array([0.05, *np.linspace(1, 2, 10), 0.0]), (2, 3, 12))


def with_norms(snapshots=None):
    return [dataclasses.replace(snapshot, value_norms=LENGTHS) for snapshot in snapshots or history()]


def value_weighted(weights):
    products = weights * LENGTHS[:, :, None, :]
    sums = products.sum(-1, keepdims=True)
    return np.divide(products, sums, out=np.zeros_like(products), where=sums > 0)


def test_weights_times_values_are_shown_with_rows_that_add_up_to_one(show):
    view = show(with_norms())
    view.page.locator("#values").check()
    assert view.state("values") == "true"
    expected = value_weighted(known_heads(12, 9))
    for head, query, key in [
        (HALF, 9, 0),
        (HALF, 9, 9),
        (UNIFORM, 7, 2),
        (UNIFORM, 7, 0),
        (FIRST, 5, 0),
        (SELF, 11, 11),
    ]:
        view.select(head)
        view.hover(query, key)
        assert view.weight() == pytest.approx(expected[(*head, query, key)], abs=0.01), (head, query, key)
    assert "value" in view.text("#readout-means")
    view.page.locator("#values").uncheck()
    view.select(HALF)
    view.hover(9, 0)
    assert view.weight() == pytest.approx(0.7, abs=0.01)


def test_maps_text_and_lists_follow_the_values(show):
    view = show(with_norms())
    view.select(HALF)
    view.page.locator("#tokens span").nth(9).click()
    assert view.ranking("one")[0] == (0, pytest.approx(0.7, abs=0.01))
    before = view.pixels()
    view.page.locator("#values").check()
    expected = value_weighted(known_heads(12, 9))
    share = expected[(*HALF, 9, 9)]
    assert view.ranking("one")[:2] == [(9, pytest.approx(share, abs=0.01)), (0, pytest.approx(1 - share, abs=0.01))]
    mean = expected[:, :, 9].mean((0, 1))
    listed = dict(view.ranking("all"))
    assert all(weight == pytest.approx(mean[token], abs=0.01) for token, weight in listed.items())
    assert view.shares()[9] == pytest.approx(0.85 * np.sqrt(share), abs=0.01)
    assert (view.pixels() != before).any()


def test_at_an_earlier_step_the_values_of_that_step_are_used(show):
    first, *rest = with_norms()
    flat = dataclasses.replace(first, value_norms=np.ones((2, 3, 12)))
    view = show([flat, *rest])
    view.page.locator("#values").check()
    view.page.locator("#slider").fill("0")
    view.hover(7, 0)
    assert view.weight() == pytest.approx(1 / 8, abs=0.01)


def test_values_are_offered_only_if_every_snapshot_has_them(show):
    first, *rest = with_norms()
    assert show([first, *rest]).page.locator("#values").is_visible()
    assert not show([dataclasses.replace(first, value_norms=None), *rest]).page.locator("#values").is_visible()
    assert not show([first, *rest], other=history()).page.locator("#values").is_visible()
    assert not show(history()).page.locator("#values").is_visible()


def mirrored():
    """A second run, at other steps: the heads of each layer in the opposite order, once formed."""
    return [dataclasses.replace(s, step=s.step + 20, weights=s.weights[:, ::-1]) for s in history()[1:]]


def choose(view, name):
    view.page.locator("#compare label").nth(("a", "b", "diff").index(name)).click()
    assert view.state("view") == name


def test_a_page_of_one_run_offers_no_comparison(show):
    assert not show(history()).page.locator("#compare").is_visible()


def test_either_run_can_be_shown_at_the_nearest_step(show):
    view = show(history(), other=mirrored())
    a, b = history(), mirrored()
    for frame, nearest in ((0, 0), (1, 0), (2, 1)):
        view.page.locator("#slider").fill(str(frame))
        assert view.state("otherStep") == str(b[nearest].step)
        assert view.text("#other-step") == f"B: step {b[nearest].step}"
        for name, snapshot in (("a", a[frame]), ("b", b[nearest])):
            choose(view, name)
            view.select(FIRST)
            view.hover(6, 6)
            assert view.weight() == pytest.approx(snapshot.weights[(*FIRST, 6, 6)], abs=0.01)


def test_the_difference_is_told_with_its_sign_and_both_weights(show):
    view = show(history(), other=mirrored())
    choose(view, "diff")
    for head, query, key, a, b in [
        (FIRST, 6, 0, 1, 0),
        (FIRST, 6, 6, 0, 1),
        (UNIFORM, 7, 7, 1 / 8, 0.3),
        (HALF, 9, 0, 0.7, 0.1),
        (PREVIOUS, 4, 3, 1, 1),
    ]:
        view.select(head)
        view.hover(query, key)
        assert view.weight() == pytest.approx(a - b, abs=0.01), (head, query, key)
        said = view.text("#readout-both").replace(",", "").split()
        assert (said[0], said[2]) == ("A", "B")
        assert [float(said[1]), float(said[3])] == pytest.approx([a, b], abs=0.01)
    assert view.text("#readout-weight") == "0.000"
    choose(view, "a")
    assert view.text("#readout-both") == ""


def test_each_cell_of_a_difference_has_the_colour_of_its_sign_and_size(show):
    view = show(history(), other=mirrored())
    choose(view, "diff")
    view.select(HALF)
    change = known_heads(12, 9)[HALF] - known_heads(12, 9)[UNIFORM]
    places = 128 + np.sign(change) * np.rint(127 * np.sqrt(np.abs(change)))
    rows, columns = np.tril_indices(12)
    shown = view.pixels()[rows, columns, :3].astype(int)
    near = [
        np.abs(shown - DIFFERENCE_COLOURS[(places[rows, columns] + k).clip(0, 255).astype(int)]) for k in (-3, 0, 3)
    ]
    assert (np.min([x.sum(-1) for x in near], axis=0) <= 12).all()
    view.select(PREVIOUS)  # the same in both runs
    assert (view.pixels()[rows, columns, :3] == DIFFERENCE_COLOURS[128]).all()


def test_the_colours_of_differences_are_white_at_none_and_darker_with_size_blue_for_less_and_red_for_more():
    assert DIFFERENCE_COLOURS[128].tolist() == [255, 255, 255]
    darkness = 255.0 - DIFFERENCE_COLOURS[1:].mean(axis=1)
    assert (np.diff(darkness[127:]) > 0).all()
    assert (np.diff(darkness[:128]) < 0).all()
    assert DIFFERENCE_COLOURS[30, 2] > DIFFERENCE_COLOURS[30, 0]
    assert DIFFERENCE_COLOURS[225, 0] > DIFFERENCE_COLOURS[225, 2]


def test_every_scale_colours_differences_and_its_bar_reads_from_minus_one_to_one(show):
    view = show(history(), other=mirrored())
    choose(view, "diff")
    assert view.page.locator("#bar-note").is_visible()
    view.select(UNIFORM)
    cells = {}
    for scale in ("sqrt", "linear", "log", "row"):
        view.page.locator("#scale").select_option(scale)
        ticks = [float(tick) for tick in view.page.locator("#ticks span").all_text_contents()]
        assert (ticks[0], ticks[len(ticks) // 2], ticks[-1]) == (-1, 0, 1)
        assert ticks == sorted(ticks)
        places = view.page.evaluate("[...document.querySelectorAll('#ticks span')].map(s => parseFloat(s.style.left))")
        assert places == sorted(places)
        assert (places[len(places) // 2], places[-1]) == (pytest.approx(50.2, abs=0.1), 100)
        picture = view.pixels()[..., :3].astype(int)
        cells[scale] = picture[7, 7].tolist()
        assert picture[7, 7, 2] > picture[7, 7, 0], "more weight in B: blue"
        assert picture[7, 3, 0] > picture[7, 3, 2], "more weight in A: red"
    assert len(set(map(tuple, cells.values()))) == 4
    choose(view, "b")
    assert not view.page.locator("#bar-note").is_visible()
    assert view.page.locator("#ticks span").first.text_content() == "0"


def test_text_and_lists_tell_more_from_less_without_colour(show):
    view = show(history(), other=mirrored())
    view.select(FIRST)
    view.page.locator("#tokens span").nth(6).click()
    choose(view, "diff")
    assert view.shares()[0] == view.shares()[6] == pytest.approx(0.85, abs=0.01)
    less = view.page.evaluate("[...document.querySelectorAll('#tokens .less')].map(s => +s.dataset.token)")
    assert less == [6]
    pattern = "getComputedStyle(document.querySelectorAll('#tokens span')[{}]).backgroundImage"
    assert "repeating-linear-gradient" in view.page.evaluate(pattern.format(6))
    assert view.page.evaluate(pattern.format(0)) == "none"
    assert sorted(view.ranking("one")[:2]) == [(0, pytest.approx(1, abs=0.01)), (6, pytest.approx(-1, abs=0.01))]
    assert "A − B" in view.text("#rank-title")
    assert "A − B" in view.text("#text-title")
    choose(view, "a")
    assert view.page.locator(".less").count() == 0


def test_without_a_pointer_the_readout_tells_the_largest_difference_be_it_more_or_less(show):
    view = show(history(), other=mirrored())
    choose(view, "diff")
    view.select(INDUCTION)
    assert view.weight() == pytest.approx(0, abs=0.01)
    view.select(HALF)
    view.page.mouse.move(1, 1)
    assert (view.text("#readout-column"), view.weight()) == ("#0", pytest.approx(0.7 - 1 / 12, abs=0.01))


def test_values_and_differences_go_together(show):
    view = show(with_norms(), other=with_norms(mirrored()))
    choose(view, "diff")
    view.page.locator("#values").check()
    view.select(HALF)
    view.hover(9, 0)
    a, b = (value_weighted(s.weights)[(*HALF, 9, 0)] for s in (history()[-1], mirrored()[-1]))
    assert view.weight() == pytest.approx(a - b, abs=0.01)


def test_scores_are_those_of_the_run_that_is_shown_and_labels_stay_with_the_first(show):
    def scored(snapshots, shift):
        grid = np.arange(6).reshape(2, 3) / 10
        return [dataclasses.replace(s, scores={"induction": grid + shift, "only": grid}) for s in snapshots]

    other = [dataclasses.replace(s, scores={"induction": s.scores["induction"]}) for s in scored(mirrored(), 0.25)]
    view = show(scored(history(), 0), other=other, labels=[[["copy", None, None], [None] * 3]] * 3)
    shown = view.page.locator(".thumb .value")
    assert (shown.nth(5).text_content(), view.page.locator(".kind").first.text_content()) == ("0.500", "copy")
    choose(view, "b")
    assert (shown.nth(5).text_content(), view.page.locator(".kind").first.text_content()) == ("0.750", "")
    choose(view, "diff")
    assert (shown.nth(5).text_content(), view.page.locator(".kind").first.text_content()) == ("-0.250", "copy")
    view.page.locator("#score").select_option(label="only")
    assert shown.nth(5).text_content() == "–"
    assert view.text("#curve-note") == "only: not measured"


def test_the_runs_can_be_switched_by_keyboard(show):
    view = show(history(), other=mirrored())
    view.page.locator("input[name=view]").first.focus()
    view.page.keyboard.press("ArrowRight")
    assert view.state("view") == "b"
    view.page.keyboard.press("ArrowRight")
    assert view.state("view") == "diff"
    assert view.selected() == (0, 0)


def test_a_difference_of_one_step_each_works(show):
    one = Snapshot(5, WORDS, known_heads(12, 9))
    view = show([one], other=[dataclasses.replace(one, step=900)])
    choose(view, "diff")
    assert view.weight() == 0
    assert view.text("#other-step") == "A: step 5, B: step 900"


@pytest.mark.parametrize(("width", "height"), [(500, 420), (360, 700), (1200, 800)])
def test_comparisons_never_scroll_sideways_and_the_map_stays_in_sight(show, width, height):
    view = show(with_norms(), other=with_norms(mirrored()), width=width, height=height)
    choose(view, "diff")
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    if width > 440:
        box = view.page.locator("#large").bounding_box()
        assert box["y"] + box["height"] <= height
