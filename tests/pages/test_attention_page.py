"""The attention page, in a real browser: what it shows is right, its controls work, and no text can break out of it."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from attention_pages import (
    FIRST,
    HALF,
    HOSTILE,
    INDUCTION,
    PREVIOUS,
    SELF,
    TITLE,
    UNIFORM,
    WORDS,
    Relation,
    View,
    history,
    known_heads,
)
from unpacking import decode_earlier, decode_frames, details_of

from minigpt.inspection import packing
from minigpt.inspection.snapshot import Snapshot
from minigpt.pages.attention import render_page, renew_page


def test_the_page_opens_at_the_last_step_and_token_without_any_request(view):
    assert view.state("step") == "300"
    assert view.state("token") == str(len(WORDS) - 1)
    assert view.selected() == (0, 0)
    assert view.page.title() == TITLE
    assert view.text("h1") == TITLE
    assert view.page.locator(".thumb").count() == 6
    assert "row is a query token" in view.text("#intro")


def test_clicking_a_head_changes_the_large_map(view):
    before = view.pixels()
    view.select(FIRST)
    after = view.pixels()
    assert view.selected() == FIRST
    assert (before != after).any()
    yellow = [253, 231, 37, 255]
    assert (after[:, 0] == yellow).all()
    assert (before[np.arange(12), np.arange(12)] == yellow).all()


def test_above_the_diagonal_nothing_is_drawn(view):
    view.select(UNIFORM)
    alpha = view.pixels()[..., 3]
    np.testing.assert_array_equal(alpha, np.tril(np.full((12, 12), 255)))


def test_hovering_tells_the_two_tokens_and_their_weight(view):
    for head, query, key, weight in [
        (SELF, 5, 5, 1.0),
        (PREVIOUS, 6, 5, 1.0),
        (PREVIOUS, 6, 6, 0.0),
        (UNIFORM, 7, 2, 1 / 8),
        (INDUCTION, 10, 2, 1.0),
        (HALF, 9, 0, 0.7),
        (HALF, 9, 9, 0.3),
    ]:
        view.select(head)
        view.hover(query, key)
        for name, token in (("query", query), ("key", key)):
            shown = WORDS[token].replace("\n", "↵").replace("\t", "→")
            assert view.text(f"#readout-{name}") == f"“{shown}”"
        assert view.text("#readout-row") == f"#{query}"
        assert view.text("#readout-column") == f"#{key}"
        assert view.weight() == pytest.approx(weight, abs=0.01), (head, query, key)


def test_without_a_pointer_the_readout_tells_the_strongest_pair_of_the_selected_token(view):
    view.select(INDUCTION)
    view.page.mouse.move(1, 1)
    assert view.text("#readout-column") == "#3"
    assert view.weight() == pytest.approx(1, abs=0.01)


def test_the_weight_at_an_earlier_step_is_that_of_its_snapshot(view):
    view.select(HALF)
    for frame, snapshot in enumerate(history()):
        view.page.locator("#slider").fill(str(frame))
        assert view.state("step") == str(snapshot.step)
        assert view.text("#step") == str(snapshot.step)
        view.hover(8, 0)
        assert view.weight() == pytest.approx(snapshot.weights[(*HALF, 8, 0)], abs=0.01)


def test_every_pixel_of_a_step_has_the_colour_of_its_weight(view):
    from minigpt.pages.colormap import COLOURS

    view.page.locator("#slider").fill("1")
    view.select(HALF)
    levels = np.rint(255 * np.sqrt(history()[1].weights[HALF])).astype(int)
    lower = np.tril_indices(12)
    np.testing.assert_array_equal(view.pixels()[..., :3][lower], COLOURS[levels][lower])


def test_play_runs_from_the_first_step_to_the_last_and_stops(view):
    # What is shown is written down as it happens: on a busy machine the next step comes before one can look. The click
    # is in the same breath, as a page that is still being laid out may say the last step once more.
    view.page.evaluate(
        """() => {
            window.seen = [];
            const note = () => {
                const step = document.documentElement.dataset.step;
                window.seen.push([step, document.getElementById("play").textContent.trim()]);
                if (step === "300") document.body.dataset.played = "";
            };
            new MutationObserver(note).observe(document.documentElement, {attributeFilter: ["data-step"]});
            document.getElementById("play").click();
        }"""
    )
    view.page.wait_for_selector("body[data-played]")
    seen = view.page.evaluate("window.seen")
    assert [step for step, _ in itertools.groupby(step for step, _ in seen)] == ["100", "200", "300"]
    assert "Pause" in seen[0][1]
    assert "Play" in view.text("#play")


def test_a_single_snapshot_has_neither_slider_nor_play_button(show):
    view = show(history(steps=(7,)))
    assert not view.page.locator("#slider").is_visible()
    assert not view.page.locator("#play").is_visible()
    assert not view.page.locator("#step-keys").is_visible()
    assert view.state("step") == "7"


def test_clicking_the_map_pins_its_row_and_colours_the_text(view):
    view.select(PREVIOUS)
    view.page.mouse.click(*view.cell(6, 2))
    assert view.state("token") == "6"
    shares = view.shares()
    assert shares[5] == pytest.approx(0.85, abs=0.01)
    assert sum(shares) == pytest.approx(shares[5])
    assert "fox" in view.text("#text-title")


def test_clicking_a_token_selects_it_and_dims_what_it_cannot_see(view):
    view.page.locator("#tokens span").nth(3).click()
    assert view.state("token") == "3"
    masked = view.page.evaluate("[...document.querySelectorAll('#tokens .masked')].map(span => +span.dataset.token)")
    assert masked == list(range(4, 12))


def readout(view):
    """[query, key] that the readout tells, and the row that is marked on the map."""
    pair = [int(view.text(f"#readout-{name}")[1:]) for name in ("row", "column")]
    return pair, round(float(view.page.locator("#line-mark").evaluate("mark => mark.style.top")[:-1]) / 100 * 12)


def test_readout_and_marks_follow_whatever_selects_another_token(view):
    view.select(HALF)
    token = view.page.locator("#tokens span")
    token.nth(9).hover()
    assert readout(view) == ([11, 9], 11)
    token.nth(9).click()
    assert readout(view) == ([9, 0], 9), "the strongest pair of the token that was clicked"
    assert view.page.locator("#cell-mark").is_hidden()
    token.nth(5).hover()
    assert readout(view) == ([9, 5], 9)
    view.page.keyboard.press("[")
    assert readout(view) == ([8, 5], 8), "the pointer still rests on token 5"
    view.page.get_by_text("what attends to it").dispatch_event("click")
    assert readout(view)[0] == [8, 8], "token 5 cannot attend to token 8"
    token.nth(9).hover()
    assert readout(view)[0] == [9, 8]


def test_at_the_load_event_everything_is_drawn_for_programs_that_print_or_capture(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render_page(history(), title=TITLE), encoding="utf-8")
    page = browser.new_page()
    page.add_init_script("addEventListener('load', () => { window.early = !document.documentElement.dataset.ready; })")
    page.goto(path.as_uri())
    assert page.evaluate("window.early") is False
    assert page.locator("iframe").count() == 0
    page.close()


def test_the_other_direction_shows_what_attends_to_a_token(view):
    view.select(PREVIOUS)
    view.page.locator("#tokens span").nth(4).click()
    view.page.get_by_text("what attends to it").click()
    assert view.state("direction") == "to"
    assert "What attends to" in view.text("#text-title")
    shares = view.shares()
    assert [i for i, share in enumerate(shares) if share > 0] == [5]
    assert view.ranking("one")[0] == (5, pytest.approx(1, abs=0.01))
    view.page.mouse.click(*view.cell(9, 2))  # now a click pins the column
    assert view.state("token") == "2"


def test_hovering_a_token_tells_its_weight_with_the_selected_one(view):
    view.select(HALF)
    view.page.locator("#tokens span").nth(9).click()
    view.page.locator("#tokens span").nth(0).hover()
    assert (view.text("#readout-row"), view.text("#readout-column")) == ("#9", "#0")
    assert view.weight() == pytest.approx(0.7, abs=0.01)


def test_the_lists_rank_one_head_and_the_mean_of_all(view):
    view.select(HALF)
    view.page.locator("#tokens span").nth(9).click()
    one = view.ranking("one")
    assert one[:2] == [(0, pytest.approx(0.7, abs=0.01)), (9, pytest.approx(0.3, abs=0.01))]
    mean = known_heads(12, 9)[:, :, 9].mean((0, 1))
    expected = sorted(((int(i), mean[i]) for i in range(10)), key=lambda pair: -pair[1])[:4]
    everywhere = view.ranking("all")
    assert [weight for _, weight in everywhere[:4]] == pytest.approx([weight for _, weight in expected], abs=0.01)
    assert everywhere[0][0] == 0
    assert len(everywhere) == 8


def test_scales_change_the_colours_but_never_the_weights(view):
    view.page.locator("#slider").fill("1")
    view.select(UNIFORM)
    view.page.locator("#tokens span").nth(8).click()
    pictures = []
    for scale in ("sqrt", "linear", "log", "row"):
        view.page.locator("#scale").select_option(scale)
        assert view.state("scale") == scale
        pictures.append(view.pixels()[11, 3].tolist())
        view.hover(8, 3)
        assert view.weight() == pytest.approx(1 / 9, abs=0.01)
    assert all(a != b for a, b in itertools.combinations(pictures, 2))
    assert pictures[-1] == [253, 231, 37, 255]  # the largest of its row, like all others of a uniform row


def test_hiding_the_first_token_takes_it_out_of_maps_text_and_lists(view):
    view.select(FIRST)
    assert view.shares()[0] > 0
    view.page.locator("#hide").check()
    assert view.state("hide") == "true"
    pixels = view.pixels()
    assert (pixels[:, 0, 3] == 0).all()
    assert (pixels[1:, 1, 3] == 255).all()
    assert view.shares()[0] == 0
    assert 0 not in [token for token, _ in view.ranking("one") + view.ranking("all")]


def test_hiding_the_first_token_while_it_is_selected_breaks_nothing(view):
    view.page.locator("#tokens span").nth(0).click()
    view.page.locator("#hide").check()
    assert view.ranking("one") == []


def test_the_keyboard_moves_heads_steps_and_tokens(view):
    press = view.page.keyboard.press
    press("ArrowRight")
    press("ArrowDown")
    assert view.selected() == (1, 1)
    for _ in range(5):
        press("ArrowUp")
        press("ArrowRight")
    assert view.selected() == (0, 2)
    press("ArrowLeft")
    assert view.selected() == (0, 1)
    press(",")
    assert view.state("step") == "200"
    press(".")
    press(".")
    assert view.state("step") == "300"
    press("[")
    press("[")
    assert view.state("token") == "9"
    press("]")
    assert view.state("token") == "10"


def test_the_focus_follows_the_arrows_in_the_grid_and_tokens_answer_to_enter(view):
    view.page.locator(".thumb").nth(0).focus()
    view.page.keyboard.press("ArrowRight")
    assert view.page.evaluate("document.activeElement.getAttribute('aria-label')") == "layer 0, head 1"
    view.page.locator("#tokens span").nth(2).focus()
    view.page.keyboard.press("Enter")
    assert view.state("token") == "2"


def test_arrows_inside_the_slider_move_the_slider_and_not_the_head(view):
    view.page.locator("#slider").focus()
    view.page.keyboard.press("ArrowLeft")
    assert view.state("step") == "200"
    assert view.selected() == (0, 0)


def test_a_line_break_is_visible_and_breaks_the_line_and_a_tab_is_an_arrow(view):
    spans = view.page.locator("#tokens span")
    assert spans.nth(4).text_content() == "↵\n"
    assert spans.nth(8).text_content() == ".↵\n"
    assert spans.nth(5).text_content() == "→The"
    assert spans.nth(1).text_content() == " upon"
    assert spans.nth(5).bounding_box()["y"] > spans.nth(3).bounding_box()["y"]


def test_a_hostile_token_is_shown_as_text(show):
    tokens = HOSTILE * 2
    view = show([Snapshot(1, tokens, known_heads(len(tokens)))])
    plain = show([Snapshot(1, ("a",) * len(tokens), known_heads(len(tokens)))])
    shown = view.page.locator("#tokens span").all_text_contents()
    assert shown[:6] == list(HOSTILE[:6])
    assert shown[6] in ("\ud800", "\ufffd")  # the lone surrogate, or what the browser's pipe makes of it
    view.hover(8, 0)
    assert view.text("#readout-key") == f"“{HOSTILE[0]}”"
    view.hover(8, 8)
    count = "document.getElementsByTagName('*').length"
    assert view.page.locator("img, b").count() == 0
    assert view.page.evaluate(count) == plain.page.evaluate(count)


def test_a_hostile_title_is_shown_as_text(browser, tmp_path):
    title = " ".join(HOSTILE[:6])
    path = tmp_path / "page.html"
    path.write_text(render_page(history(), title=title), encoding="utf-8")
    view = View(browser, path)
    assert view.text("h1") == title
    assert view.page.locator("img, b").count() == 0
    view.check_clean()
    view.page.close()


def test_the_page_works_in_a_sandboxed_frame_as_notebooks_show_it(browser, tmp_path):
    full, links = with_all_extras(history()), [Relation("copy", 9, (0,))]
    frame = render_page(full, title=TITLE, links=links, other=full[:1])._repr_html_()
    assert 'sandbox="allow-scripts"' in frame
    path = tmp_path / "outer.html"
    path.write_text(f'<html data-ready="1"><div style="width: 500px">{frame}</div>', encoding="utf-8")
    view = View(browser, path)
    frame = view.page.frame_locator("iframe")
    frame.locator("html[data-ready='1']").wait_for(state="attached")
    frame.locator(".thumb").nth(4).click()
    frame.locator("#slider").fill("0")
    assert frame.locator("html").get_attribute("data-step") == "100"
    assert frame.locator("html").get_attribute("data-layer") == "1"
    frame.locator("#values").check()
    frame.locator("#relation").select_option(label="copy")
    frame.locator("#order").select_option("high")
    frame.locator("#compare label").nth(2).click()
    for name, value in (("values", "true"), ("relation", "copy"), ("order", "high"), ("view", "diff")):
        assert frame.locator("html").get_attribute(f"data-{name}") == value
    assert [url for url in view.requests if url != view.url] in ([], ["about:srcdoc"])
    assert view.complaints == []
    view.page.close()


@pytest.mark.parametrize(("width", "height"), [(500, 420), (340, 700), (1600, 900)])
def test_the_layout_never_scrolls_sideways(show, width, height):
    view = show(history(tokens=(*WORDS[:5], "x" * 300, *WORDS[5:])), width=width, height=height)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    assert view.page.locator("#large").bounding_box()["width"] > 200


def test_at_500_by_420_the_heads_and_the_whole_large_map_are_in_sight(show):
    view = show(history(), width=500, height=420)
    for selector in (".thumb:last-child", "#large"):
        box = view.page.locator(selector).last.bounding_box()
        assert box["y"] + box["height"] <= 420


def test_a_thin_diagonal_survives_in_a_map_with_fewer_pixels_than_tokens(show):
    n_tokens = 150
    view = show([Snapshot(0, ("a ",) * n_tokens, known_heads(n_tokens))], width=500, height=420)
    thumb = view.pixels(".thumb canvas")
    side = len(thumb)
    assert side < n_tokens
    assert (thumb[np.arange(side), np.arange(side)] == [253, 231, 37, 255]).all()


def test_a_page_of_one_token_works(show):
    view = show([Snapshot(0, ("a",), np.ones((1, 1, 1, 1)))])
    view.page.keyboard.press("]")
    view.page.keyboard.press("ArrowDown")
    assert view.weight() == 1


def softmax_maps(n_layer, n_head, n_tokens, sharpness=1.0, seed=0):
    scores = sharpness * np.random.default_rng(seed).normal(size=(n_layer, n_head, n_tokens, n_tokens))
    weights = np.tril(np.exp(scores))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def runs_of(page):
    return json.loads(re.search('"application/json">(.*?)</script>', page, re.DOTALL)[1])["runs"]


def test_ten_steps_of_36_heads_that_form_smoothly_stay_under_a_megabyte():
    # Noise that changes from step to step costs more, as the bound for any weights below says.
    known = np.tile(known_heads(128, 40), (3, 2, 1, 1))
    uniform = np.broadcast_to(known_heads(128)[UNIFORM], known.shape)
    shares = np.linspace(0, 1, 10)
    snapshots = [Snapshot(k, ("word",) * 128, s * known + (1 - s) * uniform) for k, s in enumerate(shares)]
    assert len(render_page(snapshots, title="size")) < 1_000_000


def test_ten_steps_of_36_heads_whose_weights_are_noise_as_those_of_trained_heads_stay_under_a_megabyte():
    # Half of the scores' variance changes from step to step: 0.9 bits a weight, which is what a trained model's took.
    random = np.random.default_rng(0)
    shared, snapshots = random.normal(size=(6, 6, 128, 128)), []
    for step in range(10):
        weights = np.tril(np.exp(0.4 * (shared + random.normal(size=shared.shape)))).astype(np.float32)
        snapshots.append(Snapshot(step, ("word",) * 128, weights / weights.sum(-1, keepdims=True)))
    assert len(render_page(snapshots, title="size")) < 1_000_000


def test_of_many_steps_only_the_newest_keeps_all_digits_and_the_page_says_so(monkeypatch):
    weights = np.stack([softmax_maps(2, 2, 40, sharpness=2, seed=step) for step in range(3)])
    snapshots = [Snapshot(step, ("a",) * 40, each) for step, each in enumerate(weights)]
    exact = render_page(snapshots, title="")
    monkeypatch.setattr("minigpt.pages.attention._EXACT_WEIGHTS", 1000)
    coarse = render_page(snapshots, title="")
    assert "all steps but the last" not in exact
    assert f"before the last step by at most {packing.COARSE_ERROR:.3f}" in " ".join(coarse.split())
    errors = []
    for page in (exact, coarse):
        (run,) = runs_of(page)
        levels = decode_frames(run["levels"], (2, 2, 820))
        if run["earlier"]:
            levels = np.concatenate([decode_earlier(run["earlier"], levels[0], 2), levels])
        errors.append(np.abs(packing.unpack(levels, 40) - weights).max(axis=(1, 2, 3, 4)))
    assert (errors[0] <= packing.MAX_ERROR + 1e-6).all()
    assert errors[1][2] <= packing.MAX_ERROR + 1e-6
    assert (errors[1][:2] > packing.MAX_ERROR).all()
    assert (errors[1][:2] <= packing.COARSE_ERROR + 1e-6).all()


def test_144_heads_and_256_tokens_half_of_them_diffuse_noise_stay_under_four_megabytes():
    weights = softmax_maps(12, 12, 256)
    weights[::2] = np.tile(known_heads(256, 70), (3, 4, 1, 1))
    assert len(render_page([Snapshot(0, ("word",) * 256, weights)], title="size")) < 4_000_000


def with_all_extras(snapshots):
    """Scores, lengths and next tokens that have nothing in common from step to step: the hardest to keep small."""
    random = np.random.default_rng(0)
    full = []
    for snapshot in snapshots:
        n_layer, n_head, T, _ = snapshot.weights.shape
        shares = np.sort(random.dirichlet(np.ones(50), size=T))[:, :-6:-1].tolist()
        words = random.integers(0, 4000, size=(T, 5)).tolist()
        full.append(
            dataclasses.replace(
                snapshot,
                scores={f"relation: number {i}": random.normal(size=(n_layer, n_head)) for i in range(12)},
                value_norms=np.exp(random.normal(size=(n_layer, n_head, T))),
                next_tokens=tuple(
                    tuple((f" word{word}", share) for word, share in zip(*row, strict=True))
                    for row in zip(words, shares, strict=True)
                ),
            )
        )
    return full


def test_all_that_is_known_beside_the_weights_adds_little_to_a_page():
    n_tokens, n_steps = 128, 10
    known = np.tile(known_heads(n_tokens, 40), (3, 2, 1, 1))
    snapshots = [Snapshot(k, ("word",) * n_tokens, known) for k in range(n_steps)]
    labels = [[["induction head"] * 6] * 6] * n_steps
    full = render_page(with_all_extras(snapshots), title="size", labels=labels)
    assert len(full) - len(render_page(snapshots, title="size")) < 25_000 * n_steps
    one = [Snapshot(0, ("word",) * 256, np.tile(known_heads(256, 70), (6, 4, 1, 1)))]
    assert len(render_page(with_all_extras(one), title="size")) - len(render_page(one, title="size")) < 100_000


def test_numbers_beside_the_weights_keep_their_digits_and_no_more():
    snapshot = dataclasses.replace(
        history()[0],
        scores={"a": np.full((2, 3), 0.123456), "b": np.full((2, 3), np.nan), "c": np.full((2, 3), -1.23456e-5)},
        next_tokens=((("x", 0.123456),),) * 12,
    )
    page = render_page([snapshot], title="x")
    (run,) = runs_of(page)
    details = details_of(run)
    assert details["scores"] == [[[0.1235] * 6, [None] * 6, [-1.235e-05] * 6]]
    assert details["next"] == [[[0, 0.123]] * 12]


def test_no_weights_take_more_than_a_byte_and_its_base64_each():
    snapshots = [Snapshot(k, ("word",) * 64, softmax_maps(2, 2, 64, sharpness=2, seed=k)) for k in range(8)]
    levels = 8 * 2 * 2 * 64 * 65 // 2
    shell = len(render_page([Snapshot(0, ("word",), np.ones((1, 1, 1, 1)))], title="size"))
    assert len(render_page(snapshots, title="size")) - shell < 4 / 3 * levels + 1000


def test_steps_are_shown_in_their_order_whatever_the_order_of_the_list(show):
    view = show(history()[::-1])
    assert view.state("step") == "300"


def test_the_document_names_no_address_and_allows_only_its_own_script():
    page = render_page(history(), title=TITLE)
    assert page.isascii()
    assert not re.search(r"https?:|//\w+\.|<link|<img|\bsrc=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "unsafe" not in page


def test_a_page_is_made_anew_from_its_data_and_nothing_else_of_it_stays():
    title = " ".join(HOSTILE[:6])
    page = render_page(history(tokens=HOSTILE[:6] * 2), title=title)
    assert renew_page(page) == page
    assert renew_page(page.replace("<header>", "<script>alert(1)</script><header>")) == page


@pytest.mark.parametrize(
    "change",
    [
        lambda page: "",
        lambda page: page.replace("sha256-", "sha256-A", 1),
        lambda page: page.replace(' id="data"', ""),
        lambda page: page.replace("<title>", "<h2>"),
        lambda page: page.replace('{"tokens"', '{"tokens'),
        lambda page: page.replace('"n_layer":2', '"n_layer":NaN'),
        lambda page: page.replace('{"tokens":', "[" * 100_000),
    ],
)
def test_a_page_of_another_version_or_a_damaged_one_is_not_made_anew(change):
    page = render_page(history(), title=TITLE)
    assert change(page) != page
    assert renew_page(change(page)) is None


def other_tokens(snapshots):
    return [snapshots[0], Snapshot(5, (*WORDS[:-1], "!"), snapshots[1].weights)]


def other_shape(snapshots):
    return [snapshots[0], Snapshot(5, WORDS, snapshots[1].weights[:1])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "at least one snapshot"),
        (other_tokens, "same tokens, but those of step 5 and step 100 differ"),
        (
            other_shape,
            r"same shape of weights, got \(1, 3, 12, 12\) at step 5 and \(2, 3, 12, 12\) at step 100",
        ),
    ],
)
def test_snapshots_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        render_page(change(history()), title="x")


def test_a_second_run_must_be_of_the_same_tokens_and_shape():
    for change in (other_tokens, other_shape):
        with pytest.raises(ValueError, match=r"snapshots must .* the same"):
            render_page(history(), other=change(history())[1:], title="x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"links": [Relation("copy", 12, (0,))]}, "'copy' must be between positions 0 and 11, got query 12"),
        ({"links": [Relation("copy", 3, (0, -1))]}, r"got query 3 and keys \[0, -1\]"),
        ({"links": [Relation(7, 3, (0,))]}, r"a link's name must be text \(str\), got 7"),
        ({"labels": [[[None, "copy", 7]] * 2] * 3}, r"a label must be text \(str\) or None, got 7"),
        ({"labels": [[[None] * 3] * 2]}, "each of the 3 snapshots or none, got 1"),
        ({"labels": [[[None] * 2] * 2] * 3}, r"2 layers of 3 heads, got \[2, 2\] heads"),
    ],
)
def test_links_and_labels_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        render_page(history(), title="x", **fields)
