"""A question is asked only where its answer stands out, and says what the page needs to check it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection.ablation import Ablation
from minigpt.model.gpt import GPT
from minigpt.pages.live.questions import TextFacts, live_questions, questions

PARTS = ("0.0", "0.1", "1.0", "1.1", "layer0", "layer1")


def removed(*means: float, last: float = 0.0) -> Ablation:
    """Each part raises every loss by its mean, and that of the last token by `last` more without head 1.0."""
    changes = torch.tensor(means)[:, None, None].repeat(1, 1, 5)
    changes[2, 0, -1] += last
    return Ablation(PARTS, "zero", changes, torch.ones(1, 5))


def facts(probabilities: npt.NDArray[Any], far: float = 0.0) -> TextFacts:
    """Six tokens 0 to 5; head 1.1 attends from position 4 to 1 with weight `far`."""
    weights = np.zeros((2, 2, 6, 6), dtype=np.float32)
    weights[:, :, range(6), range(6)] = 1.0  # to itself: no question
    weights[1, 1, 4, 1] = far
    return TextFacts(range(6), "abcdef".__getitem__, weights, probabilities.astype(np.float32))


def test_a_score_is_asked_for_where_one_head_has_much_more_of_it_than_all_others() -> None:
    scores = {"previous_token": np.array([[0.1, 0.2], [0.9, 0.3]]), "first_token": np.array([[0.9, 0.88], [0.1, 0.1]])}
    (asked,) = questions(scores, None)
    assert (asked["kind"], asked["score"], asked["pick"]) == ("score", "previous_token", "head")
    assert questions({"previous_token": np.array([[0.1, 0.2]])}, None) == [], "no head attends to it"
    assert questions({"previous_token": np.array([[0.9]])}, None) == [], "one head is no choice"
    assert questions({"previous_token": np.array([[0.9, np.nan, 0.2]])}, None), "undefined scores do not count"


def test_a_part_is_asked_for_where_the_text_needs_it_clearly_more_than_the_second() -> None:
    asked = questions({}, removed(0.1, 0.0, 0.3, 0.1, 2.0, 1.0))
    assert [(each["kind"], each["pick"]) for each in asked] == [("ablation", "head"), ("ablation", "choice")]
    assert asked[1]["choices"] == [{"name": "layer0", "label": "layer 0"}, {"name": "layer1", "label": "layer 1"}]
    assert questions({}, removed(0.3, 0.0, 0.3, 0.1, 1.0, 1.0)) == []
    assert questions({}, removed(0.0, 0.0, 0.005, 0.0, 0.001, 0.0)) == [], "too small to matter"


def test_a_token_is_asked_for_where_one_suffers_most_without_a_head() -> None:
    (asked,) = questions({}, removed(0.2, 0.2, 0.0, 0.2, 1.0, 1.0, last=1.0))
    assert (asked["kind"], asked["part"], asked["pick"]) == ("loss", "1.0", "token")
    assert questions({}, removed(0.5, 0.2, 0.2, 0.5, 1.0, 1.0)) == [], "all tokens suffer alike"


def test_a_key_is_asked_for_where_a_head_attends_far_back_with_most_of_its_weight() -> None:
    flat = np.full((6, 6), 1 / 6)
    (asked,) = questions({}, None, facts(flat, far=0.8))
    assert (asked["kind"], asked["part"], asked["position"]) == ("key", "1.1", 4)
    assert "\u201ce\u201d (position 4)" in asked["ask"]
    assert questions({}, None, facts(flat, far=0.4)) == []


def test_the_next_token_is_asked_for_where_the_model_favours_one_and_preferably_is_wrong() -> None:
    sure = np.full((6, 6), 0.01)
    sure[3, 4], sure[4, 0] = 0.9, 0.6  # position 3 goes on with token 4, as expected; position 4 with 5
    (asked,) = questions({}, None, facts(sure))
    assert (asked["kind"], asked["position"], asked["pick"]) == ("next", 4, "choice")
    names = [choice["name"] for choice in asked["choices"]]
    assert names == sorted(names), "the order tells nothing"
    assert {"0", "5"} <= set(names), "what it expects and what follows"
    assert asked["choices"][-1] == {"name": "5", "label": "f"}
    assert asked["ask"].endswith("\u201cabcde\u201d?")
    sure[3:5] = 1 / 6
    assert questions({}, None, facts(sure)) == []


def test_a_model_is_asked_about_on_the_text_of_its_page() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=256, context_length=16, n_layer=2, n_head=2, n_embd=16))
    with torch.no_grad():
        model.lm_head.weight *= 200  # it favours some token everywhere
    tokenizer = BytesTokenizer()
    asked = live_questions(model, tokenizer, list(b"Once upon a"))
    (expected,) = [each for each in asked if each["kind"] == "next"]
    with torch.no_grad():
        best = model(torch.tensor([list(b"Once upon a")]))[0, expected["position"]].argmax()
    assert str(int(best)) in [choice["name"] for choice in expected["choices"]]
    assert live_questions(model, tokenizer, list(b"On")) == []


def test_parts_are_not_asked_for_where_a_browser_would_compute_for_minutes(monkeypatch: Any) -> None:
    model = GPT(GPTConfig(vocab_size=256, context_length=16, n_layer=2, n_head=2, n_embd=16))
    monkeypatch.setattr("minigpt.pages.live.questions.PAGE_OPERATIONS", 0)
    kinds = {each["kind"] for each in live_questions(model, BytesTokenizer(), list(b"Once upon a"))}
    assert not kinds & {"ablation", "loss"}
