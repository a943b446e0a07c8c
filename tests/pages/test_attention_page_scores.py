"""The scores of the heads on the attention page: on the maps, as a ranking, as curves over the steps."""

import dataclasses

import numpy as np
import pytest
from attention_pages import FIRST, HALF, HOSTILE, INDUCTION, PREVIOUS, SELF, UNIFORM, WORDS, history, known_heads

from minigpt.inspection.snapshot import Snapshot

ALL = (SELF, PREVIOUS, FIRST, UNIFORM, INDUCTION, HALF)
# six heads in their order, at each of three steps
INDUCTION_SCORES = [[0, 0.1, 0.2, 0.3, 0.1, 0.05], [0, 0.1, 0.2, 0.3, 0.6, 0.05], [0, 0.1, 0.2, 0.3, 0.9, np.nan]]
ABLATION = [[0.0] * 6, [-0.01, 0, 0, 0, 0.1, 0.00012], [-0.0214, 0, 0, 0, 1.25, 0.00012]]


def scored(snapshots=None):
    return [
        dataclasses.replace(
            snapshot,
            scores={
                "induction": np.reshape(INDUCTION_SCORES[k % 3], (2, 3)),
                "previous_token": np.reshape([0.1, 1, 0.1, 0.2, 0.1, 0.1], (2, 3)),
                "ablation": np.reshape(ABLATION[k % 3], (2, 3)),
            },
        )
        for k, snapshot in enumerate(snapshots or history())
    ]


@pytest.fixture
def view(show):
    view = show(scored())
    view.page.locator("#score").select_option(label="induction")
    view.select(SELF)
    return view


def values(view):
    return view.page.locator(".thumb .value").all_text_contents()


def shown_order(view):
    """The heads in reading order, as the eye finds them; left out are those that cannot be seen."""
    boxes = view.page.evaluate(
        "[...document.querySelectorAll('.thumb')].map((t, i) => [i, t.getBoundingClientRect()])"
        ".filter(([, b]) => b.width).map(([i, b]) => [Math.round(b.top), Math.round(b.left), i])"
    )
    return [i for _, _, i in sorted(boxes)]


def low(view):
    return view.page.evaluate(
        "[...document.querySelectorAll('.thumb')].flatMap((t, i) => t.classList.contains('low') ? [i] : [])"
    )


def dots(view, frame, value, low=0.0, high=0.9, n_frames=3):
    """Where a value stands on the chart."""
    view.page.locator("#curve").scroll_into_view_if_needed()
    box = view.page.locator("#curve").bounding_box()
    x = box["x"] + 40 + (box["width"] - 47) * frame / (n_frames - 1)
    return x, box["y"] + box["height"] - 7 - (box["height"] - 14) * (value - low) / (high - low)


def test_each_small_map_shows_the_chosen_score_at_the_current_step(view):
    assert view.state("score") == "induction"
    assert values(view) == ["0.000", "0.100", "0.200", "0.300", "0.900", "–"]
    view.page.locator("#slider").fill("1")
    assert values(view) == ["0.000", "0.100", "0.200", "0.300", "0.600", "0.050"]


def test_another_score_can_be_chosen_or_none(view):
    assert view.page.locator("#score option").all_text_contents() == [
        "Nothing",
        "induction",
        "previous token",
        "ablation",
    ]
    view.page.locator("#score").select_option(label="previous token")
    assert view.state("score") == "previous_token"
    assert values(view) == ["0.100", "1.000", "0.100", "0.200", "0.100", "0.100"]
    view.page.locator("#score").select_option(label="ablation")
    assert values(view) == ["-0.021", "0.000", "0.000", "0.000", "+1.250", "0.000"]
    view.page.locator("#score").select_option(label="Nothing")
    assert view.state("score") == ""
    assert values(view) == [""] * 6
    assert not view.page.locator("#curves").is_visible()
    assert view.page.locator("#order").is_disabled()


def test_a_page_without_scores_has_no_controls_for_them(show):
    view = show(history())
    for selector in ("#ranking", "#curves", "#scores", "#readout-ablation", "#summary", "#events"):
        assert not view.page.locator(selector).is_visible()


