"""The live page's lesson in a real browser: its numbers are PyTorch's, in every step, for every kind of attention."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from attention_pages import HOSTILE
from test_engine import make

from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection.capture import attention_hooks, capture_attention
from minigpt.model.gpt import GPT
from minigpt.pages.live.page import live_page

TEXT = "the cat sat on a mat"
POSITION, LAYER, HEAD = 9, 1, 1
STEPS = ("Token", "Embedding", "Query and keys", "Scores", "Mask", "Softmax", "Weighted values")
STEPS += ("Heads together", "MLP", "Logits")
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True},
    "grouped": {"n_kv_head": 1, "position": "alibi", "logit_softcap": 5.0},
    "post_norm": {"block": "post_norm", "window": 4},
    "parallel": {"block": "parallel", "position": "sinusoidal", "mlp": "gelu_exact"},
    "cosine": {"similarity": "cosine"},
    "gaussian": {"similarity": "gaussian"},
    "hopfield": {"similarity": "hopfield"},
    "symmetric": {"similarity": "symmetric"},
    "uniform": {"similarity": "uniform", "position": "none", "qk_norm": False},
    "linear": {"similarity": "linear"},
    "hard": {"similarity": "hard", "softmax_temperature": 2.0},
}


def model_of(**kind: Any) -> GPT:
    return make({"vocab_size": 257, "context_length": 32, "n_layer": 2, "n_head": 2, "n_embd": 16} | kind)


def tokens(text: str = TEXT) -> torch.Tensor:
    return torch.tensor([BytesTokenizer().encode(text)])


class Lesson:
    """A live page with the lesson in front, at one token and head."""

    def __init__(self, view: Any) -> None:
        self.view, self.page = view, view.page
        self.page.click("#tab-lesson")
        self.page.click(f".token[data-position='{POSITION}']")
        self.page.click(f".thumb[aria-label^='head {LAYER}.{HEAD}']")
        self.page.wait_for_selector(f"html[data-lesson-of^='{LAYER}.{HEAD} {POSITION} ']", state="attached")

    def go(self, title: str) -> None:
        self.page.click(f"#lesson-dots button[title='{title}']")
        assert self.title().endswith(title)

    def title(self) -> str:
        return str(self.view.text("#lesson-title"))

    def sentences(self) -> str:
        return " ".join(self.page.locator("#lesson-body p").all_text_contents())

    def column(self, number: int) -> dict[int, float]:
        """Position -> number in a column of the step's first table."""
        rows = self.page.locator("#lesson-body table").first.locator("tbody tr").all_inner_texts()
        found = {}
        for row in rows:
            name, *cells = row.split("\t")
            if place := re.search(r"#(\d+)$", name.strip()):
                found[int(place[1])] = number_of(cells[number])
        return found


def number_of(text: str) -> float:
    return float(text.replace("\u2212\u221e", "-inf").replace("\u2212", "-").replace("<", "").rstrip(" %"))


@pytest.fixture
def open_lesson(open_view: Any) -> Any:
    def open_page(model: GPT, text: str = TEXT, **size: Any) -> Lesson:
        page = live_page(model, BytesTokenizer(), text, title="tiny", facts={}, kind="float32")
        return Lesson(open_view(page, **size))

    return open_page


def scores_of(model: GPT) -> np.ndarray[Any, Any]:
    """(T, T) scores of the head before the mask."""
    found = []

    def keep(layer: int, query: torch.Tensor, key: torch.Tensor, *_: Any) -> None:
        if layer == LAYER:
            found.append(query[0, HEAD] @ key[0, HEAD].T / query.shape[-1] ** 0.5)

    with attention_hooks(model, keep), torch.no_grad():
        model(tokens())
    return found[0].numpy()


