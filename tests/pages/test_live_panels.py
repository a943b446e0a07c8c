"""The live page's panels in a real browser: interventions, lens and writing do what PyTorch and `inspection` do."""

import contextlib
import json
from typing import Any

import pytest
import torch
from attention_pages import HOSTILE
from test_engine import make

from minigpt.data.tokenizers.base import CharsTokenizer
from minigpt.inspection.ablation import Kind, ablation, without_head
from minigpt.inspection.lens import logit_lens
from minigpt.model.gpt import GPT
from minigpt.pages.documents import Page
from minigpt.pages.live.page import live_page

ALPHABET = " abcdefghijklmnopqrstuvwxyz<>&/'"
TEXT = "the cat sat on a mat"
CHARS = CharsTokenizer(ALPHABET)
N_TOKENS = len(TEXT)
CONTEXT = 32


def model_of() -> GPT:
    model = make({"vocab_size": CHARS.vocab_size, "context_length": CONTEXT, "n_head": 2})
    with torch.no_grad():
        model.lm_head.weight[CHARS.end_of_text] = 0  # hardly ever likely, so texts go on
    return model


def page_of(text: str = TEXT) -> Page:
    return live_page(model_of(), CHARS, text, title="tiny", facts={}, kind="float32")


class Panels:
    """A live page with one of its panels in front."""

    def __init__(self, view: Any, tab: str) -> None:
        self.view, self.page, self.state = view, view.page, view.state
        self.open(tab)

    def open(self, tab: str) -> None:
        self.page.click(f"#tab-{tab}")

    def click(self, selector: str) -> None:
        self.page.click(selector)
        self.settle()

    def slide(self, selector: str, value: float) -> None:
        self.page.locator(selector).fill(str(value))
        self.settle()

    def settle(self) -> None:
        """Wait for the answers of the engine: one call more has been answered after all others."""
        self.page.evaluate("engine.call('next', { position: 0 }).then(() => new Promise(requestAnimationFrame))")

    def spec(self) -> Any:
        return self.page.evaluate("state.interventions")

    def loss_change(self) -> float:
        return float(self.state("lossChange"))

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()


@pytest.fixture
def panels(open_view: Any) -> Any:
    return lambda tab, page=None, **size: Panels(open_view(page or page_of(), **size), tab)


def effect(name: str, kind: Kind = "zero") -> float:
    """Change of the loss of the text without a part, by `inspection`."""
    return float(ablation(model_of(), torch.tensor([CHARS.encode(TEXT)]), parts=[name], kind=kind).mean[0])


def without(name: str) -> tuple[float, int]:
    """Probability of the expected last token without a part, as the page names it, and the token expected then."""
    kind, key = name.split()
    model, row = model_of(), torch.tensor([CHARS.encode(TEXT)])
    layer = model.blocks[int(key.split(".")[0])]
    with torch.no_grad():
        expected = int(model(row)[0, -1].argmax())
        with contextlib.ExitStack() as stack:
            if kind == "heads":
                stack.enter_context(without_head(model, *map(int, key.split("."))))
            if kind in ("mlps", "layers"):
                stack.callback(layer.mlp.register_forward_hook(lambda _, __, out: out * 0).remove)
            if kind == "layers":
                stack.callback(layer.attn.register_forward_hook(lambda _, __, out: out * 0).remove)
            after = model(row)[0, -1].softmax(0)
    return float(after[expected]), int(after.argmax())


def select(panels: Panels, position: int, layer: int, head: int) -> None:
    panels.page.evaluate(f"change({{ selected: {position}, layer: {layer}, head: {head} }})")
    panels.settle()


def test_one_click_switches_the_selected_head_off_and_before_and_after_stand_side_by_side(panels: Any) -> None:
    page = panels("change")
    select(page, N_TOKENS - 1, 1, 0)
    assert page.state("lossChange") == ""
    page.click("#head-off")
    assert page.spec() == {"heads": {"1.0": {"scale": 0}}}
    assert page.loss_change() == pytest.approx(effect("1.0"), abs=1e-4)
    assert page.texts("#changes bdi") == ["head 1.0: switched off (zero)"]
    rows = page.page.evaluate("engine.call('compare', { position: state.selected, count: 1e3 })")
    assert len(rows) == CHARS.vocab_size
    with torch.no_grad():
        base = model_of()(torch.tensor([CHARS.encode(TEXT)]))[0, -1].softmax(0)
    assert [row["base"] for row in rows] == pytest.approx([float(base[row["token"]]) for row in rows], abs=1e-5)
    larger = [max(row["base"], row["changed"]) for row in rows]
    assert larger == sorted(larger, reverse=True)
    assert sum(row["changed"] for row in rows) == pytest.approx(1, abs=1e-5)
    cells = page.texts("#compared tr:first-child td")
    assert cells[0] == rows[0]["label"]
    assert cells[4][0] in "+\u2212"
    assert len(page.texts("#loss-tokens .token")) == N_TOKENS
    page.page.locator("#loss-tokens .token").nth(4).click()
    assert page.state("selected") == "4"
    page.click("#head-off")
    assert page.spec() is None
    assert not page.page.locator("#loss-tokens").is_visible()


