"""Guess first in a real browser: answers are computed in the page and are those of `inspection`."""

from typing import Any

import pytest
import torch
from attention_pages import HOSTILE
from test_live_lesson import TEXT, model_of, tokens

from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection import statistics
from minigpt.inspection.ablation import ablation
from minigpt.inspection.capture import capture_attention
from minigpt.inspection.measuring import measure
from minigpt.pages.live.page import live_page

KEY = {"kind": "key", "part": "1.0", "position": 12, "ask": "To which token?", "pick": "token"}
QUESTIONS: list[dict[str, Any]] = [
    {"kind": "score", "score": "previous_token", "ask": "Which head?", "pick": "head"},
    {"kind": "ablation", "ask": "Which head is needed?", "pick": "head"},
    {
        "kind": "ablation",
        "ask": "Which layer?",
        "pick": "choice",
        "choices": [{"name": f"layer{i}", "label": HOSTILE[i]} for i in range(2)],
    },
    {"kind": "loss", "part": "0.1", "ask": "Which token?", "pick": "token"},
    KEY,
    {
        "kind": "next",
        "position": 5,
        "ask": "What next?",
        "pick": "choice",
        "choices": [{"name": str(token), "label": chr(token)} for token in b"abcd"],
    },
]


def answers() -> list[str]:
    """Of each question, by `inspection`."""
    model, row = model_of(), tokens()
    with capture_attention(model) as maps, torch.no_grad():
        logits = model(row)[0]
    # The page scores every query, `measure` those that have a target.
    more = torch.cat([row, row[:, :1]], dim=1)
    scores = measure(model, more, {"previous_token": statistics.previous_token}).scores["previous_token"]
    heads, layers = ablation(model, row), ablation(model, row, parts=["layer0", "layer1"])
    loss = ablation(model, row, parts=["0.1"]).changes[0, 0]
    return [
        "{}.{}".format(*divmod(int(scores.argmax()), 2)),
        heads.parts[int(heads.mean.argmax())],
        layers.parts[int(layers.mean.argmax())],
        str(int(loss.argmax()) + 1),
        str(int(maps[1][0, 0, 12].argmax())),
        str(max(b"abcd", key=lambda token: float(logits[5, token]))),
    ]


class Guess:
    """A live page with a question in front."""

    def __init__(self, view: Any) -> None:
        self.view, self.page, self.state = view, view.page, view.state
        self.page.click("#tab-guess")

    def pick(self, name: str, kind: str) -> None:
        selector = {"head": f".thumb[aria-label^='head {name}']", "token": f".token[data-position='{name}']"}
        self.page.click(selector.get(kind, f"input[name=guess-choice][value='{name}']"))
        self.page.wait_for_selector(f"html[data-guess-picked='{name}']", state="attached")

    def check(self) -> str:
        self.page.click("#guess-check")
        self.page.wait_for_selector("#guess-answer:not([hidden])")
        return str(self.state("guessResult"))


@pytest.fixture
def open_guess(open_view: Any) -> Any:
    def open_page(questions: Any = QUESTIONS, **size: Any) -> Any:
        page = live_page(
            model_of(), BytesTokenizer(), TEXT, title="tiny", facts={}, questions=questions, kind="float32"
        )
        return open_view(page, **size)

    return open_page


def test_right_guesses_are_called_right_and_explained_with_the_numbers_of_inspection(open_guess: Any) -> None:
    guess = Guess(open_guess(width=360, height=640))
    names = guess.page.locator(".thumb").evaluate_all("all => all.map((thumb) => thumb.ariaLabel)")
    assert names[0] == "head 0.0", "the names say no more than what is seen"
    for number, (question, answer) in enumerate(zip(QUESTIONS, answers(), strict=True), start=1):
        assert guess.view.text("#guess-ask") == question["ask"]
        guess.pick(answer, question["pick"])
        assert (guess.check(), guess.state("guessBest")) == ("right", answer), question
        assert guess.view.text("#guess-count") == f"Question {number} of 6; {number} of {number} right"
        if number < len(QUESTIONS):
            guess.page.click("#guess-next")
    assert guess.page.locator("#guess-next").is_disabled()
    assert guess.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_wrong_guess_is_told_its_rank_and_the_answer_shows_itself_on_a_click(open_guess: Any) -> None:
    guess, (right, *_) = Guess(open_guess()), answers()
    wrong = next(name for name in ("0.0", "0.1", "1.0", "1.1") if name != right)
    score = guess.page.locator(".thumb .score").first
    assert not score.is_visible(), "the number on a map would tell"
    assert guess.page.locator("#guess-check").is_disabled(), "the head that was selected before is no guess"
    guess.pick(wrong, "head")
    assert guess.check() == "wrong"
    assert score.is_visible()
    assert guess.view.text("#guess-verdict").startswith(f"It is head {right}. Your guess, head {wrong}, is number ")
    guess.page.click(f"#guess-list li[data-name='{right}'] button")
    assert ".".join(map(str, guess.view.selected())) == right
    assert guess.page.locator("#guess-list li").count() == 4
    assert not guess.page.locator("#guess-check").is_visible()


def test_questions_are_about_the_first_text_and_a_later_token_cannot_be_attended_to(open_guess: Any) -> None:
    guess = Guess(open_guess([KEY]))
    guess.page.fill("#area", "another text")
    guess.page.wait_for_selector("#guess-other:not([hidden])")
    assert guess.page.locator("#guess-check").is_disabled()
    guess.page.click("#guess-restore")
    guess.page.wait_for_selector("#guess-other", state="hidden")
    guess.pick("15", "token")
    assert guess.check() == "wrong"
    assert "comes later" in guess.view.text("#guess-verdict")
    assert guess.view.selected() == (1, 0), "the map shows the head of the answer"
    assert guess.state("selected") == "12"


def test_a_page_without_questions_has_no_such_tab(open_guess: Any) -> None:
    assert open_guess([]).page.locator("#tab-guess").count() == 0
