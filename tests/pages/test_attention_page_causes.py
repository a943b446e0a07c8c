"""Causes on the attention page: logit lens, parts of the loss, and the loss without each head, of a token."""

import dataclasses

import numpy as np
import pytest
from attention_pages import HALF, HOSTILE, INDUCTION, UNIFORM, WORDS, Relation, history

from minigpt.inspection.causes import Causes
from minigpt.pages.attention import render_page

T = len(WORDS)
HEADS = [(layer, head) for layer in range(2) for head in range(3)]
COMPONENTS = ("embedding", *(f"{layer}.{head}" for layer, head in HEADS), "mlp0", "mlp1", "final_norm bias")


def made_causes(**changes):
    """Causes whose every number is known: token t's targets, and effects that grow with head and token."""
    places = np.arange(T)
    attribution = np.zeros((len(COMPONENTS), T), dtype=np.float32)
    attribution[1:7] = -0.1 * np.arange(1, 7)[:, None] * (places + 1)
    attribution[0] = 0.5
    ablation = (np.arange(6)[:, None] * 0.01 - 0.02) * (places + 1)
    entropy = np.full(T, 2.0)
    made = Causes(
        targets=(*WORDS[1:], "</bdi>next"),
        is_open=False,
        losses=(entropy + attribution.sum(0)).astype(np.float32),
        best=(tuple(WORDS), tuple(WORDS[::-1]), (*WORDS[1:], "</bdi>next")),
        best_probabilities=np.broadcast_to([[0.3], [0.5], [0.9]], (3, T)).astype(np.float32),
        target_probabilities=np.broadcast_to([[0.001], [0.25], [0.9]], (3, T)).astype(np.float32),
        components=COMPONENTS,
        attribution=attribution,
        entropy=entropy.astype(np.float32),
        ablation=ablation.reshape(2, 3, T).astype(np.float32),
    )
    return dataclasses.replace(made, **changes)


def open_panel(view, name):
    view.page.locator(f"#panels input[value={name}]").dispatch_event("click")
    assert view.state("panel") == name


def lines(view):
    """(text, value) of each line of the list."""
    found = view.page.evaluate(
        "[...document.querySelectorAll('#causes-list li')].map(li => [...li.children].map(c => c.textContent))"
    )
    return [(what.strip(), value) for what, value in found]


@pytest.fixture
def view(show):
    *earlier, last = history()
    last = dataclasses.replace(last, next_tokens=tuple((("x", 0.5),) for _ in WORDS))
    return show([*earlier, last], causes=[made_causes()])


def test_without_scores_and_causes_there_are_only_the_keys(show):
    view = show(history())
    assert not view.page.locator("#panels").is_visible()
    assert view.page.locator("#keys").is_visible()


def test_tabs_without_numbers_say_which_command_makes_them(show):
    view = show([dataclasses.replace(history()[-1], scores={"induction": np.ones((2, 3))})])
    open_panel(view, "lens")
    assert view.text("#causes-note code") == "minigpt inspect RUN"
    assert lines(view) == []
    open_panel(view, "patching")
    assert view.text("#causes-note code").startswith("minigpt patch RUN --clean")


def test_the_lens_lists_the_likeliest_token_of_each_layer_and_the_probability_of_what_comes_next(view):
    view.page.locator("#tokens span").nth(6).click()
    open_panel(view, "lens")
    assert not view.page.locator("#keys").is_visible()
    assert "Predicting “ ran” after “ fox”" in view.text("#causes-title")
    assert view.text("#causes-title").endswith("at step 300")
    assert lines(view) == [
        ("embedding “ fox” 0.300", "0.001"),
        ("layer 0 “→The” 0.500", "0.250"),
        ("layer 1 “ ran” 0.900", "0.900"),
    ]
    assert view.page.locator("#causes-list .hit").all_text_contents() == ["“ ran”"]


def test_the_attribution_lists_the_parts_of_the_loss_and_their_sum(view):
    view.page.locator("#tokens span").nth(1).click()
    view.page.locator("#why").click()
    assert view.page.evaluate("document.activeElement.value") == "attribution"
    assert lines(view)[:3] == [
        ("layer 1, head 2", "-1.200"),
        ("layer 1, head 1", "-1.000"),
        ("layer 1, head 0", "-0.800"),
    ]
    assert ("embedding", "+0.500") in lines(view)
    assert len(lines(view)) == len(COMPONENTS)
    assert "loss -1.700" in view.text("#causes-title")
    assert "2.000, and all parts, -3.700, add up to the loss" in view.text("#causes-note")


