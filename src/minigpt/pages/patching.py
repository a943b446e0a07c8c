"""Patching as a page: a heat map for each kind of patch, with the tokens of both prompts on its axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from minigpt.pages.colormap import DIVERGING_COLOURS
from minigpt.pages.documents import Page, base64_of, document, facts_html, json_for_html, rounded, tiles_html


@dataclass(frozen=True, eq=False)
class HeatMap:
    """One picture: a patch in each cell."""

    title: str
    note: str
    """What a cell is, in a sentence."""
    axes: tuple[str, str]
    """What a row and a column is: layer, head, position, sender or receiver."""
    rows: Sequence[str]
    columns: Sequence[str]
    effects: Tensor
    """(rows, columns): 0 as the corrupted prompt, 1 as the clean one; NaN where there is no patch."""
    values: Tensor
    """(rows, columns): the metric itself."""

    def cell(self, row: int, column: int) -> str:
        """Name of a cell: `head 1.0`, or `layer 1, position 3`. The page's script has the same."""
        if self.axes == ("layer", "head"):
            return f"head {self.rows[row]}.{self.columns[column]}"
        return f"{self.axes[0]} {self.rows[row]}, {self.axes[1]} {self.columns[column]}"


def render_patching(
    maps: Sequence[HeatMap],
    *,
    title: str,
    metric: str,
    prompts: tuple[Sequence[str], Sequence[str]],
    ends: tuple[float, float],
    position: int,
    facts: Mapping[str, str],
) -> Page:
    """The page.

    Args:
        maps: in this order.
        title: plain text.
        metric: what is measured, such as a logit difference.
        prompts: labels of the tokens of the clean and of the corrupted prompt.
        ends: metric of both.
        position: where the metric is read, from 0.
        facts: further names and texts.
    """
    n_different = sum(a != b for a, b in zip(*prompts, strict=True))
    tiles = [
        ("clean prompt", f"{ends[0]:.3f}", f"{metric}; an effect of 1"),
        ("corrupted prompt", f"{ends[1]:.3f}", f"{metric}; an effect of 0"),
        ("differing", f"{n_different} token{'s' * (n_different != 1)}", f"of {len(prompts[0])}"),
    ]
    data = {
        "clean": list(prompts[0]),
        "corrupted": list(prompts[1]),
        "position": position,
        "metric": metric,
        "colours": base64_of(DIVERGING_COLOURS),
        "maps": [_record(each) for each in maps],
    }
    return document("patching", title, summary=tiles_html(tiles) + facts_html(facts), data=json_for_html(data))


def _record(heat: HeatMap) -> dict[str, object]:
    return {
        "title": heat.title,
        "note": heat.note,
        "axes": heat.axes,
        "rows": list(heat.rows),
        "columns": list(heat.columns),
        "effects": rounded(heat.effects.flatten().tolist()),
        "values": rounded(heat.values.flatten().tolist()),
    }
