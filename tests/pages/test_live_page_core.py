"""The live page in a real browser: typing, tokens, heads, the next token, tabs and links; with a worker and without."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_pages import HOSTILE, TITLE, View
from test_engine import make

from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer
from minigpt.inspection.capture import capture_attention
from minigpt.model.gpt import GPT
from minigpt.pages.colormap import COLOURS
from minigpt.pages.documents import Page
from minigpt.pages.live.page import live_page

BYTES = BytesTokenizer()
CONTEXT = 40
TEXT = "the cat sat on the mat"
N = len(TEXT)
DRAWN = "(({ busy, numbers, drawn }) => busy === '' && numbers === drawn)(document.documentElement.dataset)"


def model_of(vocab_size: int = BYTES.vocab_size) -> GPT:
    return make({"vocab_size": vocab_size, "context_length": CONTEXT, "n_head": 2})


def page_of(text: str = TEXT, **fields: Any) -> Page:
    fields = {"title": "tiny", "facts": {"trained on": "nothing"}} | fields
    return live_page(model_of(), BYTES, text, kind="float32", **fields)


def logits_of(text: str) -> torch.Tensor:
    with torch.no_grad():
        return model_of()(torch.tensor([BYTES.encode(text)]))[0]


def loss_of(text: str) -> float:
    return float(F.cross_entropy(logits_of(text)[:-1], torch.tensor(BYTES.encode(text)[1:])))


class Workerless:
    """A browser in which no Web Worker can be made, as in some frames."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def new_page(self) -> Any:
        page = self.browser.new_page()
        page.add_init_script("delete window.Worker")
        return page


def settle(view: View) -> None:
    """Wait until the newest numbers and their maps are drawn."""
    wait(view, DRAWN)


def wait(view: View, condition: str) -> None:
    """Playwright's own wait_for_function evaluates text, which the page's policy forbids."""
    look = f"() => (({condition}) ? done(true) : Date.now() > end ? done(false) : setTimeout(look, 5))"
    promise = f"new Promise((done) => {{ const end = Date.now() + 20000, look = {look}; look(); }})"
    assert view.page.evaluate(promise), condition


def tokens_of(view: View) -> list[str]:
    return view.page.locator("#tokens .token").all_text_contents()


def type_text(view: View, text: str) -> None:
    view.page.locator("#area").fill(text)
    settle(view)


def probabilities(view: View) -> list[tuple[int, str]]:
    rows = "[...document.querySelectorAll('#next li')].map((li) => [+li.dataset.token, li.lastChild.textContent])"
    return [tuple(row) for row in view.page.evaluate(rows)]


def percent(probability: float) -> str:
    return f"{100 * probability:.{2 if probability < 0.1 else 1}f} %"


def test_the_first_view_explains_itself_and_shows_the_numbers_of_pytorch(open_view: Any) -> None:
    view = open_view(page_of(facts={"<b>source": HOSTILE[0]}, title=TITLE))
    settle(view)
    assert view.text("h1") == TITLE
    assert view.text("#facts dt") == "<b>source"
    assert view.text("#facts dd") == HOSTILE[0]
    assert "sends nothing anywhere" in " ".join(view.text("#intro").split())
    assert view.state("engine") == "worker"
    assert tokens_of(view) == [letter.replace(" ", "\u2423") for letter in TEXT]
    assert float(view.state("loss")) == pytest.approx(loss_of(TEXT), abs=1e-4)
    assert f"loss {loss_of(TEXT):.3f} nats" in view.text("#status")
    assert view.text("#count") == f"{N} of at most {CONTEXT} tokens"
    best = logits_of(TEXT)[-1].softmax(0).topk(10)
    expected = list(zip(best.indices.tolist(), map(percent, best.values.tolist()), strict=True))
    view.page.wait_for_selector("#next li")
    assert probabilities(view) == expected


def test_maps_scores_and_strongest_keys_are_those_of_the_model(open_view: Any) -> None:
    view = open_view(page_of())
    settle(view)
    model = model_of()
    with capture_attention(model) as captured, torch.no_grad():
        model(torch.tensor([BYTES.encode(TEXT)]))
    maps = np.stack([weights[0].numpy() for weights in captured])
    previous = np.diagonal(maps, offset=-1, axis1=2, axis2=3).mean(-1)
    assert view.selected() == np.unravel_index(previous.argmax(), previous.shape), "opens on the previous-token head"
    assert view.page.locator(".score").all_text_contents() == [f"{score:.2f}" for score in previous.flatten()]
    pattern = maps[view.selected()]
    pixels = view.pixels()
    lower = np.tril(np.ones((N, N), dtype=bool))
    assert not pixels[~lower].any()
    levels = np.rint(255 * np.sqrt(pattern[lower])).astype(int)
    assert np.abs(pixels[lower][:, :3].astype(int) - COLOURS[levels]).max() <= 8, "a level or two by rounding"
    key = int(pattern[-1].argmax())
    assert view.page.locator("#keys-one li").first.get_attribute("data-key") == str(key)
    read = f"\u201c{tokens_of(view)[key]}\u201d #{key} with weight {pattern[-1, key]:.3f}"
    assert view.text("#readout") == f"\u201ct\u201d #{N - 1} attends to {read}"
    mean = maps.mean((0, 1))[-1]
    assert view.page.locator("#keys-all li").first.get_attribute("data-key") == str(int(mean.argmax()))
    view.page.locator("#score").select_option("mean_distance")
    view.page.locator("#best").click()
    distance = (maps * (np.arange(N)[:, None] - np.arange(N))).sum(-1)[..., 1:].mean(-1)
    assert view.selected() == np.unravel_index(distance.argmax(), distance.shape)
    assert f"it looks {distance.max():.1f} tokens back" in view.text("#head-words")


