"""Signs of trouble in a run, each with its cause where that can be told, and advice.

Thresholds leave a wide gap between healthy runs and faults (tests/training/test_diagnosis.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minigpt.inspection.labels import label_heads
from minigpt.training.evidence import Event, Evidence, Spike, Update, binned

RISE, RISE_NATS = 0.1, 0.1
"""The training diverges if its loss is this share and this many nats above its lowest bin."""
LARGE_UPDATE = 0.35
"""Update-to-weight ratio, the median of all parts, of a learning rate that overwrites the initialisation. Healthy runs
of all recipes stay below 0.22, and ten times their learning rates begin above 0.5."""
EARLY_STEPS = 20
"""Updates shrink quickly in these steps, as weights grow from their initialisation."""
LARGE_SCORE = 100.0
"""Attention scores beyond this saturate the softmax; Kimi K2's threshold (2025, https://arxiv.org/abs/2507.20534)."""
DEAD = 1e-3
"""A head whose output is this share of the median head's adds nothing."""
COLLAPSED = 0.01
"""Entropy below which a head without another label attends to one token whatever the text."""
NO_POSITIONS = 1e-5
"""Relative difference of scores that is rounding."""
JUMP = 3.0
"""Growth of the updates between two measurements that is an event; no schedule of the learning rate reaches it."""
UNMOVED = 3
"""Measurements in a row without any change after which a part counts as frozen."""
MOVED = 4.0
"""A ratio or gradient this many times its usual size has moved."""


def divergence(evidence: Evidence) -> Iterator[Event]:
    """A loss that has risen from its lowest and stays there."""
    ends, means = binned(evidence.losses)
    if len(means) < 8:
        return
    best = int(means.argmin())
    later = means[best + 1 :]
    if len(later) >= 3 and later[-3:].min() > means[best] * (1 + RISE) and later[-3:].min() > means[best] + RISE_NATS:
        yield Event(
            ends[best],
            "divergence",
            f"train/loss rose from {means[best]:.2f} at step {ends[best]} to {means[-1]:.2f}",
            is_warning=True,
            advice="a third of optimizer.learning_rate, and optimizer.warmup_steps",
        )


def spikes(evidence: Evidence) -> Iterator[Event]:
    """Spikes, with their cause: a bad batch if the next steps are as before, else the update."""
    for spike in evidence.spikes:
        usual = spike.mean + 3 * max(spike.std, 0.02 * spike.mean)
        recovers = bool(spike.after) and float(np.median(spike.after)) <= usual
        cause = "the batch" if recovers else "the update" if spike.after else "unknown"
        said = f"train/loss spiked to {spike.loss:.2f} at step {spike.step} (before: {spike.mean:.2f})"
        if recovers:
            said += f" and recovered at once: look at micro-batches {spike.micro_batches}"
        moved = moved_first(evidence.updates, spike)
        if moved:
            said += f"; moved first: {', '.join(moved[:3])}"
        advice = "look at the text of these micro-batches" if recovers else "lower optimizer.learning_rate"
        details = {"loss": spike.loss, "before": spike.mean, "cause": cause, "micro_batches": spike.micro_batches}
        yield Event(
            spike.step, "spike", said, f"step {spike.step}", True, advice, details | {"moved_first": list(moved)}
        )


def moved_first(updates: Sequence[Update], spike: Spike) -> list[str]:
    """Parts whose update or gradient left its usual range earliest before a spike; else those that moved in it."""
    before = [update for update in updates if update.step <= spike.step][-12:]
    for index, update in enumerate(before):
        if index < 4:
            continue
        moved = {}
        for part, ratio in update.ratios.items():
            usual = [each.ratios[part] for each in before[:index]], [each.gradients[part] for each in before[:index]]
            factors = [_factor(ratio, usual[0]), _factor(update.gradients[part], usual[1])]
            moved[part] = max(factors)
        if max(moved.values(), default=0.0) >= MOVED:
            largest = sorted(moved, key=lambda part: -moved[part])
            return [f"{part} (x{moved[part]:.0f})" for part in largest if moved[part] >= MOVED]
    inside = spike.gradients | spike.scores
    return [
        f"{name} (x{inside[name]:.0f})" for name in sorted(inside, key=lambda name: -inside[name]) if inside[name] > 2
    ]


