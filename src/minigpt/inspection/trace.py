"""Trace a generation: each drawn token, its alternatives, what each setting removed, and the attention of every head.

Everything is recorded during generation, from the logits that are sampled and the queries and keys of each layer. No
forward pass runs twice, and the generated text does not change.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import UserError
from minigpt.generation.engine import Logits, window_start
from minigpt.generation.generator import Completion, Writer
from minigpt.generation.sampling import Candidates, Generator, draw
from minigpt.inspection import packing
from minigpt.inspection.capture import attention_hooks
from minigpt.model.variants.attend import AttentionSpec, attention_weights
from minigpt.model.variants.similarities import Linear

Probabilities = npt.NDArray[np.float64]

ALTERNATIVES = 10
"""Likeliest tokens listed for each drawn token; the drawn one is added if it is not among them."""


class Trace:
    """Attention and sampling of a generation, step by step: a step is one drawn token."""

    def __init__(self, writer: Writer, config: GenerationConfig) -> None:
        self.model, self.temperature = writer.model, config.temperature
        self.n_prompt = 0
        self.drawn: list[int] = []
        """Ids, with the stop token, which is not part of the text."""
        self.stages: list[str] = []
        """Names of the settings, in the order in which they apply."""
        self.steps: list[dict[str, Any]] = []
        """See `_step`."""
        self.levels: list[list[packing.Levels]] = []
        """For each step and layer (H, S): weights of the newest token on the keys of its window, packed."""
        self.starts: list[int] = []
        """For each step the position of the window's first token."""
        self._keys: dict[int, Tensor] = {}
        self._generator = Generator(config.seed)

    def hook(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> None:
        """Hook on attention: keep the weights of the newest token."""
        T = query.shape[2]
        self.n_prompt = self.n_prompt or T
        n_tokens = self.n_prompt + len(self.drawn)
        start = window_start(n_tokens, self.model.config.context_length)
        if isinstance(spec["similarity"], Linear):
            # Linear attention may cache sums instead of keys; then `key` has the new tokens only.
            is_whole = key.shape[2] == n_tokens - start
            key = self._keys[layer] = key if is_whole else torch.cat([self._keys[layer], key], dim=2)
        weights = attention_weights(query, key, **spec, queries=range(T - 1, T))[0, :, 0]  # (H, S)
        if layer == 0:
            self.levels.append([])
            self.starts.append(start)
        self.levels[-1].append(packing.compand(weights.float().cpu().numpy()))

    def watch(self, logits: Logits, stages: list[tuple[str, Candidates]]) -> None:
        """Hook on sampling: record the distribution, and draw the engine's token with a generator of the same seed."""
        candidates = stages[-1][1]
        token = draw(candidates, self.temperature, self._generator)
        if self.temperature == 0:
            stages = [*stages, ("temperature", candidates.kept(candidates.tokens == token))]
        self.stages = [name for name, _ in stages]
        self.steps.append(_step(logits.astype(np.float64), [candidates for _, candidates in stages], token))
        self.drawn.append(token)


def trace_generation(writer: Writer, prompt: str, config: GenerationConfig) -> tuple[Completion, Trace]:
    """The text that `writer.generate` gives, and how it came about.

    Raises:
        UserError: as `Writer.generate`, or the model is an int8 or compiled one, which has no hooks.
    """
    if writer.reader is not None:
        raise UserError("an int8 or compiled model cannot be explained: load it without int8 and compile")
    # Drafted tokens would share a forward pass, and the hook keeps one query of each. Drafts do not change the text.
    config = dataclasses.replace(config, draft_tokens=0)
    trace = Trace(writer, config)
    with attention_hooks(writer.model, trace.hook):
        return writer.generate(prompt, config, watch=trace.watch), trace


def _step(logits: Probabilities, left: list[Candidates], token: int) -> dict[str, Any]:
    """One drawn token; all numbers have four digits.

    Args:
        logits: (V,) of the model.
        left: what each setting left.
        token: the drawn one.

    Returns:
        token, rank and bits (surprise) of the drawn token; entropy in bits by the model and when drawn; alternatives,
        with (id, probability by the model, probability when drawn, number of the setting that removed it or -1) each;
        rest, with the number of other tokens and both probabilities; removals, with (tokens, their probability by the
        model, total variation distance to the previous distribution) for each setting.
    """
    V = len(logits)
    by_model = drawn_from = _probabilities(Candidates(np.arange(V), logits), V)
    removed_by = np.full(V, -1)
    removals = []
    for number, candidates in enumerate(left):
        lost = removed_by < 0
        lost[candidates.tokens] = False
        removed_by[lost] = number
        previous, drawn_from = drawn_from, _probabilities(candidates, V)
        moved = np.abs(drawn_from - previous).sum() / 2
        removals.append([int(lost.sum()), _short(by_model[lost].sum()), _short(moved)])
    listed: list[int] = np.argsort(-by_model, kind="stable")[:ALTERNATIVES].tolist()
    listed += [] if token in listed else [token]
    rest = np.ones(V, dtype=np.bool_)
    rest[listed] = False
    return {
        "token": token,
        "rank": 1 + int((by_model > by_model[token]).sum()),
        "bits": _short((np.logaddexp.reduce(logits) - logits[token]) / math.log(2)),
        "entropy": [_entropy(by_model), _entropy(drawn_from)],
        "alternatives": [[i, _short(by_model[i]), _short(drawn_from[i]), int(removed_by[i])] for i in listed],
        "rest": [int(rest.sum()), _short(by_model[rest].sum()), _short(drawn_from[rest].sum())],
        "removals": removals,
    }


def _probabilities(candidates: Candidates, V: int) -> Probabilities:
    """(V,) probabilities, 0 for removed tokens."""
    probabilities = np.zeros(V)
    probabilities[candidates.tokens] = np.exp(candidates.logits - candidates.logits.max())
    return probabilities / probabilities.sum()


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def _entropy(probabilities: Probabilities) -> float:
    """Entropy in bits."""
    possible = probabilities[probabilities > 0]
    return _short(-(possible * np.log2(possible)).sum())
