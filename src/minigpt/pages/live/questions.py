"""Guess first: questions about a model on one text, from its own measurements; the live page asks and checks them.

The page computes every answer itself, from its own weights. What is measured here decides which questions have an
answer that stands out; a model without one is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minigpt.data.tokenizers.base import Tokenizer
from minigpt.inspection import statistics
from minigpt.inspection.ablation import Ablation, ablation
from minigpt.inspection.capture import capture_attention, evaluation_mode
from minigpt.inspection.measuring import measure
from minigpt.model.gpt import GPT
from minigpt.pages.tokens import label

Heads = npt.NDArray[np.floating[Any]]
"""(n_layer, n_head)."""

PAGE_OPERATIONS = 2e10
"""Most floating-point operations of a check: about 20 seconds in a browser, at 1.1e9 a second."""
MOST_SCORE_QUESTIONS = 2
TIMES_SECOND = 1.25
"""A part of the model stands out if the loss without it rises this many times as much as without the second."""
LEAST_CHANGE, LEAST_TOKEN_CHANGE = 0.01, 0.3
"""Least rise of the loss in nats: of the text's mean, and of a single token."""
LEAST_WEIGHT = 0.5
"""Least weight for a question about the key that a query attends to most."""
LIKELY = (0.3, 0.95)
"""Probability of a next token that is worth guessing."""
FEWEST_READ = 4
"""Tokens that the model has read where it is asked for the next one."""


class _Score(NamedTuple):
    ask: str
    least: float
    margin: float
    """The best head must have `least`, and this much more than the second."""


_SCORES: dict[str, _Score] = {
    "previous_token": _Score("Which head attends most to the previous token?", 0.25, 0.05),
    "first_token": _Score("Which head puts the most weight on the first token?", 0.25, 0.05),
    "current_token": _Score("Which head attends most to the token itself?", 0.25, 0.05),
    "mean_distance": _Score("Which head looks farthest back, on average?", 4.0, 1.5),
    "entropy": _Score("Which head spreads its weight most evenly?", 0.5, 0.05),
}
"""Scores of heads that a question can ask for, the most telling first. The page computes the same ones."""


@dataclass(frozen=True, eq=False)
class TextFacts:
    """What the questions about places in the text need."""

    tokens: Sequence[int]
    """T ids."""
    name: Callable[[int], str]
    """A token id -> how it is shown."""
    weights: npt.NDArray[np.float32]
    """(n_layer, n_head, T, T) attention weights."""
    probabilities: npt.NDArray[np.float32]
    """(T, V) of the next token at each position."""


