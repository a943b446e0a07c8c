"""A model, its tokenizer and a text -> one HTML file in which the model runs while one types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minigpt.data.tokenizers.base import Tokenizer
from minigpt.model.gpt import GPT
from minigpt.pages.colormap import COLOURS
from minigpt.pages.documents import Page, base64_of, document, joined_scripts, json_for_html, policy_of
from minigpt.pages.live.tokenizer_data import tokenizer_data
from minigpt.pages.live.weights import WeightKind, live_config, pack_weights

ENGINE = (
    "weights",
    "kernels",
    "cache",
    "trace",
    "attention",
    "model",
    "interventions",
    "explain",
    "tokenizer",
    "sample",
    "session",
    "session_measures",
    "session_panels",
    "lesson_numbers",
    "questions_check",
)
"""Files of the engine, in this order: the model without the page. A Web Worker runs them, or else the page itself."""


def live_page(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    *,
    title: str,
    facts: Mapping[str, str],
    first_token: int | None = None,
    questions: Sequence[Mapping[str, Any]] = (),
    kind: WeightKind = "int8",
) -> Page:
    """Put a model into a page, which computes everything that it shows.

    Args:
        model: not modified.
        tokenizer: of the model.
        text: what the page opens with.
        title: of the page, such as the run's name.
        facts: about the model, name -> text.
        first_token: before every text, for models trained on whole texts; `begin_of_text` where the tokenizer has one.
        questions: of "guess first", see `questions.questions`.
        kind: type of the weights in the page.

    Returns:
        The document: for a demo of 2.5 million parameters 3 MB at int8; in general 1.3 characters for each byte.

    Raises:
        UserError: the page cannot compute what a setting of the model or a part of the tokenizer asks for.
    """
    first_token = tokenizer.begin_of_text if first_token is None else first_token
    packed = pack_weights(model, kind)
    data = {
        "config": live_config(model.config),
        "header": packed.header,
        "tokenizer": tokenizer_data(tokenizer) | {"begin_of_text": first_token},
        "text": text,
        "facts": dict(facts),
        "colours": base64_of(COLOURS),
        "questions": list(questions),
    }
    engine = engine_script()
    return document(
        "live",
        title,
        # The worker's script is a Blob of the engine's text. It inherits this policy, and may not load anything either.
        policy=policy_of("live", scripts=[engine], more="; worker-src blob:"),
        engine=engine,
        data=json_for_html(data),
        weights="\n".join(f'<script type="text/plain" class="weights">{chunk}</script>' for chunk in packed.chunks),
    )


def engine_script() -> str:
    """The script that computes: it touches no document, so a worker and Node run it too."""
    return joined_scripts("live", ENGINE)
