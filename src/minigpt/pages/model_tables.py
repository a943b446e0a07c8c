"""Tables of an inspection for the terminal: heads, relations, ablated parts; and rows for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inspection.ablation import Kind, Part, ablation
from minigpt.inspection.heads import FEWEST_LINKS, HeadScores, head_table
from minigpt.inspection.labels import label_heads
from minigpt.inspection.relations import RelationScore
from minigpt.markdown import table
from minigpt.model.gpt import GPT
from minigpt.pages.attention import Labels

COLUMNS = ("induction", "duplicate_token", "previous_token", "current_token", "first_token", "entropy")
"""Scores in the table; the page has all of them."""
MOST_NAME = 60
"""Characters of a relation's name in the table."""


def tables(seen: HeadScores) -> list[str]:
    """Tables of heads and relations, and the numbers of the model without the maxima, which the table shows."""
    scores, numbers = seen.snapshot.scores, seen.snapshot.numbers
    shown = (f"{name} {_number(value, '.3f')}" for name, value in numbers.items() if not name.startswith("max/"))
    heads = heads_as_table(scores, label_heads(scores), seen.ablation_kind)
    return [heads, relation_lines(seen.relations), "   ".join(shown)]


def heads_as_table(
    scores: Mapping[str, npt.NDArray[np.floating]], labels: Labels, kind: Kind, *, signed: bool = False
) -> str:
    """Every head with its label and main scores, the largest ablation first; with `signed`, of either sign."""
    titles = {name: name.replace("_", " ") for name in COLUMNS if name in scores}
    forms = dict.fromkeys(titles, "+.2f" if signed else ".2f")
    if "ablation" in scores:
        titles["ablation"], forms["ablation"] = f"loss without it ({kind})", "+.3f"
    if "ablation_spread" in scores and not signed and np.isfinite(scores["ablation_spread"]).any():
        titles["ablation_spread"], forms["ablation_spread"] = "spread", ".3f"
    if "ablation_repeated" in scores:
        titles["ablation_repeated"], forms["ablation_repeated"] = "on repeated tokens", "+.3f"
    shape = next(iter(scores.values())).shape
    change = scores.get("ablation", np.zeros(shape))
    heads = sorted(np.ndindex(shape), key=lambda at: -abs(change[at]) if signed else -change[at])
    rows = [
        [
            f"{at[0]}.{at[1]}",
            *([labels[at[0]][at[1]] or ""] if labels else []),
            *(_number(float(scores[name][at]), forms[name]) for name in titles),
        ]
        for at in heads
    ]
    return table(["head", *(["label"] if labels else []), *titles.values()], rows)


def _number(value: float, form: str) -> str:
    """As on the pages: what rounds to zero has no sign, what is undefined is a dash."""
    text = format(value, form) if np.isfinite(value) else "–"
    return text if text.strip("+-0.") else text.lstrip("+-")


def relation_lines(found: Mapping[str, RelationScore]) -> str:
    """For each relation the head with the largest lift: its weight, the part that distance explains, the interval."""
    if not found:
        return ""
    rows = []
    for name, score in found.items():
        at = np.unravel_index(np.argmax(score.lift), score.lift.shape)
        numbers = (_number(float(values[at]), ".2f") for values in (score.mass, score.baseline, score.lift))
        half = score.half_interval[at]
        interval = f"±{half:.2f}" if np.isfinite(half) else "–"
        rows.append([_cell(name), f"{at[0]}.{at[1]}", *numbers, interval, str(score.n_links)])
    lines = [table(["relation", "head", "weight", "by distance", "lift", "95 % interval", "links"], rows)]
    lines.append("Interval: of the lift, Student's t over the links.")
    if few := [_cell(name) for name, score in found.items() if score.n_links < FEWEST_LINKS]:
        lines.append(f"Fewer than {FEWEST_LINKS} links, so no head is labelled: {', '.join(few)}.")
    return "\n".join(lines)


def _cell(name: str) -> str:
    """The name of a relation, which a file gives, in a table: on one line, and not long."""
    line = " ".join(name.split())
    return (line if len(line) <= MOST_NAME else f"{line[: MOST_NAME - 1]}…").replace("|", "\\|")


def parts_to_ablate(asked: str | None, model: GPT, windows: Tensor) -> list[str]:
    """The parts that --ablate names, each alone, then all together.

    Raises:
        UserError: the model has no such part, or the text has no token to predict.
    """
    if asked is None:
        return []
    whole = Part.of(asked, model.config.n_layer, model.config.n_head).name
    if not len(windows):
        raise UserError(f"ablate={asked}: the text has a single token; give a longer one")
    alone = list(dict.fromkeys(whole.split(",")))
    return alone if len(alone) < 2 else [*alone, whole]


def ablation_table(model: GPT, windows: Tensor, parts: Sequence[str], kind: Kind) -> str:
    """The loss of the text without each part, with its spread over the windows."""
    if not parts:
        return ""
    found = ablation(model, windows.to(next(model.parameters()).device), kind=kind, parts=parts)
    loss, B, n = float(found.losses.double().nanmean()), len(windows), int((~found.losses.isnan()).sum())
    rows = [
        [name, f"{loss + change:.4f}", f"{change:+.4f}", f"{spread:.4f}" if B > 1 else "–"]
        for name, change, spread in zip(found.parts, found.mean.tolist(), found.spread.tolist(), strict=True)
    ]
    said = f"Loss {loss:.4f} nats per token, on {n:,} tokens in {B} window{'s' * (B > 1)}; {kind} ablation:"
    return f"{said}\n{table(['without', 'loss', 'change', 'spread'], rows)}"


def rows_of_heads(scored: Sequence[tuple[str, HeadScores]]) -> tuple[list[str], list[list[object]]]:
    """Columns and a row for each head of one or more models: where there are several, run and step come first."""
    records = list[dict[str, object]]()
    for name, seen in scored:
        columns, rows = head_table(seen.snapshot.scores, seen.ablation_kind)
        model = {"run": name, "step": seen.snapshot.step} if len(scored) > 1 else {}
        records += [model | dict(zip(columns, row, strict=True)) for row in rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    return names, [[record.get(name) for name in names] for record in records]
