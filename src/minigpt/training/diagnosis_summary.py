"""Evidence and events of a run -> the content of diagnosis.json, with a summary in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minigpt.training.evidence import Event, Evidence


def diagnosis(evidence: Evidence, events: Sequence[Event]) -> dict[str, Any]:
    """The content of diagnosis.json: plain JSON values without clocks and names."""
    by_position = _newest_losses(evidence)
    medians = {
        part: float(np.median([each.ratios[part] for each in evidence.updates]))
        for part in (evidence.updates[-1].ratios if evidence.updates else ())
    }
    return {
        "step": evidence.step,
        "warnings": sum(event.is_warning for event in events),
        "summary": list(sentences(evidence, events)),
        "try": list(dict.fromkeys(event.advice for event in events if event.advice)),
        "events": [_rounded(dataclasses.asdict(event)) for event in events],
        "loss_by_position": [
            dict(zip(("from", "to", "loss", "standard_error"), _rounded(part), strict=True)) for part in by_position
        ],
        "update_to_weight": _rounded(medians),
    }


def sentences(evidence: Evidence, events: Sequence[Event]) -> Iterator[str]:
    """The diagnosis in words, the most telling first."""
    losses, val = evidence.losses, evidence.val_losses
    if losses:
        first, last = min(losses), max(losses)
        end = f", val/loss is {val[max(val)]:.2f}" if val else ""
        yield f"train/loss went from {losses[first]:.2f} at step {first} to {losses[last]:.2f} at step {last}{end}."
    warnings = [event for event in events if event.is_warning]
    for event in warnings:
        yield f"{_capital(event.text)}. To try: {event.advice}." if event.advice else f"{_capital(event.text)}."
    for event in events:
        if not event.is_warning:
            yield f"{_capital(event.text)}."
    yield from _position_sentence(_newest_losses(evidence), _text_measured(evidence))
    if not warnings:
        yield "No sign of trouble."


def _newest_losses(evidence: Evidence) -> Sequence[tuple[int, int, float, float]]:
    return evidence.diagnostics[max(evidence.diagnostics)].losses if evidence.diagnostics else []


def _text_measured(evidence: Evidence) -> str:
    """Where the losses by position are measured: not on all that val/loss is of, so the two differ."""
    data, attention = evidence.config.data, evidence.config.attention
    is_given = data.mode == "examples" and (attention.text is not None or attention.relations is not None)
    return "On the inspected text" if is_given else "On the beginning of the held-out text"


def _position_sentence(parts: Sequence[tuple[int, int, float, float]], where: str) -> Iterator[str]:
    """How much more context helps, from the second eighth to the last: the first has hardly any."""
    if len(parts) < 3:
        return
    (begin, end, early, error), (last_begin, last_end, late, last_error) = parts[1], parts[-1]
    fall, doubt = early - late, 2 * math.hypot(error, last_error)
    said = f"{abs(fall):.2f} nats {'lower' if fall > 0 else 'higher'}" if abs(fall) > doubt else "no different"
    yield (
        f"{where}, the loss at tokens {last_begin} to {last_end} of the context is {late:.2f}, {said} "
        f"{'than' if abs(fall) > doubt else 'from that'} at {begin} to {end}."
    )


def _capital(text: str) -> str:
    return text if text.startswith(("train/", "val/")) else text[:1].upper() + text[1:]


def _rounded(value: Any) -> Any:
    """Plain JSON values, with five digits: a diagnosis is read by people."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return int(value) if isinstance(value, np.integer) else value
