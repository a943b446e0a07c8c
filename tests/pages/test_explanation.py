"""Why each token was written: what the page holds is what was computed, and it shows it in a real browser, safely."""

import base64
import dataclasses
import functools
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention_pages import HOSTILE, View
from test_engine import KINDS, make

from minigpt.config import GenerationConfig
from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer
from minigpt.errors import UserError
from minigpt.generation.engine import window_start
from minigpt.generation.generator import Writer
from minigpt.generation.sampling import apply_filters
from minigpt.inspection import packing
from minigpt.inspection.capture import capture_attention
from minigpt.pages.documents import Page
from minigpt.pages.explanation import explain

ALPHABET = "\n\tabcdefghijklmnopqrstuvwxyz <>&/'ABCDEFGHIJKLMNOP{}"
ALL: dict[str, Any] = {
    "max_new_tokens": 12,
    "temperature": 0.7,
    "repetition_penalty": 1.3,
    "forbidden_tokens": [3, 4],
    "top_k": 20,
    "top_p": 0.8,
    "min_p": 0.05,
    "min_new_tokens": 5,
}


def writer_of(kind: dict[str, Any] | None = None) -> Writer:
    tokenizer = CharsTokenizer(ALPHABET)
    model = make({"vocab_size": tokenizer.vocab_size, "context_length": 24, **(kind or {})})
    return Writer(model, tokenizer)


def data_of(page: str) -> dict[str, Any]:
    return json.loads(re.search('"application/json">(.*?)</script>', page, re.DOTALL)[1])


def levels_of(data: dict[str, Any]) -> list[np.ndarray]:
    """For each step (L, H, S), from what the page holds."""
    sizes = [data["n_prompt"] + step - start for step, start in enumerate(data["starts"])]
    flat = np.frombuffer(zlib.decompress(base64.b64decode(data["levels"]), -15), np.uint8)
    heads = flat.reshape(data["n_layer"], data["n_head"], sum(sizes))
    return np.split(heads, np.cumsum(sizes)[:-1], axis=2)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_weights_and_probabilities_are_those_of_a_pass_without_a_cache_also_past_the_context(
    kind: dict[str, Any],
) -> None:
    writer = writer_of(kind)
    config = GenerationConfig(max_new_tokens=30, top_k=None, temperature=1.0)
    _, page = explain(writer, "abcdefg", config)
    data = data_of(page)
    tokens = data["tokens"]
    for step, (told, levels) in enumerate(zip(data["steps"], levels_of(data), strict=True)):
        n_tokens = data["n_prompt"] + step
        start = window_start(n_tokens, 24)
        with torch.no_grad(), capture_attention(writer.model) as maps:
            logits = writer.model(torch.tensor([tokens[start:n_tokens]]))[0, -1].double()
        expected = torch.stack([weights[0, :, -1] for weights in maps]).numpy()
        np.testing.assert_allclose(packing.expand(levels), expected, atol=packing.MAX_ERROR + 1e-4)
        chances = logits.softmax(0)
        assert [row[0] for row in told["alternatives"][:3]] == chances.topk(3).indices.tolist()
        for token, chance, _, _ in told["alternatives"]:
            assert chance == pytest.approx(float(chances[token]), rel=2e-3)
        assert told["token"] == tokens[n_tokens]
        assert told["bits"] == pytest.approx(-float(chances[told["token"]].log2()), abs=0.01)
        assert told["entropy"][0] == pytest.approx(float(-(chances * chances.log2()).sum()), abs=0.01)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0}, {"top_k": None, "top_p": None, "min_p": None}], ids=str)
def test_what_is_written_with_and_without_an_explanation_is_the_same(changes: dict[str, Any]) -> None:
    writer, config = writer_of(), GenerationConfig(**{**ALL, "max_new_tokens": 40, **changes})
    written, page = explain(writer, "ab c ", config)
    plain = writer.generate("ab c ", config)
    # a model that is looked at is read by PyTorch and not by numpy, whose last digits differ
    assert written.log_probabilities == pytest.approx(plain.log_probabilities, abs=1e-5)
    assert dataclasses.replace(written, log_probabilities=plain.log_probabilities) == plain
    data = data_of(page)
    assert data["tokens"][data["n_prompt"] :][: len(written.tokens)] == list(written.tokens)
    # the prompt ends in a space, so the first token has few candidates: every step has every setting all the same
    assert {len(step["removals"]) for step in data["steps"]} == {len(data["stages"])}