def test_typing_follows_each_edit_and_only_the_newest_text_is_drawn(open_view: Any) -> None:
    view = open_view(page_of())
    view.page.locator("#area").press_sequentially(" again")
    settle(view)
    assert view.state("loss") == view.page.evaluate("String(state.loss.base)")
    assert float(view.state("loss")) == pytest.approx(loss_of(f"{TEXT} again"), abs=1e-4)
    assert view.state("selected") == str(N + 5), "the end stays selected"
    view.page.locator("#tokens .token").nth(4).click()
    type_text(view, "the hat")
    assert view.state("selected") == "4", "an earlier token stays too"
    view.page.evaluate("for (const text of ['a', 'ab', 'abc', 'a cat']) { $('area').value = text; typed(); }")
    settle(view)
    assert tokens_of(view) == ["a", "\u2423", "c", "a", "t"]
    assert view.page.locator("#area").input_value() == "a cat"
    type_text(view, "")
    assert tokens_of(view) == ["\u2039end of text\u203a"]
    type_text(view, "x" * (CONTEXT + 3))
    assert view.text("#too-long") == f"The model reads the first {CONTEXT} tokens; 3 more are left out."
    type_text(view, HOSTILE[0])
    assert view.page.locator("#tokens *").count() == len(tokens_of(view)), "nothing in a token but text"


