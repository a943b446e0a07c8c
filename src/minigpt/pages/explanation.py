"""Explain generated text: one HTML page with the alternatives, settings and attention behind each token.

All of it is recorded during generation, from the logits that are sampled and the queries and keys of each layer. No
forward pass runs twice, and the generated text does not change.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import UserError
from minigpt.generation.engine import Logits, window_start
from minigpt.generation.generator import Writer, Written
from minigpt.generation.sampling import Choice, draw
from minigpt.inspection import packing
from minigpt.inspection.capture import tapped
from minigpt.model.variants.attend import How, attention_weights
from minigpt.model.variants.similarities import Linear
from minigpt.pages.attention import Page
from minigpt.pages.colormap import COLOURS
from minigpt.pages.documents import document, json_for_html, policy_of
from minigpt.pages.written import ENDS, label, mean, n_kept, scale_html, settings_text, tokens_html

Shares = npt.NDArray[np.float64]

ALTERNATIVES = 10
"""Likeliest tokens listed for each drawn token; the drawn one is added if it is not among them."""


def explain(
    writer: Writer, prompt: str, config: GenerationConfig | None = None, *, title: str = ""
) -> tuple[Written, Page]:
    """Generate text and explain each token: attention of every head, alternatives, and what each setting removed.

    Measured: 27 kB for the page itself, half a kB for each token, and about 0.9 characters for each weight. 200 tokens
    after a short prompt took 0.36 MB with the demo's 4 x 4 heads, and 3.2 MB with 12 x 12 random ones and a context of
    256. Nothing is left out, however long the text.

    Args:
        writer: the model.
        prompt: text.
        config: sampling settings; `writer.generate` gives the same text with them.
        title: of the page, such as the run's name.

    Returns:
        The generated text and the document.

    Raises:
        UserError: as `Writer.generate`.
    """
    if writer.reader is not None:
        raise UserError("an int8 or compiled model cannot be explained: load it without int8 and compile")
    # Drafted tokens would share a forward pass, and the hook keeps one query of each. Drafts do not change the text.
    config = dataclasses.replace(config or GenerationConfig(), draft_tokens=0)
    witness = _Witness(writer, config)
    with tapped(writer.model, witness.look):
        written = writer.generate(prompt, config, watch=witness.watch)
    return written, _render(writer, written, witness, config, title)


class _Witness:
    """Records attention and sampling during generation, step by step: a step is one drawn token."""

    def __init__(self, writer: Writer, config: GenerationConfig) -> None:
        self.model, self.temperature = writer.model, config.temperature
        self.n_prompt = 0
        self.drawn: list[int] = []
        """Ids, with the stop token, which is not part of the text."""
        self.stages: list[str] = []
        """Names of the settings, in the order in which they apply."""
        self.steps: list[dict[str, Any]] = []
        self.levels: list[list[packing.Levels]] = []
        """For each step and layer (H, S): weights of the newest token on the keys of its window."""
        self.starts: list[int] = []
        """For each step the position of the window's first token."""
        self._keys: dict[int, Tensor] = {}
        self._generator = torch.Generator().manual_seed(config.seed)

    def look(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> None:
        """Hook on attention: keep the weights of the newest token."""
        T = query.shape[2]
        self.n_prompt = self.n_prompt or T
        n_tokens = self.n_prompt + len(self.drawn)
        start = window_start(n_tokens, self.model.config.context_length)
        if isinstance(how["similarity"], Linear):
            # Linear attention may cache sums instead of keys; then `key` has the new tokens only.
            is_whole = key.shape[2] == n_tokens - start
            key = self._keys[layer] = key if is_whole else torch.cat([self._keys[layer], key], dim=2)
        weights = attention_weights(query, key, **how, queries=range(T - 1, T))[0, :, 0]  # (H, S)
        if layer == 0:
            self.levels.append([])
            self.starts.append(start)
        self.levels[-1].append(packing.compand(weights.float().cpu().numpy()))

    def watch(self, logits: Logits, stages: list[tuple[str, Choice]]) -> None:
        """Hook on sampling: record the distribution, and draw the engine's token with a generator of the same seed."""
        choice = stages[-1][1]
        token = draw(choice, self.temperature, self._generator)
        if self.temperature == 0:
            stages = [*stages, ("temperature", choice.kept(choice.tokens == token))]
        self.stages = [name for name, _ in stages]
        self.steps.append(_step(logits.astype(np.float64), stages, token))
        self.drawn.append(token)


def _step(logits: Shares, stages: list[tuple[str, Choice]], token: int) -> dict[str, Any]:
    """One token's data for explanation.js, with probabilities from 0 to 1.

    Args:
        logits: (V,) of the model.
        stages: name of each setting, and the choice that it leaves.
        token: the drawn one.
    """
    V = len(logits)
    chances = previous = _shares(Choice(np.arange(V), logits), V)
    removed_by = np.full(V, -1)
    removals = []
    for number, (_, choice) in enumerate(stages):
        lost = removed_by < 0
        lost[choice.tokens] = False
        removed_by[lost] = number
        now = _shares(choice, V)
        # Tokens removed, their probability by the model, and the total variation distance to the previous stage.
        removals.append([int(lost.sum()), _short(chances[lost].sum()), _short(np.abs(now - previous).sum() / 2)])
        previous = now
    listed: list[int] = np.argsort(-chances, kind="stable")[:ALTERNATIVES].tolist()
    listed += [] if token in listed else [token]
    drawn_from = previous
    alternatives = [[i, _short(chances[i]), _short(drawn_from[i]), int(removed_by[i])] for i in listed]
    rest = np.ones(V, dtype=np.bool_)
    rest[listed] = False
    return {
        "token": token,
        "rank": 1 + int((chances > chances[token]).sum()),
        "bits": _short((np.logaddexp.reduce(logits) - logits[token]) / math.log(2)),
        "entropy": [_entropy(chances), _entropy(drawn_from)],
        "alternatives": alternatives,
        "rest": [int(rest.sum()), _short(chances[rest].sum()), _short(drawn_from[rest].sum())],
        "removals": removals,
    }


def _shares(choice: Choice, V: int) -> Shares:
    """(V,) probabilities, 0 for removed tokens."""
    shares = np.zeros(V)
    shares[choice.tokens] = np.exp(choice.logits - choice.logits.max())
    return shares / shares.sum()


def _render(writer: Writer, written: Written, witness: _Witness, config: GenerationConfig, title: str) -> Page:
    tokenizer, model = writer.tokenizer, writer.model.config
    tokens = [*written.prompt_tokens, *witness.drawn]
    bits = [step["bits"] for step in witness.steps]
    named = {int(alternative[0]) for step in witness.steps for alternative in step["alternatives"]} | set(tokens)
    per_head = [
        levels[layer][head]
        for layer in range(model.n_layer)
        for head in range(model.n_head)
        for levels in witness.levels
    ]
    data = {
        "n_prompt": witness.n_prompt,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "tokens": tokens,
        "labels": {token: label(tokenizer, token) for token in sorted(named)},
        "stages": witness.stages,
        "steps": witness.steps,
        "starts": witness.starts,
        "levels": packing.encode_frames([np.concatenate(per_head)]),
        "colours": base64.b64encode(COLOURS.tobytes()).decode("ascii"),
        "ended": written.ended,
    }
    return Page(
        document(
            "explanation",
            policy_of("explanation", shared=["written"]),
            shared="written",
            title=html.escape(title or "why each token was written"),
            summary=_summary(writer, written, bits, witness, config),
            text=tokens_html(tokenizer, tokens, witness.n_prompt, bits, n_kept(tokenizer, written)),
            scale=scale_html(),
            rounding=f"Weights are rounded by at most {packing.MAX_ERROR:.3f}.",
            data=json_for_html(data),
        )
    )


def _summary(writer: Writer, written: Written, bits: list[float], witness: _Witness, config: GenerationConfig) -> str:
    model, n_drawn = writer.model.config, len(witness.steps)
    first = mean([step["rank"] == 1 for step in witness.steps])
    tiles = {
        "tokens drawn": (str(n_drawn), f"after {witness.n_prompt} of the prompt; {ENDS[written.ended]}"),
        "bits per token": (f"{mean(bits):.2f}", "mean surprise, by the model's own probabilities"),
        "first choices": (f"{100 * first:.0f} %", "the model's likeliest token was drawn"),
    }
    facts = {
        "model": f"{model.n_layer} layers of {model.n_head} heads · {model.n_embd} wide · context of "
        f"{model.context_length} · vocabulary of {model.vocab_size} · {model.similarity}, {model.position} positions",
        "settings": f"{settings_text(config)} · seed {written.seed}",
    }
    shown = "".join(
        f'<div class="tile"><b>{number}</b> {name}<small>{note}</small></div>' for name, (number, note) in tiles.items()
    )
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
    return f'<div class="tiles">{shown}</div><dl>{rows}</dl>'


def _short(number: float) -> float:
    """Four significant digits."""
    return float(f"{number:.4g}")


def _entropy(chances: Shares) -> float:
    """Entropy in bits."""
    possible = chances[chances > 0]
    return _short(-(possible * np.log2(possible)).sum())