def _factor(value: float, usual: Sequence[float]) -> float:
    middle = float(np.median(usual))
    return value / middle if middle else 0.0


def frozen_layers(evidence: Evidence) -> Iterator[Event]:
    """Parts without changes or without a gradient while others have them. Adapters freeze weights on purpose."""
    recent = evidence.updates[-UNMOVED:]
    if evidence.config.lora is not None or len(recent) < UNMOVED:
        return
    frozen = [
        part
        for part in recent[0].ratios
        if all(each.ratios[part] == 0 and max(each.ratios.values()) > 0 for each in recent)
        or all(each.gradients[part] == 0 and max(each.gradients.values()) > 0 for each in recent)
    ]
    layers = dict[str, list[str]]()
    for part in frozen:
        layers.setdefault(".".join(part.split(".")[:2]), []).append(part)
    for layer, parts in layers.items():
        moved = (
            each.step for each in reversed(evidence.updates) if all(each.ratios[p] and each.gradients[p] for p in parts)
        )
        since, name = next(moved, 0), layer if len(parts) == 2 else parts[0]
        why = "it gets no gradient" if not recent[-1].gradients[parts[0]] else "the optimizer does not change it"
        advice = "check requires_grad, the optimizer's parameter groups, and detach() in the forward pass"
        yield Event(since, "frozen", f"{name} has not trained since step {since}: {why}", name, True, advice)


def large_updates(evidence: Evidence) -> Iterator[Event]:
    """Steps that change a large share of the weights, at the start or all at once later."""
    middle = {each.step: float(np.median(list(each.ratios.values()))) for each in evidence.updates}
    large = [step for step, ratio in middle.items() if ratio > LARGE_UPDATE]
    advice = "a tenth of optimizer.learning_rate, or optimizer.warmup_steps"
    if len(large) >= 2:
        worst = max(large, key=lambda step: middle[step])
        text = f"step {worst} changed the weights by {middle[worst]:.0%} of their size: the learning rate is too high"
        yield Event(large[0], "large_updates", text, is_warning=True, advice=advice, details={"ratio": middle[worst]})
    later = [step for step in middle if step > max(EARLY_STEPS, evidence.config.optimizer.warmup_steps)]
    for index in range(4, len(later)):
        usual = float(np.median([middle[step] for step in later[index - 4 : index]]))
        step = later[index]
        if usual and middle[step] > JUMP * usual:
            text = f"updates grew {middle[step] / usual:.0f} times between steps {later[index - 1]} and {step}"
            advice = "if no setting was changed there, look at the learning rate's schedule"
            yield Event(
                step, "update_jump", text, f"step {step}", True, advice, {"before": usual, "after": middle[step]}
            )
            return


def growing_scores(evidence: Evidence) -> Iterator[Event]:
    """Attention scores (logits) that grow beyond LARGE_SCORE."""
    model = evidence.config.model
    snapshots = [snapshot for snapshot in evidence.snapshots if "largest_score" in snapshot.scores]
    if model.similarity not in {"scaled_dot", "symmetric", "hopfield"} or not snapshots:
        return
    peaks = [float(np.nanmax(snapshot.scores["largest_score"])) for snapshot in snapshots]
    largest = int(np.argmax(peaks))
    if largest and peaks[largest] > max(LARGE_SCORE, 2 * peaks[0]):
        scores = snapshots[largest].scores["largest_score"]
        layer, head = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
        advice = "a lower optimizer.learning_rate"
        if not model.qk_norm:
            advice = "model.qk_norm=true in a new run, or optimizer.qk_clip=100 in this one"
        yield Event(
            next(snapshot.step for snapshot, peak in zip(snapshots, peaks, strict=True) if peak > LARGE_SCORE),
            "growing_scores",
            f"attention scores grow: {peaks[0]:.0f} at step {snapshots[0].step}, {peaks[largest]:.0f} at step "
            f"{snapshots[largest].step} in head {layer}.{head}",
            is_warning=True,
            advice=advice,
            details={"head": f"{layer}.{head}", "largest": peaks[largest]},
        )