def test_parts_are_switched_off_by_zero_or_by_their_mean_and_each_change_is_undone_alone(panels: Any) -> None:
    page = panels("change")
    page.page.locator("input[name=off][value=mean]").check(force=True)
    page.click("[data-part='heads 0.1']")
    assert page.spec() == {"heads": {"0.1": {"mean": True}}}
    assert page.loss_change() == pytest.approx(effect("0.1", "mean"), abs=1e-4)
    page.page.locator("input[name=off][value=zero]").check(force=True)
    page.click("[data-part='mlps 1']")
    page.click("[data-part='layers 0']")
    page.click("[data-part='attentions 1']")
    assert page.texts("#changes bdi") == [
        "head 0.1: its mean output at every position",
        "layer 0 (attention and MLP): switched off (zero)",
        "MLP of layer 1: switched off (zero)",
        "attention of layer 1: switched off (zero)",
    ]
    for number in (0, 1, 1):
        page.page.locator("#changes button").nth(number).click()
    page.settle()
    assert page.spec() == {"layers": {"0": "zero"}}
    assert page.loss_change() == pytest.approx(effect("layer0"), abs=1e-4)
    page.click("#reset-all")
    assert page.spec() is None
    assert page.page.locator("#reset-all").is_disabled()
    page.open("next")
    page.settle()
    assert page.texts("#why-title") == [f"Why \u201c{page.texts('#next bdi')[0]}\u201d?"]
    page.click("#why-measure")
    page.page.wait_for_selector("html[data-measured]")
    page.settle()
    why = page.page.locator("#why-parts li")
    shown = [float(text.split("%")[0].split()[-1]) for text in why.all_inner_texts()]
    probability, other = without(str(why.first.get_attribute("data-why")))
    assert shown[0] == pytest.approx(100 * probability, abs=0.06)
    assert why.first.get_attribute("data-expects"), "those that decide come first"
    why.first.locator("button").click()
    page.settle()
    assert page.page.locator("#next li").first.get_attribute("data-token") == str(other)
    why.first.locator("button").click()
    page.settle()
    assert page.spec() is None
    select(page, 3, 0, 0)
    assert page.page.locator("#why-measure").is_visible(), "it was measured at another token"
    select(page, N_TOKENS - 1, 0, 0)
    page.open("change")
    most = max(("0.0", "0.1", "1.0", "1.1"), key=effect)
    assert page.state("measured") == most
    words = page.page.locator(f"[data-part='heads {most}']").get_attribute("title")
    assert f"{effect(most):+.3f}".replace("-", "\u2212") in words
    marked = page.page.locator("[data-other='1']").evaluate_all("parts => parts.map((part) => part.dataset.part)")
    assert marked, "what the model expects after the last token can be changed"
    expected = page.state("expected")
    page.click(f"[data-part='{marked[0]}']")
    assert page.state("expectedChanged") != expected


def test_a_head_is_scaled_or_made_to_attend_to_one_token_and_a_cell_gets_the_weight_that_is_set(panels: Any) -> None:
    page = panels("change")
    select(page, 5, 1, 1)
    page.slide("#head-scale", 1.5)
    assert page.spec() == {"heads": {"1.1": {"scale": 1.5}}}
    page.slide("#head-scale", 1)
    assert page.spec() is None
    for way, key in (("previous", 4), ("first", 0)):
        page.click(f"#head-{way}")
        assert page.spec() == {"heads": {"1.1": {"attend": way}}}
        assert weights_of_row(page, 1, 1, 5) == pytest.approx([float(i == key) for i in range(6)])
    page.click("#head-first")
    page.page.select_option("#cell-key", "2")
    own = weights_of_row(page, 1, 1, 5)
    assert float(page.page.locator("#cell-weight").input_value()) == pytest.approx(own[2], abs=0.006)
    page.slide("#cell-weight", 0.75)
    changed = weights_of_row(page, 1, 1, 5)
    assert changed[2] == pytest.approx(0.75)
    assert changed[:2] + changed[3:] == pytest.approx([w * 0.25 / (1 - own[2]) for w in own[:2] + own[3:]], abs=1e-5)
    assert page.texts("#changes bdi") == ["head 1.1: #5 \u201ca\u201d attends to #2 \u201ce\u201d with weight 0.75"]
    page.click("#cell-undo")
    assert page.spec() is None