def test_the_grid_is_put_in_the_order_of_the_score(view):
    assert shown_order(view) == [0, 1, 2, 3, 4, 5]
    view.page.locator("#order").select_option("high")
    assert view.state("order") == "high"
    assert shown_order(view) == [4, 3, 2, 1, 0, 5]  # a head whose score is not known comes last
    assert not view.page.locator(".heading").first.is_visible()
    view.page.locator("#order").select_option("low")
    assert shown_order(view) == [0, 1, 2, 3, 4, 5]
    view.page.locator("#slider").fill("1")
    assert shown_order(view) == [0, 5, 1, 2, 3, 4]
    view.page.locator("#order").select_option("place")
    assert shown_order(view) == [0, 1, 2, 3, 4, 5]
    assert view.page.locator(".heading").first.is_visible()


def test_every_map_keeps_its_own_head_whatever_the_order(view):
    view.page.locator("#order").select_option("high")
    view.page.locator(".thumb[aria-label^='layer 0, head 2']").click()
    assert view.selected() == FIRST
    assert (view.pixels()[:, 0] == [253, 231, 37, 255]).all()


def test_arrows_follow_the_ranking(view):
    view.page.locator("#order").select_option("high")
    view.select(INDUCTION)  # first of the ranking
    for key, head in (
        ("ArrowLeft", INDUCTION),
        ("ArrowRight", UNIFORM),
        ("ArrowDown", SELF),
        ("ArrowDown", SELF),
        ("ArrowRight", HALF),
        ("ArrowUp", FIRST),
    ):
        view.page.keyboard.press(key)
        assert view.selected() == head, key
    assert "layer 0, head 2" in view.page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_a_minimum_dims_heads_in_their_places_and_leaves_them_out_of_a_ranking(view):
    view.page.locator("#minimum").fill("20")  # of the range 0 to 0.9
    assert float(view.state("minimum")) == pytest.approx(0.18)
    assert view.text("#minimum-value") == "0.180"
    assert low(view) == [0, 1, 5]
    assert shown_order(view) == [0, 1, 2, 3, 4, 5]
    assert "below the minimum" in view.page.locator(".thumb").nth(1).get_attribute("aria-label")
    view.page.locator("#order").select_option("high")
    assert shown_order(view) == [4, 3, 2]
    view.page.locator("#minimum").fill("100")
    assert shown_order(view) == [4]
    view.page.locator("#slider").fill("0")  # no head is that high yet
    assert shown_order(view) == []
    view.page.keyboard.press("ArrowRight")
    view.page.locator("#minimum").fill("0")
    assert view.state("minimum") == ""
    assert len(shown_order(view)) == 6


def test_with_the_selected_head_left_out_arrows_begin_at_the_ranking(view):
    view.page.locator("#order").select_option("high")
    view.page.locator("#minimum").fill("30")
    assert view.selected() == SELF
    assert view.page.locator(".thumb[tabindex='0']").get_attribute("aria-label").startswith("layer 1, head 1")
    view.page.locator("h1").click()
    view.page.keyboard.press("ArrowRight")
    assert view.selected() == INDUCTION


def test_another_score_takes_the_minimum_back(view):
    view.page.locator("#minimum").fill("50")
    view.page.locator("#score").select_option(label="ablation")
    assert low(view) == []
    assert view.page.locator("#minimum").input_value() == "0"


def test_the_controls_can_be_worked_by_keyboard(view):
    view.page.locator("#minimum").focus()
    view.page.keyboard.press("ArrowRight")
    assert float(view.state("minimum")) == pytest.approx(0.009)
    assert view.selected() == SELF
    view.page.locator("#order").focus()
    view.page.keyboard.press("ArrowDown")
    assert view.state("order") == "high"
    view.page.locator("#score").focus()
    view.page.keyboard.press("ArrowDown")
    assert view.state("score") == "previous_token"


def test_a_table_tells_all_scores_of_the_selected_head_and_the_readout_the_loss_without_it(view):
    view.select(INDUCTION)
    shown = view.page.locator("#head-scores td:nth-child(2)").all_text_contents()
    assert shown == ["0.900", "0.100", "+1.250"]
    assert view.text("#scores-title") == "Scores of layer 1, head 1, step 300"
    assert view.text("#readout-ablation").split() == ["loss", "without", "it", "(zero)", "+1.250", "nats"]
    view.page.locator("#slider").fill("1")
    assert view.text("#readout-loss") == "+0.100 nats"
    view.select(SELF)
    assert view.text("#readout-loss") == "-0.010 nats"