def test_the_ablation_lists_the_loss_of_this_token_without_each_head(view):
    view.page.locator("#tokens span").nth(9).click()
    open_panel(view, "ablation")
    assert lines(view) == [
        ("layer 1, head 2", "+0.300"),
        ("layer 0, head 0", "-0.200"),
        ("layer 1, head 1", "+0.200"),
        ("layer 0, head 1", "-0.100"),
        ("layer 1, head 0", "+0.100"),
        ("layer 0, head 2", "0.000"),
    ]
    view.page.locator("#tokens span").nth(4).click()
    assert lines(view)[0] == ("layer 1, head 2", "+0.150")


@pytest.mark.parametrize("panel", ["attribution", "ablation"])
def test_clicking_a_head_in_a_list_selects_it_and_marks_its_line(view, panel):
    open_panel(view, panel)
    view.page.locator("#causes-list li", has_text="layer 1, head 1").click()
    assert view.selected() == INDUCTION
    assert "layer 1, head 1" in view.text("#causes-list [aria-current]")
    view.page.locator("#causes-list .head").first.focus()
    view.page.keyboard.press("Enter")
    assert view.selected() == HALF
    assert view.page.evaluate("document.activeElement.textContent") == "layer 1, head 2"


def test_the_list_follows_token_head_and_panel_while_the_step_stays_named(view):
    open_panel(view, "ablation")
    view.page.keyboard.press("[")
    assert f"after “{WORDS[T - 2]}”" in view.text("#causes-title")
    view.select(UNIFORM)
    assert "layer 1, head 0" in view.text("#causes-list [aria-current]")
    view.page.locator("#slider").fill("0")
    assert "at step 300" in view.text("#causes-title")
    open_panel(view, "keys")
    assert view.page.locator("#keys").is_visible()


def test_in_a_long_list_the_selected_head_is_always_there_and_the_rest_is_summed(show):
    wide = [dataclasses.replace(each, weights=np.tile(each.weights, (1, 8, 1, 1))) for each in history()]
    names = tuple(f"{layer}.{head}" for layer in range(2) for head in range(24))
    values = np.broadcast_to(-0.01 * np.arange(1, 49)[:, None], (48, T)).astype(np.float32)
    causes = made_causes(components=names, attribution=values, ablation=values.reshape(2, 24, T))
    view = show(wide, causes=[causes])
    open_panel(view, "attribution")
    assert len(lines(view)) == 14
    assert lines(view)[12] == ("layer 0, head 0", "-0.010")  # the selected one
    rest = -0.01 * (sum(range(1, 37)) - 1)
    assert lines(view)[13] == ("35 others together", f"{rest:.3f}")
    open_panel(view, "ablation")
    assert lines(view)[13][0] == "35 others change it less"


def test_a_text_that_ends_asks_why_the_model_would_go_on_as_it_likes(show):
    view = show(history(), causes=[made_causes(is_open=True)])
    open_panel(view, "lens")
    assert view.text("#causes-title").startswith("Why the model would write “</bdi>next” after “ a”")
    view.page.locator("#tokens span").nth(2).click()
    assert view.text("#causes-title").startswith("Predicting")


def test_an_ablation_that_was_too_costly_is_said_to_be_left_out(show):
    view = show(history(), causes=[made_causes(ablation=None)])
    open_panel(view, "ablation")
    assert "Not computed" in view.text("#causes-note")
    assert lines(view) == []


def test_each_of_two_runs_shows_its_own_causes_and_their_difference_none(show):
    second = made_causes(ablation=np.full((2, 3, T), 7, dtype=np.float32))
    view = show(history(), other=history(), causes=[made_causes(), second])
    open_panel(view, "ablation")
    view.page.locator("#compare label").nth(1).click()
    assert {value for _, value in lines(view)} == {"+7.000"}
    view.page.locator("#compare label").nth(2).click()
    assert "Choose A or B" in view.text("#causes-title")
    assert lines(view) == []
    view = show(history(), other=history(), causes=[made_causes()])
    view.page.locator("#compare label").nth(1).click()
    open_panel(view, "lens")
    assert "Not measured" in view.text("#causes-title")