def weights_of_row(page: Panels, layer: int, head: int, query: int) -> list[float]:
    """The row of a head's pattern that the engine computes now."""
    row = page.page.evaluate(
        "([layer, head, query]) => engine.call('patterns', { run: 'changed' }).then(({ n, weights }) => {"
        "  const start = (2 * layer + head) * n * (n + 1) / 2 + query * (query + 1) / 2;"
        "  return [...weights.subarray(start, start + query + 1)]; })",
        [layer, head, query],
    )
    return [float(weight) for weight in row]


def test_the_lens_reads_each_layer_as_inspection_does_before_and_after_the_changes(panels: Any) -> None:
    page, tokens = panels("lens"), torch.tensor([CHARS.encode(TEXT)])
    select(page, 5, 0, 0)
    ids, probabilities = logit_lens(model_of(), tokens).top(1)
    assert [int(token) for token in page.state("lens").split()] == ids[:, 0, 5, 0].tolist()
    assert page.texts("#lens-rows th") == ["embedding", "after layer 0", "after layer 1 (output)"]
    shown = page.texts("#lens-rows small")
    assert [float(text.strip(" %")) for text in shown] == pytest.approx(
        (100 * probabilities[:, 0, 5, 0]).tolist(), abs=0.06
    )
    assert "\u201ct\u201d" in page.view.text("#lens-target")
    page.page.evaluate("change({ interventions: { layers: { 1: 'zero' } } })")
    page.settle()
    after = page.texts("#lens-rows tr td:nth-child(4) bdi")
    assert after[1] == after[2], "the last layer adds nothing"
    select(page, N_TOKENS - 1, 0, 0)
    assert "no target" in page.view.text("#lens-target")


def write(page: Panels, count: int, **settings: Any) -> list[int]:
    for name, value in {"count": count, **settings}.items():
        page.page.fill(f"#write-{name}", str(value))
    page.page.click("#write-many")
    page.page.wait_for_selector("#write-stop:disabled")
    return [int(token) for token in page.state("written").split()]


def test_greedy_text_is_that_of_pytorch_and_the_same_seed_writes_the_same_text(panels: Any) -> None:
    page, tokens = panels("write"), CHARS.encode(TEXT)
    with torch.no_grad():
        for _ in range(10):
            tokens.append(int(model_of()(torch.tensor([tokens]))[0, -1].argmax()))
    assert write(page, 10, temperature=0) == tokens[N_TOKENS:]
    page.page.evaluate("writing.tree = null, drawWrite()")
    drawn = write(page, 4, temperature=1.2, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=3)
    drawn = write(page, 4)
    assert len(drawn) == 8
    page.page.evaluate("writing.tree = null, drawWrite()")
    assert write(page, 8) == drawn, "at once as in two parts"
    page.page.evaluate("writing.tree = null, drawWrite()")
    assert write(page, 8, seed=4) != drawn
    assert "room for 4 more" in page.view.text("#write-room")
    assert len(write(page, 20, temperature=0)) == CONTEXT - N_TOKENS
    assert "context is full" in page.view.text("#write-room")
    assert page.page.locator("#write-step").is_disabled()


def test_a_written_token_is_replaced_by_another_of_its_list_and_the_old_branch_is_one_click_away(panels: Any) -> None:
    page = panels("write")
    for _ in range(3):
        page.click("#write-step")
    first = page.state("written").split()
    page.page.locator("#written .drawn").nth(1).click()
    other = page.page.locator(".alternative[aria-pressed=false]").first
    token = other.get_attribute("data-token")
    other.click()
    assert page.state("written").split() == [first[0], token]
    page.click("#write-step")
    second = page.state("written").split()
    assert second[:2] == [first[0], token]
    assert len(second) == 3
    assert page.state("branches") == "2"
    page.page.locator(".branch[aria-current=false]").first.click()
    assert page.state("written").split() == first
    page.page.locator("#written .drawn").nth(2).focus()
    page.page.keyboard.press("ArrowLeft")
    assert page.page.locator("#written .drawn").nth(1).get_attribute("aria-pressed") == "true"
    page.click("#write-keep")
    assert page.page.input_value("#area") == TEXT + CHARS.decode_bytes([int(token) for token in first]).decode()
    assert page.state("written") == ""