def test_the_kind_of_ablation_and_what_a_score_is_of_are_named(show):
    notes = {"ablation": "Here mean ablation, on 40 tokens."}
    view = show(scored(), ablation_kind="mean", n_measured=1040, notes=notes)
    view.select(INDUCTION)
    assert view.text("#readout-ablation").startswith("loss without it (mean)")
    assert view.page.locator("#head-scores th").all_text_contents()[-1] == "ablation (mean)"
    view.page.locator("#score").select_option(label="ablation (mean)")
    assert view.page.locator("#score").get_attribute("title").endswith(notes["ablation"])
    assert "Scores are of 1,040 tokens, of which 12 are shown." in view.text("#rounding")


def test_the_curve_marks_the_selected_head_and_hovering_names_head_value_and_step(view):
    assert view.text("#curve-note") == "layer 0, head 0: 0.000 at step 300"
    assert (view.text("#curve-low"), view.text("#curve-high")) == ("0.000", "0.900")
    for frame, value, said in [
        (2, 0.9, "layer 1, head 1: 0.900 at step 300"),
        (1, 0.62, "layer 1, head 1: 0.600 at step 200"),
        (0, 0.29, "layer 1, head 0: 0.300 at step 100"),
        (0.98, 0.052, "layer 1, head 2: 0.050 at step 200"),
        (2, 0.1, "layer 0, head 1: 0.100 at step 300"),
    ]:
        view.page.mouse.move(*dots(view, frame, value))
        assert view.text("#curve-note") == said
    view.page.mouse.move(1, 1)
    assert view.text("#curve-note") == "layer 0, head 0: 0.000 at step 300"


def test_the_curves_of_scores_that_are_only_noise_lie_flat(show):
    noise = [np.full((2, 3), 0.008 + 0.001 * k) for k in range(3)]
    view = show([dataclasses.replace(each, scores={"induction": n}) for each, n in zip(history(), noise, strict=True)])
    assert (view.text("#curve-low"), view.text("#curve-high")) == ("0.000", "0.100")


def test_between_two_steps_the_line_that_is_drawn_there_is_the_one_that_is_named(view):
    view.page.mouse.move(*dots(view, 1.4, 0.6 + 0.4 * 0.3))
    assert view.text("#curve-note") == "layer 1, head 1: 0.600 at step 200"


def test_clicking_a_curve_selects_its_head(view):
    view.page.mouse.click(*dots(view, 2, 0.3))
    assert view.selected() == UNIFORM
    said = "induction of layer 1, head 0: 0.300 at step 100, 0.300 at step 200, 0.300 at step 300"
    assert view.page.locator("#curve").get_attribute("aria-label") == said


def is_accent(view, frame, value):
    """Whether the line of the selected head passes a value on the chart (its edges are smoothed)."""
    x, y = dots(view, frame, value)
    box = view.page.locator("#curve").bounding_box()
    colour = view.pixels("#curve")[round(y - box["y"]), round(x - box["x"])].astype(int)
    return bool(np.abs(colour[:3] - [11, 98, 204]).max() <= 4 and colour[3] > 150)


def test_the_line_of_the_selected_head_stands_out_and_the_step_is_marked(view):
    assert not is_accent(view, 1.5, 0.75)
    view.select(INDUCTION)
    assert is_accent(view, 1.5, 0.75)
    x, _ = dots(view, 1, 0)
    column = round(x - view.page.locator("#curve").bounding_box()["x"])
    before = view.pixels("#curve")[:, column, 3]
    view.page.locator("#slider").fill("1")
    assert (view.pixels("#curve")[:, column, 3] > 0).sum() > (before > 0).sum() + 20


def test_a_single_step_has_scores_but_no_curve(show):
    view = show(scored(history(steps=(7,))))
    assert view.state("score") == "previous_token", "the largest pattern, where no head is needed"
    assert values(view)[3] == "0.200"
    assert not view.page.locator("#curves").is_visible()