def test_after_it_the_model_has_no_hooks() -> None:
    writer = writer_of()
    explain(writer, "a", GenerationConfig(max_new_tokens=2))
    assert all(not block.attn.hooks for block in writer.model.blocks)
    assert not writer.model.token_embedding._forward_pre_hooks


def test_each_alternative_says_which_setting_removed_it_and_the_removed_probabilities_add_up() -> None:
    writer, config = writer_of(), GenerationConfig(**ALL)
    _, page = explain(writer, "ab", config)
    data = data_of(page)
    stages = ["permitted", "forbidden_tokens", "repetition_penalty", "temperature", "top_k", "top_p", "min_p"]
    assert data["stages"] == stages
    V = len(ALPHABET) + 1
    for step, told in enumerate(data["steps"]):
        seen = data["tokens"][: data["n_prompt"] + step]
        with torch.no_grad():
            logits = writer.model(torch.tensor([seen]))[0, -1].double()
        chances = logits.softmax(0)
        permitted = np.arange(V) < (V - 1 if step < 5 else V)  # the end of the text comes last
        lefts = []
        for _, choice in apply_filters(logits.numpy(), config, seen, permitted):
            lefts.append(torch.full((V,), -torch.inf, dtype=torch.float64))
            lefts[-1][choice.tokens] = torch.from_numpy(choice.logits)
        kept = lefts[-1].isfinite()
        n_removed, mass, _ = zip(*told["removals"], strict=True)
        assert sum(n_removed) == V - int(kept.sum())
        assert sum(mass) == pytest.approx(1 - float(chances[kept].sum()), abs=2e-3)
        assert n_removed[:4] == (1 if step < 5 else 0, 2, 0, 0)
        for token, _, after, by in told["alternatives"]:
            first = next((i for i, left in enumerate(lefts) if left[token].isneginf()), -1)
            assert by == first
            assert after == pytest.approx(float(lefts[-1].softmax(0)[token]), rel=2e-3, abs=1e-6)
        n_rest, before, after = told["rest"]
        assert n_rest + len(told["alternatives"]) == V
        assert before + sum(row[1] for row in told["alternatives"]) == pytest.approx(1, abs=2e-3)
        assert after + sum(row[2] for row in told["alternatives"]) == pytest.approx(1, abs=2e-3)


def test_temperature_0_leaves_the_one_token_that_is_taken() -> None:
    data = data_of(explain(writer_of(), "ab", GenerationConfig(temperature=0, max_new_tokens=3))[1])
    assert data["stages"] == ["permitted", "temperature"]
    for told in data["steps"]:
        assert told["removals"][1][0] == len(ALPHABET)
        assert [row[0] for row in told["alternatives"] if row[2] == 1] == [told["token"]]


def test_a_token_beyond_the_ten_likeliest_is_listed_with_its_rank() -> None:
    data = data_of(explain(writer_of(), "ab", GenerationConfig(temperature=50.0, top_k=None, max_new_tokens=20))[1])
    beyond = [told for told in data["steps"] if told["rank"] > 10]
    assert beyond
    assert all(len(told["alternatives"]) == 11 and told["alternatives"][10][0] == told["token"] for told in beyond)


def test_the_drawn_end_of_the_text_is_shown_too() -> None:
    writer, end = writer_of(), len(ALPHABET)
    everything_else = [token for token in range(end) if token]
    config = GenerationConfig(forbidden_tokens=everything_else, max_new_tokens=200, temperature=3.0)
    written, page = explain(writer, "ab", config)
    assert written.ended == "end_of_text"
    data = data_of(page)
    assert data["tokens"][2:] == [*written.tokens, end]
    assert data["labels"][str(end)] == "‹end of text›"
    assert 'data-mark="end of text"' in page


def test_tokens_of_a_stop_text_are_crossed_out() -> None:
    writer = writer_of()
    text = writer.generate("ab", max_new_tokens=12, temperature=0).text
    written, page = explain(writer, "ab", GenerationConfig(max_new_tokens=12, temperature=0, stop=text[4:6]))
    assert written.ended == "stop"
    cut = re.findall(r'<span class="token bits-\d+( cut)?"', page.partition('id="text"')[2].partition("</div>")[0])
    assert cut == [""] * len(written.text) + [" cut"] * (len(written.tokens) - len(written.text))


