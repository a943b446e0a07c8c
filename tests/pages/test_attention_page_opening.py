"""How the attention page opens: at what is worth seeing, under a sentence on what the heads do."""

import dataclasses

import numpy as np
from attention_pages import HALF, HOSTILE, INDUCTION, PREVIOUS, SELF, TITLE, UNIFORM, WORDS, history
from test_attention_page_causes import made_causes

from minigpt.pages.attention import render_page, renew_page

ABLATION = np.array([[0.01, 0.2, 0], [0, 0.05, -0.3]])


def scored():
    """Heads whose pattern grows over three steps."""
    return [
        dataclasses.replace(
            snapshot,
            scores={
                "previous_token": np.array([[0.1, share, 0.1], [0.1, 0.1, 0.1]]),
                "first_token": np.array([[0.1, 0.1, 0.9], [0.1, 0.1, 0.7]]),
                "current_token": np.array([[1.2 * share, 0.1, 0.1], [0.1, 0.1, 0.1]]),
                "ablation": share * ABLATION,
            },
        )
        for snapshot, share in zip(history(), (0.1, 0.5, 1.0), strict=True)
    ]


NONE = [[None] * 3] * 2
LABELS = [NONE, [["current token", None, None], [None] * 3], [[None, "previous token", "first token"], [None] * 3]]


def summary(view):
    return " ".join(view.text("#summary").split())


def test_the_page_opens_at_the_clearest_label_says_what_heads_do_and_each_name_selects_its_head(show):
    view = show(scored(), labels=LABELS)
    assert view.selected() == PREVIOUS, "a sink is less worth seeing, even with a higher score"
    assert view.state("score") == "previous_token"
    assert view.page.locator("#score").input_value() == "0"
    assert summary(view).startswith(
        "At step 300: 0.1 attends to the previous token. 0.2 attends to the first token, where heads without a match "
        "put their weight. The other 4 have no clear pattern. Without 0.1 the loss of the text rises most: "
        "+0.200 nats, then without 1.1 (+0.050)."
    )
    assert "Changed most since step 100: 0.0 (current token 0.120 → 1.200) and 0.1 (previous token 0.100" in summary(
        view
    )
    view.page.locator("#summary button", has_text="1.1").click()
    assert view.selected() == INDUCTION
    assert view.state("score") == "ablation"
    assert view.page.evaluate("document.activeElement.textContent") == "1.1", "a pressed button keeps its focus"
    view.page.locator("#slider").fill("0")
    assert summary(view).startswith("At step 100: No head has a clear pattern.")
    assert "Changed" not in summary(view)


def test_ticks_on_the_slider_name_new_labels_and_events_and_go_to_their_step(open_view):
    page = render_page(scored(), title=TITLE, labels=LABELS)
    view = open_view(renew_page(page, [(150, "a spike <b>"), (900, "the end")]))
    ticks = view.page.locator("#events button")
    titles = [ticks.nth(i).get_attribute("title") for i in range(ticks.count())]
    assert titles == [
        "step 200: 0.0 current token\nstep 150: a spike <b>",
        "step 300: 0.1 previous token, 0.2 first token\nstep 900: the end",
    ]
    ticks.first.click()
    assert view.state("step") == "200"
    centre = [box["x"] + box["width"] / 2 for box in (ticks.nth(0).bounding_box(), ticks.nth(1).bounding_box())]
    slider = view.page.locator("#slider").bounding_box()
    assert abs(centre[0] - slider["x"] - slider["width"] / 2) < 2
    assert abs(centre[1] - slider["x"] - slider["width"] + 8) < 2


def test_without_a_label_the_page_opens_at_the_head_and_token_with_the_largest_effect(show):
    effects = np.zeros((2, 3, 12), dtype=np.float32)
    effects[PREVIOUS][4] = 0.7
    view = show(scored(), labels=[NONE] * 3, causes=[made_causes(ablation=effects)])
    assert view.selected() == PREVIOUS
    assert view.state("token") == "4"
    assert view.state("score") == "ablation"


def test_what_may_be_noise_and_what_did_not_change_is_said(show):
    frames = [dataclasses.replace(each, scores={**scored()[2].scores}) for each in history()]
    frames[-1].scores["ablation_spread"] = np.full((2, 3), 0.3)
    view = show(frames, labels=[NONE] * 3)
    assert summary(view) == (
        "At step 300: No head has a clear pattern. Without 0.1 the loss of the text rises most: +0.200 nats, which may "
        "be noise: the spread over parts of the text is 0.300. Since step 100 no pattern has changed by 0.050 or more."
    )
    assert view.page.locator("#curves .chart").is_visible()
    view.page.locator("#score").select_option(label="ablation spread")
    assert view.text("#curve-note") == "ablation spread: measured at step 300 only"
    assert not view.page.locator("#curves .chart").is_visible(), "one point is no curve"


def test_a_page_without_scores_opens_at_the_sharpest_head(show):
    snapshot = history()[-1]
    order = [UNIFORM, HALF, SELF]
    weights = np.stack([np.stack([snapshot.weights[head] for head in order])] * 2)
    weights[1] = snapshot.weights[UNIFORM]
    view = show([dataclasses.replace(snapshot, weights=weights)])
    assert view.selected() == (0, 2)
    assert view.page.locator("#summary").is_hidden()


def test_a_comparison_says_which_head_differs_most(show):
    other = history()[-1].weights.copy()
    other[UNIFORM] = other[INDUCTION]
    first = scored()[-1]
    view = show([first], other=[dataclasses.replace(first, weights=other)], labels=LABELS[-1:])
    assert summary(view).startswith("A: 0.1 attends to the previous token.")
    view.page.locator("#compare label").nth(1).click()
    assert summary(view).startswith("B: Without 0.1 the loss")
    view.page.locator("#compare label").nth(2).click()
    assert summary(view).startswith("A and B differ most in 1.0")


def test_hostile_labels_are_text_in_the_sentence_and_in_the_titles_of_ticks(show):
    for text in (HOSTILE[0], "__proto__"):
        view = show(history(), labels=[NONE, [[text] * 3] * 2, [[text] * 3] * 2])
        assert f"follow the relation “{text}”." in view.text("#summary")
        assert "and 2 more follow" in summary(view), "four names at most"
        assert text in view.page.locator("#events button").get_attribute("title")
        assert view.page.locator("img").count() == 0
        assert view.page.locator("#tokens span").count() == len(WORDS)