def live_questions(model: GPT, tokenizer: Tokenizer, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """The questions for the live page that opens with these tokens.

    Args:
        model: not modified.
        tokenizer: of the tokens.
        tokens: the page's first text, at most the model's context. Fewer than FEWEST_READ give no question.

    Returns:
        See `questions`.
    """
    T, config = len(tokens), model.config
    if T < FEWEST_READ:
        return []
    device = next(model.parameters()).device
    row = torch.tensor([list(tokens)], device=device)
    wanted = {name: getattr(statistics, name) for name in _SCORES}
    with evaluation_mode(model), capture_attention(model) as maps:
        probabilities = model(row)[0].float().softmax(dim=-1).cpu().numpy()
    weights = torch.stack([layer[0].float().cpu() for layer in maps]).numpy()
    heads = [f"{layer}.{head}" for layer in range(config.n_layer) for head in range(config.n_head)]
    layers = [f"layer{layer}" for layer in range(config.n_layer)]
    parts = [names for names in (heads, layers) if check_operations(model, T, len(names)) <= PAGE_OPERATIONS]
    removed = ablation(model, row, parts=[name for names in parts for name in names]) if parts else None
    text = TextFacts(tokens, partial(label, tokenizer), weights, probabilities)
    return questions(measure(model, row, wanted).scores, removed, text)


def check_operations(model: GPT, T: int, n_parts: int) -> float:
    """Floating-point operations of a page that runs T tokens once without each of some parts."""
    in_blocks = sum(weight.numel() for weight in model.blocks.parameters())
    in_head = (model.config.vocab_size or 0) * model.config.n_embd
    return 2.0 * T * n_parts * (in_blocks + in_head)


def questions(
    scores: Mapping[str, Heads], removed: Ablation | None, text: TextFacts | None = None
) -> list[dict[str, Any]]:
    """Questions whose answer stands out, about one text; at most seven.

    Args:
        scores: of the heads on the text, by name.
        removed: zero ablation of heads and layers on the text; None where it would take too long in a page.
        text: for questions about single tokens.

    Returns:
        For each a dict with `kind`, `ask` (the question), `pick` (what answers it: head, token or choice), and what the
        page needs to check it: `score`, `part`, `position`, or `choices`, a list of {name, label}.
    """
    asked = _about_scores(scores)
    if removed is not None:
        asked += _about_parts(removed, "head") + _about_parts(removed, "layer") + _about_loss(removed)
    if text is not None:
        asked += _about_keys(text) + _about_next(text)
    return asked


def _about_scores(scores: Mapping[str, Heads]) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []
    for name, (ask, least, margin) in _SCORES.items():
        if name not in scores or scores[name].size < 2 or len(asked) == MOST_SCORE_QUESTIONS:
            continue
        second, best = np.sort(np.nan_to_num(scores[name], nan=-np.inf), axis=None)[-2:]
        if best >= least and best - second >= margin:
            asked.append({"kind": "score", "score": name, "ask": ask, "pick": "head"})
    return asked


def _about_parts(removed: Ablation, kind: str) -> list[dict[str, Any]]:
    """Which head, or layer, the text needs most."""
    of_kind = {
        name: float(mean)
        for name, mean in zip(removed.parts, removed.mean, strict=True)
        if name.startswith("layer") == (kind == "layer")
    }
    if len(of_kind) < 2 or not _stands_out(list(of_kind.values()), LEAST_CHANGE):
        return []
    ask = f"Which {kind} does this text need most: without which one does its loss rise most?"
    if kind == "head":
        return [{"kind": "ablation", "ask": ask, "pick": "head"}]
    choices = [{"name": name, "label": name.replace("layer", "layer ")} for name in of_kind]
    return [{"kind": "ablation", "ask": ask, "pick": "choice", "choices": choices}]


def _about_loss(removed: Ablation) -> list[dict[str, Any]]:
    """Which token suffers most without the head that matters most for a single token."""
    heads = [index for index, name in enumerate(removed.parts) if "." in name]
    # The largest rise first: what a head is for shows best where it matters most.
    for index in sorted(heads, key=lambda index: -float(removed.changes[index, 0].max())):
        if _stands_out(removed.changes[index, 0].tolist(), LEAST_TOKEN_CHANGE):
            part = removed.parts[index]
            ask = f"Which token loses most if head {part} is switched off: whose loss rises most?"
            return [{"kind": "loss", "part": part, "ask": ask, "pick": "token"}]
    return []


def _about_keys(text: TextFacts) -> list[dict[str, Any]]:
    """To which token a query attends most: not the token itself, nor its neighbour, nor the first, a common sink."""
    n_layer, n_head, T, _ = text.weights.shape
    queries, keys = np.indices((T, T))
    far = (keys > 0) & (queries - keys > 1)
    best = np.unravel_index(np.argmax(text.weights * far), (n_layer, n_head, T, T))
    layer, head, query, key = map(int, best)
    if text.weights[layer, head, query, key] * far[query, key] < LEAST_WEIGHT:
        return []
    shown = text.name(text.tokens[query])
    ask = f"To which token does \u201c{shown}\u201d (position {query}) attend most in head {layer}.{head}?"
    return [{"kind": "key", "part": f"{layer}.{head}", "position": query, "ask": ask, "pick": "token"}]


def _about_next(text: TextFacts) -> list[dict[str, Any]]:
    """What the model expects where one token stands out, best where the text goes on with another one."""
    two = np.sort(text.probabilities[:-1], axis=1)[:, -2:]  # (T - 1, 2)
    second, best = two[:, 0], two[:, 1]
    expected = text.probabilities[:-1].argmax(axis=1)
    fits = (best >= LIKELY[0]) & (best <= LIKELY[1]) & (best >= TIMES_SECOND * second)
    fits[: FEWEST_READ - 1] = False
    if not fits.any():
        return []
    surprises = expected != np.asarray(text.tokens[1:])
    position = int(np.argmax((best - second + surprises) * fits))
    likeliest = np.argsort(-text.probabilities[position])[:3].tolist()
    choices = sorted({*likeliest, text.tokens[position + 1]})  # by id: the order tells nothing
    read = "".join(text.name(token) for token in text.tokens[max(0, position - 7) : position + 1])
    return [
        {
            "kind": "next",
            "position": position,
            "ask": f"Which token does the model expect most after \u201c{read}\u201d?",
            "pick": "choice",
            "choices": [{"name": str(token), "label": text.name(token)} for token in choices],
        }
    ]


def _stands_out(changes: Sequence[float], least: float) -> bool:
    second, best = sorted(changes)[-2:]
    return best >= least and best >= TIMES_SECOND * second