def test_a_model_of_no_finite_numbers_is_one_clear_line() -> None:
    writer = writer_of()
    with torch.no_grad():
        writer.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN or inf"):
        explain(writer, "ab", GenerationConfig())


# ---- size ----------------------------------------------------------------------------------------------------------


def test_two_hundred_tokens_of_144_heads_that_are_noise_stay_under_four_megabytes() -> None:
    # Random weights: trained heads, which look at few tokens, take less.
    torch.manual_seed(0)
    kind = {"context_length": 256, "n_layer": 12, "n_head": 12, "n_embd": 96}
    _, page = explain(writer_of(kind), "ab" * 10, GenerationConfig(max_new_tokens=200, min_new_tokens=200))
    assert len(page) < 4_000_000


# ---- in a browser ----------------------------------------------------------------------------------------------------


class Explanation(View):
    """An explanation opened from a file."""

    def token(self, number: int) -> Any:
        return self.page.locator("#text .token").nth(number)

    def sources(self) -> dict[int, float]:
        rows = self.page.evaluate(
            "[...document.querySelectorAll('#sources li')].map(li => [li.dataset.token, li.lastChild.textContent])"
        )
        return {int(token): float(value.split()[-1].strip("<")) for token, value in rows}


@pytest.fixture
def show(open_view: Any) -> Any:
    """show(page) opens it."""
    return functools.partial(open_view, kind=Explanation)


@pytest.fixture(scope="module")
def explained() -> Page:
    return explain(writer_of(), "abc def", GenerationConfig(**ALL), title="runs/<b>tiny</b>")[1]


def test_a_click_or_an_arrow_selects_a_token_and_tells_its_numbers(explained: Page, show: Any) -> None:
    view, data = show(explained), data_of(explained)
    assert view.text("h1") == "runs/<b>tiny</b>"
    assert f"rounded by at most {packing.MAX_ERROR:.3f}" in view.text("footer")
    bits = [step["bits"] for step in data["steps"]]
    assert view.state("step") == str(bits.index(max(bits))), "it opens at the most surprising token"
    view.token(data["n_prompt"] + 4).click()
    for keys, step in (([], 4), (["ArrowRight"], 5), (["ArrowLeft", "ArrowLeft"], 3), (["End"], 11), (["Home"], 0)):
        for key in keys:
            view.page.keyboard.press(key)
        told = data["steps"][step]
        assert view.state("step") == str(step)
        assert view.text("#which").startswith(f"Token {step + 1} of {len(data['steps'])}")
        assert view.text("#token") == f"“{data['labels'][str(told['token'])]}”"
        assert f"{told['bits']:.2f} bits of surprise" in view.text("#facts")
        assert f"#{told['rank']} in the model" in view.text("#facts")
        rows = view.page.locator("#alternatives li:not(.head, .rest)")
        assert rows.count() == len(told["alternatives"])
        assert rows.nth(0).locator("bdi").text_content() == f"“{data['labels'][str(told['alternatives'][0][0])]}”"
        assert view.page.locator("#alternatives .drawn .note").text_content() == "drawn"
        notes = [note for note in rows.locator(".note").all_text_contents() if note.startswith("−")]
        names = [data["stages"][row[3]] for row in told["alternatives"] if row[3] >= 0]
        assert notes == [f"− {name}".replace("permitted", "constraints") for name in names]
        assert view.page.locator("#text [aria-pressed=true]").count() == 1
        assert "top_k" in view.text("#stages")
    view.token(0).click()
    assert view.state("step") == "0", "the prompt was not written"


def test_a_chosen_head_tints_the_text_by_its_weights_and_lists_its_strongest_sources(
    explained: Page, show: Any
) -> None:
    view, data = show(explained), data_of(explained)
    levels = levels_of(data)
    view.page.keyboard.press("End")
    buttons = view.page.locator(".head-button")  # all heads, then for each layer its mean and its heads
    weights = packing.expand(levels[-1])
    for number, expected in ((7, weights[1, 0]), (6, weights[1].mean(0)), (0, weights.mean((0, 1)))):
        buttons.nth(number).click()
        assert view.state("shade") == "look"
        for token, weight in view.sources().items():
            assert weight == pytest.approx(expected[token], abs=6e-4)
        assert min(view.sources().values()) >= np.sort(expected)[-10] - 1e-3
        shares = view.page.evaluate(
            "[...document.querySelectorAll('#text .token')].map(s => +s.style.getPropertyValue('--weight'))"
        )
        np.testing.assert_allclose(shares[: len(expected)], 0.85 * np.sqrt(expected), atol=1e-3)
        assert not any(shares[len(expected) :])
    buttons.nth(7).click()
    for key in ("ArrowRight", "ArrowUp"):
        view.page.keyboard.press(key)
    assert view.page.evaluate("document.activeElement.ariaLabel") == "layer 0, head 1"
    view.page.locator("#shade input[value=surprise]").check(force=True)
    assert view.text("#text-title") == "The text, tinted by surprise"


