"""What the attention page tells of the tokens: relations between them, and what the model expects next."""

import dataclasses

import numpy as np
import pytest
from attention_pages import FIRST, HALF, HOSTILE, WORDS, Relation, history, known_heads

from minigpt.inspection.snapshot import Snapshot

LINKS = [Relation("same_word", 9, (0,)), Relation("same_word", 10, (1, 0)), Relation("line", 8, (4,))]


@pytest.fixture
def view(show):
    return show(history(), links=LINKS)


def relate(view, name):
    view.page.locator("#relation").select_option(label=name)


def targets(view):
    return view.page.evaluate("[...document.querySelectorAll('#tokens .target')].map(span => +span.dataset.token)")


def outlined(view):
    """The cells of the large map that have a line around them."""
    alpha = view.pixels("#links")[..., 3] > 0
    cell = len(alpha) / 12
    found = []
    for query in range(12):
        for key in range(12):
            across = slice(round(key * cell + 8), round((key + 1) * cell - 8))
            down = slice(round(query * cell + 8), round((query + 1) * cell - 8))
            top, left = round(query * cell), round(key * cell)
            if alpha[top, across].all() and alpha[down, left].all():
                found.append((query, key))
    return found


def test_a_page_without_relations_offers_none(show):
    view = show(history())
    assert not view.page.locator("#relation").is_visible()
    assert not view.page.locator("#linked").is_visible()


def test_the_cells_of_the_chosen_relation_are_outlined(view):
    assert view.page.locator("#relation option").all_text_contents() == ["None", "same word", "line"]
    assert outlined(view) == []
    relate(view, "line")
    assert view.state("relation") == "line"
    assert outlined(view) == [(8, 4)]
    relate(view, "same word")
    assert [cell for cell in outlined(view) if cell[1] < 2 and 9 <= cell[0] <= 10] == [(9, 0), (10, 0), (10, 1)]
    relate(view, "None")
    assert view.state("relation") == ""
    assert not view.pixels("#links")[..., 3].any()


def test_the_outline_of_a_cell_smaller_than_a_pixel_can_still_be_seen(show):
    snapshot = Snapshot(0, ("a ",) * 300, known_heads(300))
    view = show([snapshot], links=[Relation("far", 290, (10,))], width=500, height=420)
    relate(view, "far")
    marked = np.argwhere(view.pixels("#links")[..., 3] > 0)
    assert (np.ptp(marked, axis=0) >= 7).all()
    assert marked.mean(0) / len(view.pixels("#links")) == pytest.approx([290.5 / 300, 10.5 / 300], abs=0.01)


def test_the_outline_of_a_cell_at_the_edge_is_whole(show):
    view = show([Snapshot(0, ("a ",) * 300, known_heads(300))], links=[Relation("edge", 299, (0,))])
    relate(view, "edge")
    marked = np.argwhere(view.pixels("#links")[..., 3] > 0)
    assert (np.ptp(marked, axis=0) >= 8).all()


def test_the_targets_of_the_selected_token_are_underlined_and_their_weight_told(view):
    view.select(HALF)
    relate(view, "same word")
    view.page.locator("#tokens span").nth(9).click()
    assert targets(view) == [0]
    assert view.text("#linked") == "same word: “Once” #0 0.698"  # 0.7, to the nearest level
    view.page.locator("#tokens span").nth(10).click()
    assert targets(view) == [0, 1]
    assert view.text("#linked") == "same word: “ upon” #1 0.000 “Once” #0 0.698"
    view.page.locator("#tokens span").nth(3).click()
    assert targets(view) == []
    assert "nothing is linked" in view.text("#linked")
    relate(view, "None")
    assert not view.page.locator("#linked").is_visible()


def test_in_the_other_direction_the_tokens_that_should_attend_are_underlined(view):
    relate(view, "same word")
    view.page.locator("#tokens span").nth(0).click()
    view.page.get_by_text("what attends to it").click()
    assert targets(view) == [9, 10]


def test_a_link_to_a_later_token_is_drawn_and_said_to_be_out_of_reach(show):
    view = show(history(), links=[Relation("ahead", 2, (7,))])
    relate(view, "ahead")
    view.page.locator("#tokens span").nth(2).click()
    assert outlined(view) == [(2, 7)]
    assert view.text("#linked") == "ahead: “ ran” #7 comes later"


def test_a_relation_can_be_chosen_by_keyboard(view):
    view.page.locator("#relation").focus()
    view.page.keyboard.press("ArrowDown")
    assert view.state("relation") == "same_word"
    assert view.selected() == (0, 0)


def expecting(snapshots, *rankings):
    """Snapshots that expect the same after every token, each its own."""
    return [dataclasses.replace(s, next_tokens=(tuple(r),) * 12) for s, r in zip(snapshots, rankings, strict=True)]


SIX = [(" upon", 0.5), ("Once", 0.25), ("\n", 0.125), (" a", 0.06), (" fox", 0.0004), (" ran", 0.0001)]


