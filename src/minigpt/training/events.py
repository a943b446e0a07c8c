"""Evidence of a run -> events: heads that formed, drops after plateaus, sinks, and the trouble of trouble.py.

Each detector is a function of the whole evidence, so a resumed run finds the same events as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minigpt.inspection.glossary import RELATION
from minigpt.inspection.labels import LABELS, RELATION_LABEL, label_heads
from minigpt.training import trouble
from minigpt.training.evidence import BINS, Event, Evidence, ScoresAtStep, binned

FLAT, STEEP = 0.004, 0.012
"""Fall of the loss from bin to bin, as a share of it: below FLAT it stands still, above STEEP it drops."""
DROP = 0.04
"""Least fall after a plateau, as a share of the loss, that is a phase change and not its natural end."""
SINK_RATE = 0.3
"""Share of heads with an attention sink that makes it an event."""
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
"""Size of a massive activation, absolute and relative to the median (Sun et al. 2024, arXiv:2402.17762)."""


def find_events(evidence: Evidence) -> list[Event]:
    """All events, by step."""
    found = [event for detector in DETECTORS for event in detector(evidence)]
    return sorted(found, key=lambda event: (event.step, event.key))


def heads_formed(evidence: Evidence) -> Iterator[Event]:
    """Heads that have a label at the last snapshot and had not at the first, an event for each label."""
    snapshots = [snapshot for snapshot in evidence.snapshots if snapshot.scores]
    if len(snapshots) < 2:
        return
    last = snapshots[-1].scores
    thresholds = {name: RELATION_LABEL if name.startswith(RELATION) else LABELS.get(name) for name in last}
    formed: dict[str, list[dict[str, Any]]] = {}
    for layer, labels in enumerate(label_heads(last)):
        for head, label in enumerate(labels):
            names = (name for name in last if name.removeprefix(RELATION).replace("_", " ") == label)
            name = next(names, None)
            if name is None or name in {"first_token", "current_token"}:
                continue
            first = _formed_at(snapshots, name, thresholds[name] or math.inf, layer, head)
            if first:  # else it was there from the start
                found = {
                    "head": f"{layer}.{head}",
                    "step": snapshots[first].step,
                    "after_step": snapshots[first - 1].step,
                }
                found["score"] = float(last[name][layer, head])
                if "ablation" in last and np.isfinite(last["ablation"][layer, head]):
                    found["ablation"] = float(last["ablation"][layer, head])
                formed.setdefault(str(label), []).append(found)
    for label, heads in formed.items():
        heads.sort(key=lambda each: (each["step"], -each["score"]))
        yield Event(heads[0]["step"], "heads", _formed_in_words(label, heads), label, details={"heads": heads})


def _formed_at(snapshots: Sequence[ScoresAtStep], name: str, threshold: float, layer: int, head: int) -> int:
    """Index of the first snapshot from which on the score stays above its threshold."""
    first = len(snapshots)
    while first and name in snapshots[first - 1].scores and snapshots[first - 1].scores[name][layer, head] >= threshold:
        first -= 1
    return first


def _formed_in_words(label: str, heads: Sequence[Mapping[str, Any]]) -> str:
    first, rest = heads[0], len(heads) - 4
    names = ", ".join(f"{each['head']} ({each['score']:.2f})" for each in heads[:4])
    more = f" and {rest} more" if rest > 0 else ""
    effects = {each["head"]: each["ablation"] for each in heads if "ablation" in each}
    best = max(effects, key=lambda head: effects[head], default="")
    which = "it" if len(heads) == 1 else f"{best}, the most useful,"
    more_or_less = "higher" if effects and effects[best] >= 0 else "lower"
    effect = f"; without {which} the loss is {abs(effects[best]):.2f} nats {more_or_less}" if effects else ""
    plural = "heads" if len(heads) > 1 else "a head"
    return f"{label}: {plural} formed between steps {first['after_step']} and {first['step']}: {names}{more}{effect}"


def phases(evidence: Evidence) -> Iterator[Event]:
    """Plateaus of the train loss that end in a drop, as when induction heads form (Olsson et al. 2022)."""
    ends, means = binned(evidence.losses)
    falls = -np.diff(means) / means[1:] if len(means) else np.array([])  # fall into bin i + 1
    least, i = max(3, BINS // 12), 0
    while i < len(falls):
        begin = i
        while i < len(falls) and abs(falls[i]) < FLAT:
            i += 1
        flat, drop = i - begin, i
        while drop < len(falls) and falls[drop] >= FLAT:
            drop += 1
        fall = 1 - means[drop] / means[i] if i < len(means) else 0.0
        if flat >= least and fall >= DROP and falls[i:drop].max(initial=0) >= STEEP:
            where, until = f"step {ends[i]}", ends[drop]
            yield Event(
                ends[i],
                "drop",
                f"train/loss stood at {means[i]:.2f} from step {ends[begin]} to {ends[i]}, then fell to "
                f"{means[drop]:.2f} by step {until}",
                where,
                details={"plateau_from": ends[begin], "until": until, "before": means[i], "after": means[drop]},
            )
        i = max(drop, i + 1)


def sinks(evidence: Evidence) -> Iterator[Event]:
    """Attention sinks that appear (Xiao et al. 2023, https://arxiv.org/abs/2309.17453)."""
    rates = {
        snapshot.step: snapshot.numbers["sink_rate"]
        for snapshot in evidence.snapshots
        if "sink_rate" in snapshot.numbers
    }
    above = [step for step, rate in rates.items() if rate >= SINK_RATE]
    if above and rates[max(rates)] >= SINK_RATE and above[0] != min(rates):
        share = rates[max(rates)]
        text = f"attention sinks: {share:.0%} of the heads give the first token over 0.3 of their weight"
        yield Event(above[0], "sinks", text, details={"sink_rate": share})


def massive_activations(evidence: Evidence) -> Iterator[Event]:
    """Activations thousands of times the median (Sun et al. 2024, https://arxiv.org/abs/2402.17762)."""
    for step, found in sorted(evidence.diagnostics.items()):
        sizes = zip(found.largest_activations, found.median_activations, strict=True)
        for layer, (largest, median) in enumerate(sizes):
            if largest > MASSIVE and largest > MASSIVE_RATIO * median:
                times = largest / max(median, 1e-9)
                text = f"massive activations after layer {layer}: {largest:.0f}, {times:.0f} times the median"
                yield Event(step, "massive_activations", text, f"layer {layer}")
                return


DETECTORS: tuple[Callable[[Evidence], Iterator[Event]], ...] = (
    heads_formed,
    phases,
    sinks,
    massive_activations,
    *trouble.DETECTORS,
)