def dead_heads(evidence: Evidence) -> Iterator[Event]:
    """Heads that add nothing to the residual stream at the last two snapshots or more."""
    steps = sorted(evidence.diagnostics)
    outputs = [np.array(evidence.diagnostics[step].head_outputs) for step in steps]
    dead = [each < DEAD * np.median(each) for each in outputs]
    for layer, head in np.argwhere(dead[-1]) if dead else []:
        first = len(dead)
        while first and dead[first - 1][layer, head]:
            first -= 1
        if len(dead) - first < 2:
            continue
        name, share = f"{layer}.{head}", float(outputs[-1][layer, head] / max(np.median(outputs[-1]), 1e-30))
        text = f"head {name} adds nothing to the residual stream since step {steps[first]}"
        advice = "look for zeros in its values and output projection, a lower weight_decay"
        yield Event(steps[first], "dead_head", text, name, True, advice, {"share_of_median": share})


def collapsed_heads(evidence: Evidence) -> Iterator[Event]:
    """Heads with an entropy of zero that no label explains: entropy collapse (Zhai et al. 2023, arXiv:2303.06296)."""
    snapshots = [snapshot for snapshot in evidence.snapshots if "entropy" in snapshot.scores][-2:]
    if len(snapshots) < 2 or evidence.config.model.similarity == "hard":
        return
    labels, entropy = label_heads(snapshots[-1].scores), snapshots[-1].scores["entropy"]
    low = np.all([np.nan_to_num(snapshot.scores["entropy"], nan=1.0) < COLLAPSED for snapshot in snapshots], axis=0)
    heads = [(layer, head) for layer, head in np.argwhere(low) if labels[layer][head] in {None, "first token"}]
    for layer, head in heads:
        at = "the first token" if labels[layer][head] else "one token at a time"
        yield Event(
            snapshots[0].step,
            "collapsed_head",
            f"head {layer}.{head} attends to {at} only: its entropy is {entropy[layer, head]:.3f}",
            f"{layer}.{head}",
            True,
            "model.qk_norm=true or a lower optimizer.learning_rate",
        )


def positions_off(evidence: Evidence) -> Iterator[Event]:
    """Positions that have no effect although the config has some."""
    effects = [(step, each.position_effect) for step, each in sorted(evidence.diagnostics.items())]
    off = list(itertools.takewhile(lambda each: each[1] is not None and each[1] < NO_POSITIONS, reversed(effects)))
    if len(off) >= 2:
        step, position = off[-1][0], evidence.config.model.position
        text = f"positions have no effect since step {step}: equal tokens get equal scores at all distances"
        advice = f"check that model.position={position} reaches attention"
        yield Event(step, "positions_off", text, is_warning=True, advice=advice)


def memorising(evidence: Evidence) -> Iterator[Event]:
    """The run memorises, see `training.memorising`."""
    if evidence.memorises is not None:
        best, step = evidence.memorises["best"], int(evidence.memorises["best_step"])
        text = f"memorising: val/loss has risen since step {step}, where it was {best:.2f}"
        advice = "fewer steps, more text, weight_decay or dropout"
        yield Event(step, "memorising", text, is_warning=True, advice=advice, details=evidence.memorises)


def skipped_steps(evidence: Evidence) -> Iterator[Event]:
    """Steps that were not taken, as their loss or gradient was NaN or infinite."""
    if evidence.skipped:
        steps = evidence.skipped
        shown = ", ".join(map(str, steps[:5])) + (" ..." if len(steps) > 5 else "")
        text = f"{len(steps)} steps had a loss or gradient that is NaN or infinite: {shown}"
        advice = "see anomalies/; a lower optimizer.learning_rate"
        yield Event(steps[0], "not_finite", text, is_warning=True, advice=advice, details={"steps": steps[:100]})


DETECTORS: tuple[Callable[[Evidence], Iterator[Event]], ...] = (
    divergence,
    spikes,
    frozen_layers,
    large_updates,
    growing_scores,
    dead_heads,
    collapsed_heads,
    positions_off,
    memorising,
    skipped_steps,
)