def next_list(view, which=0):
    items = view.page.locator("#next-lists ol").nth(which).locator("li")
    return [tuple(item.locator("> *").all_text_contents()) for item in items.all()]


def test_the_five_likeliest_next_tokens_are_listed_with_the_one_that_comes(show):
    view = show(expecting(history(), SIX, SIX[1:], SIX))
    view.page.locator("#tokens span").nth(9).click()
    assert view.text("#next-title") == "Expected after “ Once”"
    assert next_list(view) == [
        ("“ upon”", "comes next 0.500"),
        ("“Once”", "0.250"),
        ("“↵”", "0.125"),
        ("“ a”", "0.060"),
        ("“ fox”", "<0.001"),
    ]
    shares = view.page.evaluate(
        "[...document.querySelectorAll('#next li')].map(li => li.style.getPropertyValue('--share'))"
    )
    assert shares[:2] == ["50.0%", "25.0%"]
    view.page.locator("#slider").fill("1")
    assert next_list(view)[0] == ("“Once”", "0.250")
    view.page.locator("#tokens span").nth(11).click()  # after the last token nothing comes
    assert "comes next" not in view.text("#next-lists")


def test_each_token_has_its_own_expectations(show):
    ranking = tuple(((f"after {i}", 0.5),) if i % 2 else () for i in range(12))
    view = show([Snapshot(1, WORDS, known_heads(12, 9), next_tokens=ranking)])
    assert next_list(view) == [("“after 11”", "0.500")]
    view.page.keyboard.press("[")
    assert not view.page.locator("#next").is_visible()
    view.page.keyboard.press("[")
    assert next_list(view) == [("“after 9”", "0.500")]


def test_without_expectations_there_is_no_list_of_them(show):
    assert not show(history()).page.locator("#next").is_visible()
    first, *rest = history()
    view = show([first, *expecting(rest, SIX, SIX)])
    assert view.page.locator("#next").is_visible()
    view.page.locator("#slider").fill("0")
    assert not view.page.locator("#next").is_visible()


def test_a_comparison_lists_what_either_run_expects(show):
    view = show(expecting(history(), SIX, SIX, SIX), other=expecting(history()[:1], SIX[2:]))
    labels = view.page.locator("#compare label")
    assert next_list(view)[0] == ("“ upon”", "0.500")
    labels.nth(1).click()
    assert next_list(view)[0] == ("“↵”", "0.125")
    labels.nth(2).click()
    assert view.page.locator("#next h3").all_text_contents() == ["A", "B"]
    assert (next_list(view, 0)[0], next_list(view, 1)[0]) == (("“ upon”", "0.500"), ("“↵”", "0.125"))


@pytest.mark.parametrize("text", [*HOSTILE[:6], "__proto__", "constructor"])
def test_hostile_names_of_relations_and_hostile_next_tokens_are_shown_as_text(show, text):
    snapshot = Snapshot(1, WORDS, known_heads(12, 9), next_tokens=(((text, 0.5),),) * 12)
    view = show([snapshot], links=[Relation(text, 11, (2,))])
    assert view.page.locator("#relation option").nth(1).text_content() == text.replace("_", " ")
    view.page.locator("#relation").select_option("0")
    assert view.state("relation") == text
    assert view.text("#linked") == f"{text.replace('_', ' ')}: “ a” #2 0.000"
    assert next_list(view) == [(f"“{text}”", "0.500")]
    assert view.page.locator("img, b b").count() == 0


@pytest.mark.parametrize(("width", "height"), [(500, 420), (360, 700), (1200, 800)])
def test_relations_and_expectations_never_scroll_sideways(show, width, height):
    long = "a relation with a long name " * 6
    view = show(
        expecting(history(), *[[("x" * 300, 0.5), *SIX[1:]]] * 3),
        links=[Relation(long, 11, tuple(range(11))), Relation("y" * 200, 11, (3,))],
        width=width,
        height=height,
    )
    view.page.locator("#relation").select_option("0")
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_at_once_keeps_the_whole_map_in_sight_at_500_by_420(show):
    def full(snapshots):
        return [
            dataclasses.replace(
                s,
                scores={"induction": np.ones((2, 3)), "ablation": np.ones((2, 3))},
                value_norms=np.ones((2, 3, 12)),
                next_tokens=(tuple(SIX),) * 12,
            )
            for s in snapshots
        ]

    view = show(
        full(history()), other=full(history()), links=LINKS, labels=[[["copy"] * 3] * 2] * 3, width=500, height=420
    )
    view.select(FIRST)
    box = view.page.locator("#large").bounding_box()
    assert box["y"] + box["height"] <= 420
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 500
    readout = view.page.locator("#readout").bounding_box()
    last = view.page.locator("#readout-ablation").bounding_box()
    assert last["y"] + last["height"] <= readout["y"] + readout["height"] + 1