def test_each_step_shows_the_numbers_of_the_model(open_lesson: Any) -> None:
    model = model_of()
    lesson, scores = open_lesson(model), scores_of(model)
    with capture_attention(model) as maps, torch.no_grad():
        logits = model(tokens())[0, POSITION]
    weights = maps[LAYER][0, HEAD, POSITION].numpy()

    lesson.go("Token")
    assert lesson.column(0)[POSITION] == ord(TEXT[POSITION])
    lesson.go("Scores")
    shown = lesson.column(1)
    assert {POSITION, POSITION + 1, POSITION + 3} <= set(shown)
    assert list(shown.values()) == pytest.approx([scores[POSITION, key] for key in shown], abs=0.006)
    partner = int(weights[:POSITION].argmax())
    both = re.search(r"column .*?: ([\u2212\d.]+)\. The other way.*?column .*?: ([\u2212\d.]+)\.", lesson.sentences())
    assert both is not None
    there_and_back = [scores[POSITION, partner], scores[partner, POSITION]]
    assert [number_of(text) for text in both.groups()] == pytest.approx(there_and_back, abs=0.006)

    lesson.go("Mask")
    assert [key for key, score in lesson.column(1).items() if score == -np.inf] == [10, 11, 12]
    unmasked = np.exp(scores[POSITION]) / np.exp(scores[POSITION]).sum()
    lost = re.search(r"would have got ([\d.]+) %", lesson.sentences())
    assert lost is not None
    assert float(lost[1]) == pytest.approx(100 * unmasked[POSITION + 1 :].sum(), abs=0.06)

    lesson.go("Softmax")
    shown = lesson.column(2)
    assert max(shown) == POSITION
    assert list(shown.values()) == pytest.approx([weights[key] for key in shown], abs=0.0011)

    lesson.go("Logits")
    first = lesson.page.locator("#lesson-body tbody tr").first.inner_text().split("\t")
    assert number_of(first[1]) == pytest.approx(float(logits.max()), abs=0.006)
    assert number_of(first[2]) == pytest.approx(100 * float(logits.softmax(-1).max()), abs=0.06)


def test_arrows_and_buttons_go_through_the_steps_and_the_link_keeps_the_step(open_lesson: Any) -> None:
    lesson = open_lesson(model_of(), "".join(HOSTILE)[:30], width=360, height=640)
    page = lesson.page
    assert lesson.title() == "1 of 10: Token"
    assert page.locator("#lesson-back").is_disabled()
    page.click("#lesson-on")
    assert lesson.title() == "2 of 10: Embedding"
    page.locator("#lesson-on").press("ArrowRight")
    page.locator("#lesson-on").press("ArrowRight")
    canvas = page.locator("#lesson-body canvas")
    canvas.press("ArrowRight")
    canvas.press("ArrowDown")
    assert re.search(
        r"query \u201c.*\u201d #\d+, key \u201c.*\u201d #\d+: \u2212?\d", page.locator("figcaption").text_content()
    )
    assert lesson.title() == "4 of 10: Scores", "arrows in a picture read its cells"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert "step=3" in page.evaluate("linkText()")
    page.locator("#lesson-on").press("ArrowLeft")
    assert lesson.title() == "3 of 10: Query and keys"
    # Interventions act on the numbers of the lesson.
    page.evaluate("change({ interventions: { heads: { '1.1': { attend: 'first' } } }, lessonStep: 5 })")
    page.wait_for_selector("#lesson-where:has-text('with your changes')")
    assert lesson.column(2)[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_model_has_all_steps(open_lesson: Any, kind: dict[str, Any]) -> None:
    model = model_of(**kind)
    lesson = open_lesson(model)
    for title in STEPS:
        lesson.go(title)
        assert not re.search(r"NaN|undefined|null|\[object", lesson.page.inner_text("#panel-lesson"))
    with capture_attention(model) as maps, torch.no_grad():
        model(tokens())
    lesson.go("Weighted values")
    weights, shown = maps[LAYER][0, HEAD, POSITION], lesson.column(0)
    assert list(shown.values()) == pytest.approx([float(weights[key]) for key in shown], abs=0.0011)