def test_the_text_can_be_copied_as_it_was_written_though_its_spaces_and_breaks_are_marked(show: Any) -> None:
    writer = Writer(make({"vocab_size": 257, "context_length": 64}), BytesTokenizer())
    prompt = "é\tx  <i>\n\u202eü"
    _, page = explain(writer, prompt, GenerationConfig(max_new_tokens=1))
    view = show(page)
    shown = "".join(view.page.locator("#text .prompt").all_text_contents())
    assert shown == prompt.replace("\u202e", ""), "what turns a line around is a mark"
    marks = view.page.evaluate("[...document.querySelectorAll('#text .prompt i')].map(i => i.dataset.mark ?? '')")
    assert marks[:3] == ["‹c3›", "→", ""]
    assert "↵" in marks
    assert view.page.locator("#text .prompt").nth(0).text_content() == ""
    assert view.page.locator("#text .prompt").nth(1).text_content() == "é"


class HostileTokenizer(BytesTokenizer):
    """Tokens that are what an HTML page must fear."""

    vocab_size = len(HOSTILE) + 1
    end_of_text = len(HOSTILE)

    def decode_bytes(self, tokens: Any) -> bytes:
        return b"".join([*(text.encode("utf-8", "surrogatepass") for text in HOSTILE), b""][token] for token in tokens)

    def encode(self, text: str) -> list[int]:
        return list(range(len(HOSTILE)))


def test_at_the_load_event_the_heads_are_drawn(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "why.html"
    path.write_text(explain(writer_of(), "abc def", GenerationConfig(**ALL))[1], encoding="ascii")
    page = browser.new_page()
    page.add_init_script("addEventListener('load', () => { window.early = !document.documentElement.dataset.ready; })")
    page.goto(path.as_uri())
    assert page.evaluate("window.early") is False
    page.close()


def test_hostile_tokens_and_titles_stay_text(show: Any) -> None:
    writer = Writer(make({"vocab_size": len(HOSTILE) + 1}), HostileTokenizer())
    config = GenerationConfig(max_new_tokens=14, min_new_tokens=14, temperature=5.0, stop="x</script><script>")
    written, page = explain(writer, "all", config, title="".join(HOSTILE[:6]))
    view = show(page)
    assert view.page.title() == "".join(HOSTILE[:6])
    assert view.page.locator("#text .token").count() == len(HOSTILE) + len(written.tokens)
    assert view.page.locator("#text .token").nth(0).text_content() == HOSTILE[0]
    for _ in written.tokens:
        view.page.keyboard.press("ArrowRight")
    assert view.page.locator("img").count() == 0


def test_the_page_works_in_a_sandboxed_frame_and_in_a_narrow_window(explained: Page, show: Any, tmp_path: Path) -> None:
    view = show(explained, 500, 700)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 500
    outer = tmp_path / "outer.html"
    outer.write_text(explained._repr_html_(), encoding="ascii")
    page = view.page.context.new_page()
    page.goto(outer.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator(".head-button").nth(2).click()
    frame.locator('html[data-head="0"]').wait_for(state="attached")
    page.close()


def test_a_single_token_after_a_single_token_is_explained(show: Any) -> None:
    view = show(explain(writer_of(), "a", GenerationConfig(max_new_tokens=1))[1])
    view.page.keyboard.press("ArrowRight")
    assert view.sources() == {0: pytest.approx(1, abs=0.001)}


def test_a_config_of_more_settings_is_taken_for_its_own(explained: Page) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(GenerationConfig):
        other: str = "x"

    _, page = explain(writer_of(), "abc def", More(**ALL), title="runs/<b>tiny</b>")
    assert page == explained
