"""Scores and labels of every head, and a few numbers of the model, on a text and on repeated random tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.data.tokenizers.base import Tokenizer, first_token
from minigpt.inspection import capture, statistics
from minigpt.inspection.ablation import UNKNOWN, Kind, ablation
from minigpt.inspection.causes import Causes, find_causes
from minigpt.inspection.circuits import copying, symmetry
from minigpt.inspection.glossary import FEW_LINKS, RELATION
from minigpt.inspection.labels import LABELS, label_heads
from minigpt.inspection.measuring import measure
from minigpt.inspection.packing import Weights
from minigpt.inspection.probes import Probe
from minigpt.inspection.relations import Heads, RelationScore
from minigpt.inspection.snapshot import Snapshot
from minigpt.inspection.statistics import Statistic
from minigpt.model.gpt import GPT

MOST_REPEATED, N_REPEATED = 64, 4
"""Most tokens in a random sequence that is repeated, and number of such sequences."""
ABLATION_OPERATIONS = 3e12
"""Most floating-point operations for the ablation of all heads on a CPU: a minute on one core. Twice that with the
ablation on repeated tokens."""
MOST_ABLATED, FEWEST_ABLATED = 2048, 16
"""Most tokens of a text on which heads are ablated, and fewest: a larger model has no such score."""
COPY_MARGIN = 0.1
"""Nats by which the second copy of random tokens must be more likely than chance, and than the first, for an ablation
on it: without copying, that number is noise about text which the model has never seen."""

TEXT_STATISTICS: Mapping[str, Statistic] = {
    "entropy": statistics.entropy,
    "previous_token": statistics.previous_token,
    "current_token": statistics.current_token,
    "first_token": statistics.first_token,
    "mean_distance": statistics.mean_distance,
    "near_zero": statistics.near_zero,
    "keys_for_90": statistics.keys_for_mass(0.90),
}
COSTLY_STATISTICS: Mapping[str, Statistic] = {"keys_for_99": statistics.keys_for_mass(0.99)}
FEWEST_LINKS = 5
"""Relations with fewer links give a head no label: the mean is noisy, as its interval says."""


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Results of a model on one probe."""

    snapshot: Snapshot
    relations: dict[str, RelationScore]
    """Scores of every head for each relation in the probe's windows."""
    ablated_tokens: int = 0
    """Number of the text's tokens on which heads were ablated; large models have fewer, or none."""
    ablation_kind: Kind = "zero"
    """What replaced the heads' outputs."""
    measured_tokens: int = 0
    """Number of the text's tokens on which heads are scored; the maps are of the first ones."""
    causes: Causes | None = None
    """Of each prediction in the text that is shown; only where everything is computed."""

    @property
    def notes(self) -> dict[str, str]:
        """Name of a score -> what the glossary leaves open: the kind of ablation, numbers of tokens and of links."""
        notes = dict[str, str]()
        if self.ablated_tokens:
            notes["ablation"] = f"Here {self.ablation_kind} ablation, on {self.ablated_tokens:,} tokens"
            by_token = self.causes is not None and self.ablation_kind != "zero"
            notes["ablation"] += "; the list of a token has zero ablation." if by_token else "."
        for score, key in zip(self.relations.values(), relation_scores(self.relations), strict=True):
            layer, head = np.unravel_index(np.argmax(score.lift), score.lift.shape)
            lift, half = float(score.lift[layer, head]), float(score.half_interval[layer, head])
            interval = f" \u00b1 {half:.2f} (95 %)" if np.isfinite(half) else ""
            links = f"{score.n_links:,} link{'s' * (score.n_links != 1)}"
            notes[key] = f"Here {links}; the largest lift is {lift:.2f}{interval}, of head {layer}.{head}."
        return notes