def test_tokens_heads_cells_and_tabs_are_chosen_by_pointer_and_by_keys(open_view: Any) -> None:
    view = open_view(page_of())
    settle(view)
    press = view.page.keyboard.press
    view.page.locator("#tokens .token").nth(7).click()
    assert view.page.locator("#tokens [aria-pressed=true]").get_attribute("data-position") == "7"
    view.page.locator("#tokens [tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        press(key)
    assert view.state("selected") == "8"
    assert view.page.evaluate("document.activeElement.dataset.position") == "8"
    press("Home")
    assert view.state("selected") == "0"
    view.page.locator(".thumb").nth(0).click()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        press(key)
    assert view.selected() == (1, 1)
    assert view.page.evaluate("document.activeElement.title") == "layer 1, head 1"
    view.page.mouse.click(*cell(view, 10, 3))
    assert view.page.evaluate("state.cell") == {"query": 10, "key": 3}
    assert view.text("#readout").startswith("\u201ct\u201d #10 attends to \u201c\u2423\u201d #3 with")
    view.page.mouse.click(*cell(view, 3, 10))
    assert view.state("selected") == "10", "nothing is above the diagonal"
    view.page.locator("#large").focus()
    for key in ("ArrowDown", "ArrowRight"):
        press(key)
    assert view.page.evaluate("state.cell") == {"query": 11, "key": 4}
    view.page.locator("#tab-next").focus()
    press("ArrowRight")
    assert view.state("tab") != "next"
    assert not view.page.locator("#panel-next").is_visible()
    press("ArrowLeft")
    assert view.page.locator("#panel-next").is_visible()


def cell(view: View, query: int, key: int) -> tuple[float, float]:
    """The middle of a cell of the large map, in the window."""
    view.page.locator("#large").scroll_into_view_if_needed()
    box = view.page.locator("#large").bounding_box()
    return box["x"] + (key + 0.5) / N * box["width"], box["y"] + (query + 0.5) / N * box["height"]


def test_a_click_on_a_next_token_goes_on_with_it_or_puts_it_into_the_text(open_view: Any) -> None:
    view = open_view(page_of())
    view.page.wait_for_selector("#next li")
    token = int(logits_of(TEXT)[-1].argmax())
    view.page.locator("#next button").first.click()
    settle(view)
    assert view.page.evaluate("state.tokens") == [*BYTES.encode(TEXT), token]
    assert view.state("selected") == str(N)
    type_text(view, TEXT)
    view.page.locator("#tokens .token").nth(2).click()
    view.page.wait_for_selector("#next [aria-current]")
    assert view.page.locator("#next [aria-current]").get_attribute("data-token") == str(ord(TEXT[3]))
    best = int(logits_of(TEXT)[2].argmax())
    view.page.locator(f"#next [data-token='{best}'] button").click()
    settle(view)
    changed = BYTES.encode(TEXT)
    changed[3] = best
    assert view.page.evaluate("state.tokens") == changed
    assert view.state("selected") == "3"


def test_a_link_keeps_text_tokens_position_head_and_tab(open_view: Any) -> None:
    view = open_view(page_of())
    view.page.evaluate("change({ text: 'a & <b> #1', selected: 3, layer: 1, head: 0, tab: 'write' })")
    settle(view)
    wait(view, "location.hash.includes('write') && location.hash.includes('at=3')")
    link = view.page.evaluate("linkText()")
    view.page.evaluate("change({ tokens: [195, 116], selected: 0 })")
    settle(view)
    wait(view, "location.hash.includes('tokens=195.116')")
    view.page.evaluate("link => { location.hash = link; }", link)
    wait(view, "state.text === 'a & <b> #1' && state.selected === 3")
    settle(view)
    assert (view.state("tab"), view.selected()) == ("write", (1, 0))
    view.page.evaluate("location.hash = '#text=ok&at=99999&head=7.x&tab=toString&tokens=1.-2&__proto__=1&change=%7B'")
    wait(view, "state.text === 'ok'")
    settle(view)
    assert (view.state("tab"), view.selected()) == ("write", (1, 0)), "what is wrong in a link is left out"
    read = "([name, text]) => { try { return links.get(name).read(text); } catch { return null; } }"
    wrong = [("tokens", ""), ("tokens", "1..2"), ("at", ""), ("at", "0x3"), ("head", "1"), ("head", "1.0.1")]
    assert [view.page.evaluate(read, each) for each in wrong] == [None] * len(wrong)
    assert len(view.page.evaluate(read, ("text", "e" + "\u0301" * 1_000_000))["text"]) == 30 * CONTEXT
    assert view.page.locator("#area").get_attribute("maxlength") == str(30 * CONTEXT)


def test_without_a_worker_the_page_itself_computes_and_a_link_opens_it(open_view: Any) -> None:
    view = open_view(page_of(), kind=lambda browser, *arguments: View(Workerless(browser), *arguments))
    assert view.state("engine") == "page"
    assert float(view.state("loss")) == pytest.approx(loss_of(TEXT), abs=1e-4)
    view.page.goto("about:blank")
    view.page.goto(f"{view.url}#text=the+hat&at=2&head=0.1&tab=lens")
    view.page.wait_for_selector("html[data-ready='1']")
    settle(view)
    assert float(view.state("loss")) == pytest.approx(loss_of("the hat"), abs=1e-4)
    assert (view.state("selected"), view.selected(), view.state("tab")) == ("2", (0, 1), "lens")
    del view.requests[1:]


def test_a_character_that_the_model_lacks_is_named_and_the_last_text_stays(open_view: Any) -> None:
    chars = CharsTokenizer("aceht ")
    view = open_view(live_page(model_of(chars.vocab_size), chars, "the cat", title="t", facts={}, kind="float32"))
    view.page.locator("#area").fill("the bat")
    wait(view, "$('problem').textContent")
    assert view.text("#problem").startswith("character 'b' (U+0062) at position 4")
    assert "".join(tokens_of(view)) == "the\u2423cat"
    type_text(view, "the hat")
    assert view.text("#problem") == ""


@pytest.mark.parametrize("width", [360, 700, 1200])
def test_nothing_scrolls_sideways_and_every_control_has_a_name(open_view: Any, width: int) -> None:
    view = open_view(page_of("a long line " * 3), width=width, height=640)
    settle(view)
    for tab in view.page.evaluate("[...tabs.keys()]"):
        view.page.evaluate("tab => change({ tab })", tab)
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width, tab
    places = view.page.locator("[role=tab]").evaluate_all("tabs => tabs.map((tab) => tab.offsetTop)")
    assert len(set(places)) == 1 or width < 1200, "the tabs are on one line"
    assert view.page.evaluate("$('side').compareDocumentPosition($('heads')) === 4"), "Tab follows the order on a phone"
    buttons = view.page.locator("main button:not(.put, .thumb, .part, .drawn, .branch, .alternative), summary")
    texts = [text.lstrip("\u2190 ") for text in buttons.all_text_contents()]
    assert [text for text in texts if not text[0].isupper()] == [], "buttons and tabs are in sentence case"
    named = "each.textContent.trim() || each.ariaLabel || each.title || each.labels?.length"
    controls = "[...document.querySelectorAll('button, textarea, select, input, [role=button]')]"
    assert view.page.evaluate(f"{controls}.every((each) => !each.offsetParent || {named})")