def test_interventions_act_on_writing_and_wrong_settings_are_refused_with_their_range(panels: Any) -> None:
    page = panels("write")
    plain = write(page, 6, temperature=0)
    page.page.evaluate("change({ interventions: { layers: { 0: 'zero', 1: 'zero' } } })")
    page.settle()
    assert page.page.locator("#write-changes").is_visible()
    page.page.evaluate("writing.tree = null, drawWrite()")
    model, tokens = model_of(), CHARS.encode(TEXT)
    with torch.no_grad():  # two layers that add nothing: the embedding alone
        for _ in range(6):
            stream = model.final_norm(model.token_embedding(torch.tensor([tokens[-1]])))
            tokens.append(int(model.lm_head(stream)[0].argmax()))
    changed = write(page, 6)
    assert changed == tokens[N_TOKENS:]
    assert changed != plain
    page.page.fill("#write-top_p", "1.5")
    page.page.click("#write-step")
    assert page.view.text("#write-message") == "top-p: takes a number from 0.000001 to 1, or nothing."
    assert page.page.locator("#write-top_p").get_attribute("aria-invalid") == "true"
    assert len(page.state("written").split()) == 6


def test_the_link_keeps_the_changes_and_leaves_out_what_the_model_does_not_have(panels: Any) -> None:
    page = panels("change")
    good = {"heads": {"1.0": {"scale": 2}}, "cells": [{"layer": 0, "head": 1, "query": 3, "key": 1, "weight": 0.5}]}
    bad = {
        "heads": {"9.0": {"scale": 0}, "0.0": {"scale": "<b>", "attend": "toString"}, "__proto__": {}},
        "mlps": {"0": "gone", "7": "zero"},
    }
    bad["heads"] |= {"00.1": {"scale": 0}, "0.1": {"scale": 1}}  # would be listed, and change nothing
    bad["cells"] = [{"layer": 0, "head": 0, "query": 2, "key": 1, "weight": "0.5"}, None]
    bad["cells"] += [{"layer": 0, "head": 0, "query": CONTEXT, "key": 1, "weight": 0.5}]
    read = "text => links.get('changes').read(text).interventions"
    assert page.page.evaluate(read, json.dumps(good)) == good
    assert page.page.evaluate(read, json.dumps(good | {"cells": good["cells"] * 3000})) == good
    assert page.page.evaluate(read, json.dumps(bad)) is None
    page.page.evaluate('location.hash = new URLSearchParams({ changes: \'{"mlps":{"0":"zero"}}\' })')
    page.page.wait_for_selector("html[data-changes='1']")
    page.settle()
    assert page.loss_change() == pytest.approx(effect("mlp0"), abs=1e-4)
    assert page.page.evaluate("new URLSearchParams(linkText().slice(1)).get('changes')") == '{"mlps":{"0":"zero"}}'


def test_panels_fit_a_narrow_window_and_hostile_tokens_stay_text(panels: Any) -> None:
    page = panels("change", page_of(HOSTILE[0].replace("(1)", "").lower().replace("=", "")), width=360, height=640)
    page.click("#head-off")
    for tab in ("change", "lens", "write"):
        page.open(tab)
        page.settle()
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 360, tab
        assert page.page.locator("img").count() == 0


def test_a_slider_that_asks_faster_than_the_model_reads_ends_at_its_last_value(panels: Any) -> None:
    page = panels("change")
    select(page, N_TOKENS - 1, 0, 0)
    page.page.evaluate(
        """() => { for (let i = 0; i < 20; i++) {
            $("head-scale").value = 2 - 0.1 * i;
            $("head-scale").dispatchEvent(new Event("input")); }
            $("head-scale").value = 0;
            $("head-scale").dispatchEvent(new Event("input")); }"""
    )
    page.settle()
    assert page.loss_change() == pytest.approx(effect("0.0"), abs=1e-4)
    answered = int(page.state("numbers"))
    assert answered < 10, "stale values are not computed"