def score_heads(
    model: GPT,
    tokenizer: Tokenizer,
    probe: Probe,
    step: int,
    *,
    everything: bool = False,
    ablation_kind: Kind = "zero",
) -> HeadScores:
    """Run a model on a probe and score every head.

    Args:
        model: not modified.
        tokenizer: the one that encoded the probe.
        probe: text to inspect.
        step: training step of the model's weights.
        everything: also compute the expensive scores: `circuit_scores`, `text_ablation`, `repeated_ablation`.
        ablation_kind: of the ablation on the text.

    Raises:
        UserError: resample ablation of a text of one window.
        DivergedError: the model gives NaN or infinite numbers.
    """
    snapshot = capture.probe(model, tokenizer, probe.tokens, step)
    scores, numbers = measure_repeated(model, first_token(tokenizer))
    relations: dict[str, RelationScore] = {}
    if len(probe.windows):
        windows = probe.windows.to(next(model.parameters()).device)
        wanted = {**TEXT_STATISTICS, **(COSTLY_STATISTICS if everything else {})}
        found = measure(model, windows, wanted, probe.window_links)
        relations = found.relations
        scores |= found.scores | relation_scores(relations)
        if (score := in_context_score(found.losses)) is not None:
            numbers["icl_score"] = score
    numbers |= summary(scores)
    ablated, causes = probe.windows[:0], None
    if everything:
        ablated = affordable_windows(model, probe.windows)
        scores |= circuit_scores(model, snapshot.weights) | text_ablation(model, ablated, ablation_kind)
        scores |= repeated_ablation(model, first_token(tokenizer), numbers)
        can_ablate = affordable_tokens(model) >= len(probe.tokens)
        causes = find_causes(model, tokenizer, probe.tokens, probe.following, with_ablation=can_ablate)
    single = {name: score.astype(np.float32) for name, score in scores.items()}
    snapshot = replace(snapshot, scores=single, numbers=numbers)
    n_ablated = int((ablated[:, 1:] != UNKNOWN).sum())
    n_measured = int((probe.windows[:, 1:] != UNKNOWN).sum())
    return HeadScores(snapshot, relations, n_ablated, ablation_kind, n_measured, causes)


def measure_repeated(model: GPT, start: int) -> tuple[dict[str, Heads], dict[str, float]]:
    """Score heads on repeated random tokens, where only attention to the first copy lowers the loss.

    Returns:
        Scores `induction` and `duplicate_token`; numbers `second_copy_loss` and, for comparison, `first_copy_loss`, in
        nats. Both empty where two copies of two tokens do not fit the context.
    """
    period = repeated_period(model)
    if not period:
        return {}, {}
    wanted = {"induction": statistics.induction(period, 1), "duplicate_token": statistics.duplicate_token(period, 1)}
    found = measure(model, repeated_tokens(model, start, period), wanted)
    # The first token of the second copy is not predictable yet, so the first token of each copy is skipped.
    copies = {"first_copy_loss": found.losses[:, 1:period], "second_copy_loss": found.losses[:, period + 1 :]}
    return {name: found.scores[name] for name in wanted}, {name: float(each.mean()) for name, each in copies.items()}