def test_hostile_texts_and_names_are_shown_as_text(show):
    hostile = (HOSTILE * 2)[:T]
    names = (*HOSTILE[:6], *COMPONENTS[6:])
    causes = made_causes(targets=hostile, best=(hostile,) * 3, components=names)
    view = show(history(tokens=hostile), causes=[causes])
    for panel in ("lens", "attribution", "ablation"):
        open_panel(view, panel)
        assert view.page.locator("img, b b, script[src]").count() == 0
    open_panel(view, "attribution")
    assert HOSTILE[0] in [what for what, _ in lines(view)]


@pytest.mark.parametrize(("width", "height"), [(500, 420), (360, 700), (960, 600), (1200, 800)])
def test_the_lists_never_scroll_sideways(show, width, height):
    causes = made_causes(best=(("x" * 300,) * T,) * 3, targets=("y" * 300,) * T)
    view = show(history(), width=width, height=height, causes=[causes])
    for panel in ("lens", "attribution", "ablation"):
        open_panel(view, panel)
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width
        cut = "[...document.querySelectorAll('#causes-list .value')].some(v => v.scrollWidth > v.clientWidth)"
        assert not view.page.evaluate(cut)


def test_causes_of_another_text_are_refused():
    with pytest.raises(ValueError, match=r"causes must be of the 3 tokens shown, got 12"):
        render_page(history(tokens=WORDS[:3]), title="x", causes=[made_causes()])


# ---- relations and meanings ----------------------------------------------------------------------------------------


def test_choosing_a_relation_goes_to_its_first_link(show):
    links = [Relation("copy", 10, (1,)), Relation("copy", 6, (2, 3)), Relation("other", 4, (0,))]
    view = show(history(), links=links)
    view.select(HALF)
    view.page.locator("#relation").select_option(label="copy")
    assert view.state("token") == "6"
    assert (view.text("#readout-row"), view.text("#readout-column")) == ("#6", "#2")
    assert view.page.locator("#cell-mark").is_visible()
    view.page.keyboard.press("]")
    assert not view.page.locator("#cell-mark").is_visible()
    assert view.text("#readout-row") == "#7"
    view.page.get_by_text("what attends to it").click()
    view.page.locator("#relation").select_option(label="other")
    assert view.state("token") == "0", "the key, in the other direction"
    view.page.locator("#relation").select_option(label="None")
    assert view.state("token") == "0"


def test_the_table_says_of_every_score_what_it_means_its_range_and_which_way_is_more(show):
    names = ("induction", "entropy", "relation: copy", "constructor")
    scores = {name: np.arange(6).reshape(2, 3) / 6 for name in names}
    notes = {"relation: copy": "Here 9 links."}
    view = show([dataclasses.replace(each, scores=scores) for each in history()], notes=notes, causes=[made_causes()])
    view.select(UNIFORM)
    rows = view.page.locator("#head-scores tbody tr")
    cells = [rows.nth(i).locator("th, td").all_text_contents() for i in range(4)]
    assert [row[:4] for row in cells] == [
        ["induction", "0.500", "3 of 6", "0 to 1"],
        ["entropy", "0.500", "3 of 6", "0 to 1"],
        ["relation: copy", "0.500", "3 of 6", "-1 to 1"],
        ["constructor", "0.500", "3 of 6", ""],
    ]
    assert cells[0][4].startswith("On random tokens repeated once")
    assert cells[0][5] == "an induction head, which predicts by copying what came next"
    assert cells[2][4].endswith("Here 9 links.")
    assert cells[3][4:] == ["", ""]
    assert "Higher means" in view.page.locator("#score").get_attribute("title")
    assert "Higher means" in view.page.locator("#panels label").nth(1).get_attribute("title")
    assert rows.nth(0).locator(".differs").is_visible()
    assert rows.nth(1).locator(".differs").is_hidden(), "other programs' definitions show for the chosen score"
    rows.nth(1).locator("button").click()
    assert view.state("score") == "entropy"
    assert rows.nth(1).locator(".differs").is_visible()


def test_many_scores_and_their_meanings_fit_whatever_the_width(show):
    names = ("induction", "duplicate_token", "entropy", "previous_token", "mean_distance", "near_zero", "keys_for_90")
    scores = {name: np.full((2, 3), 43.17) for name in (*names, "relation: previous occurrence", "ablation")}
    view = show([dataclasses.replace(history()[-1], scores=scores)], width=360, causes=[made_causes()])
    for width in range(330, 420, 6):
        view.page.set_viewport_size({"width": width, "height": 700})
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    assert view.page.locator("#head-scores tr").last.bounding_box()["width"] > 300