def test_a_score_that_only_later_steps_have_is_a_gap_before_them(show):
    first, *later = history()
    view = show([first, *scored(later)])
    view.page.locator("#slider").fill("0")
    assert values(view) == ["–"] * 6
    assert not view.page.locator("#readout-ablation").is_visible()
    view.page.mouse.move(*dots(view, 0, 0.3))
    assert view.text("#curve-note").endswith("at step 100")
    view.page.locator("#minimum").fill("10")
    assert low(view) == [0, 1, 2, 3, 4, 5]


def test_labels_stand_on_the_heads_that_have_one_at_their_step(show):
    labels = [[[None] * 3, [None] * 3], [[None] * 3] * 2, [["copy", None, "first"], [None, "induction head", None]]]
    view = show(history(), labels=labels)
    assert view.page.locator(".kind").all_text_contents() == ["copy", "", "first", "", "induction head", ""]
    assert "induction head" in view.page.locator(".thumb").nth(4).get_attribute("aria-label")
    view.select(INDUCTION)
    assert view.text("#readout-label") == "induction head"
    view.page.locator("#slider").fill("0")
    assert view.page.locator(".kind").all_text_contents() == [""] * 6
    assert view.text("#readout-label") == ""


def test_labels_follow_their_snapshots_when_these_are_put_in_order(show):
    def named(name):
        return [[name] * 3] * 2

    view = show(history()[::-1], labels=[named("last"), named("middle"), named("first")])
    assert view.page.locator(".kind").first.text_content() == "last"
    view.page.locator("#slider").fill("0")
    assert view.page.locator(".kind").first.text_content() == "first"


def test_small_maps_have_shorter_numbers_that_fit_on_them(show):
    tiled = [
        dataclasses.replace(
            s,
            weights=np.tile(s.weights, (2, 2, 1, 1)),
            scores={name: np.tile(values, (2, 2)) for name, values in s.scores.items()},
        )
        for s in scored()
    ]
    view = show(tiled, width=500, height=420)
    view.page.locator("#score").select_option(label="ablation")
    assert values(view)[:3] == ["-0.02", "0.00", "0.00"]
    assert values(view)[-2:] == ["+1.25", "0.00"]
    view.page.locator("#score").select_option(label="induction")
    assert values(view)[-2:] == ["0.90", "–"]
    cut = "[...document.querySelectorAll('.thumb .value')].some(v => v.scrollWidth > v.clientWidth)"
    assert not view.page.evaluate(cut)


def test_maps_too_small_for_any_number_have_none_but_still_tell_it_to_a_reader(show):
    weights = np.tile(known_heads(12, 9), (1, 4, 1, 1))
    scores = {"induction": np.arange(24).reshape(2, 12) / 24}
    view = show([Snapshot(0, WORDS, weights, scores=scores)], width=500, height=420)
    assert not view.page.locator(".thumb .value").last.is_visible()
    assert view.page.locator(".thumb").last.get_attribute("aria-label") == "layer 1, head 11, induction 0.958"
    assert view.page.locator(".thumb").last.get_attribute("title") == "layer 1, head 11, induction 0.958"


@pytest.mark.parametrize("text", [*HOSTILE[:6], "__proto__", "constructor"])
def test_hostile_names_of_scores_and_labels_are_shown_as_text(show, text):
    snapshot = Snapshot(1, WORDS, known_heads(12, 9), scores={text: np.ones((2, 3))})
    view = show([snapshot, dataclasses.replace(snapshot, step=2)], labels=[[[text] * 3] * 2] * 2)
    shown = text.replace("_", " ")
    assert view.page.locator("#score option").nth(1).text_content() == shown
    assert view.page.locator("#head-scores bdi").text_content() == shown
    assert shown in view.text("#curve-title")
    assert view.page.locator(".kind").first.text_content() == text
    assert view.text("#readout-label") == text
    assert view.page.locator("img, #map b b").count() == 0
    assert view.state("score") == text


@pytest.mark.parametrize(("width", "height"), [(500, 420), (360, 700), (1200, 800)])
def test_scores_and_labels_never_scroll_sideways(show, width, height):
    labels = [[["a long name for a kind of head " * 4] * 3] * 2] * 3
    snapshots = [
        dataclasses.replace(s, scores={**s.scores, "relation: " + "x" * 200: np.zeros((2, 3))}) for s in scored()
    ]
    view = show(snapshots, width=width, height=height, labels=labels)
    for order in ("place", "high"):
        view.page.locator("#order").select_option(order)
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width