def repeated_period(model: GPT) -> int:
    """Most tokens, up to MOST_REPEATED, whose two copies after the first token fit the context; 0 if fewer than two."""
    period = min(MOST_REPEATED, model.config.context_length // 2)
    return period if period >= 2 else 0


def repeated_tokens(model: GPT, start: int, period: int) -> Tensor:
    """(N_REPEATED, 1 + 2 period) ids: a first token, random tokens, and the same tokens again."""
    choices = torch.tensor([token for token in range(model.config.vocab_size or 0) if token != start])
    copy = choices[torch.randint(len(choices), (N_REPEATED, period), generator=torch.Generator().manual_seed(0))]
    first = torch.full((N_REPEATED, 1), start)
    return torch.cat([first, copy, copy], dim=1).to(next(model.parameters()).device)


def in_context_score(each: Tensor) -> float | None:
    """In-context learning score of (B, T) losses: mean of the last tenth of the context minus that of the second tenth.

    More negative is better (Olsson et al. 2022: loss of the 500th token minus the 50th). None below 20 tokens, and for
    windows of different lengths.
    """
    tenth = each.shape[1] // 10
    if tenth < 2 or each.isnan().any():  # short texts have no late tokens, and long ones are other texts
        return None
    return float(each[:, -tenth:].double().mean() - each[:, tenth : 2 * tenth].double().mean())


def affordable_tokens(model: GPT) -> int:
    """On how many tokens all heads can be ablated within ABLATION_OPERATIONS, at most MOST_ABLATED; all on a GPU."""
    config = model.config
    if next(model.parameters()).device.type != "cpu":
        return MOST_ABLATED
    in_blocks = sum(weight.numel() for weight in model.blocks.parameters())
    in_head = (config.vocab_size or 0) * config.n_embd
    # Two operations a weight and token: on average half of the blocks, and the head.
    one = 2 * config.n_layer * config.n_head * (in_blocks / 2 + in_head)
    return int(min(MOST_ABLATED, ABLATION_OPERATIONS // max(one, 1)))


def affordable_windows(model: GPT, windows: Tensor) -> Tensor:
    """The (B, T + 1) windows on which heads can be ablated: fewer, but two if there are two, and then shorter ones."""
    B, T = windows.shape[0], windows.shape[1] - 1
    most = affordable_tokens(model)
    if B == 0 or most < min(FEWEST_ABLATED, B * T):
        return windows[:0]
    n = min(B, max(2, most // T))
    return windows[:n, : min(T, most // n) + 1]


def circuit_scores(model: GPT, weights: Weights) -> dict[str, Heads]:
    """`copying` and `symmetry` from the model's weights, and `redundancy`.

    Args:
        model: not modified.
        weights: (n_layer, n_head, T, T) attention weights of any text.
    """
    layers = torch.from_numpy(weights)[:, None]
    scores = {"copying": copying(model), "symmetry": symmetry(model)}
    scores["redundancy"] = torch.stack([statistics.redundancy(layer) for layer in layers])
    return {name: score.double().numpy() for name, score in scores.items()}


def text_ablation(model: GPT, windows: Tensor, kind: Kind) -> dict[str, Heads]:
    """`ablation` of each head on the (B, T + 1) windows of a text, and `ablation_spread`; empty without windows."""
    if not len(windows):
        return {}
    found = ablation(model, windows.to(next(model.parameters()).device), kind=kind)
    shape = model.config.n_layer, model.config.n_head
    return {
        "ablation": found.mean.reshape(shape).numpy(),
        "ablation_spread": found.spread.reshape(shape).numpy(),
    }


def repeated_ablation(model: GPT, start: int, numbers: Mapping[str, float]) -> dict[str, Heads]:
    """`ablation_repeated`: zero ablation on the second copy of random tokens, whose loss depends on heads that copy.

    Args:
        model: not modified.
        start: token before repeated ones.
        numbers: those of `measure_repeated`.

    Returns:
        Empty where the model predicts the second copy no better than chance or than the first, by COPY_MARGIN, or where
        it is too large.
    """
    period = repeated_period(model)
    n = min(N_REPEATED, affordable_tokens(model) // max(2 * period, 1))
    chance = min(math.log(model.config.vocab_size or 1), numbers.get("first_copy_loss", 0.0))
    if not n or numbers.get("second_copy_loss", math.inf) > chance - COPY_MARGIN:
        return {}
    found = ablation(model, repeated_tokens(model, start, period)[:n], positions=slice(period + 1, None))
    return {"ablation_repeated": found.mean.reshape(model.config.n_layer, model.config.n_head).numpy()}


def summary(scores: Mapping[str, Heads]) -> dict[str, float]:
    """A few numbers to log as curves, however many heads the model has."""
    numbers = {
        f"max/{name.removeprefix(RELATION).replace(' ', '_')}": scores[name].max()
        for name in scores
        if name in LABELS or name.startswith(RELATION)
    }
    if "entropy" in scores:
        numbers["entropy_mean"], numbers["entropy_min"] = scores["entropy"].mean(), scores["entropy"].min()
        numbers["largest_score"] = scores["largest_score"].max()
        numbers["sink_rate"] = statistics.sink_rate(torch.from_numpy(scores["first_token"]))
    return {name: float(number) for name, number in numbers.items() if np.isfinite(number)}


def relation_scores(found: Mapping[str, RelationScore]) -> dict[str, Heads]:
    """Lift of each relation; the names of those with fewer than FEWEST_LINKS links say so."""
    return {
        (RELATION if score.n_links >= FEWEST_LINKS else FEW_LINKS) + name: score.lift for name, score in found.items()
    }


def head_table(
    scores: Mapping[str, npt.NDArray[np.floating]], ablation_kind: Kind | None = None
) -> tuple[list[str], list[list[object]]]:
    """Columns and a row for each head: layer, head, label, and every score, None where undefined.

    Args:
        scores: (n_layer, n_head) each.
        ablation_kind: of the score `ablation`, for a last column that says it.
    """
    said = [ablation_kind] if ablation_kind is not None and "ablation" in scores else []
    columns = ["layer", "head", "label", *scores, *(["ablation_kind"] if said else [])]
    labels = label_heads(scores)
    rows: list[list[object]] = []
    for layer, names in enumerate(labels):
        for head, name in enumerate(names):
            values = [float(score[layer, head]) for score in scores.values()]
            rows.append([layer, head, name, *(value if np.isfinite(value) else None for value in values), *said])
    return columns, rows
