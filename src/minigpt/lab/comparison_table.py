"""The table of a comparison: losses, differences paired by seed, speeds; and its picture."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from minigpt.inspection.intervals import student_t
from minigpt.markdown import table as markdown_table


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """A row of the table: one recipe, over its seeds."""

    recipe: str
    parameters: int
    val_loss: list[float]
    bits_per_byte: list[float]
    tokens_per_second: float
    peak_memory_bytes: float


def format_table(rows: Sequence[ComparisonRow], in_bits: bool = False) -> str:
    """A Markdown table, aligned to be read as plain text, and lines that explain its columns.

    Args:
        rows: the first is the one that the others' differences refer to.
        in_bits: differences in bits per byte, which also compare tokenizers; else in val/loss.
    """

    def values(row: ComparisonRow) -> list[float]:
        return row.bits_per_byte if in_bits else row.val_loss

    unit = "bits per byte" if in_bits else "val/loss"
    columns = {
        "recipe": lambda row: row.recipe,
        "parameters": lambda row: f"{row.parameters:,}",
        "val/loss": lambda row: _with_spread(row.val_loss),
        "bits per byte": lambda row: _with_spread(row.bits_per_byte),
        "difference": lambda row: "" if row is rows[0] else _with_interval(values(row), values(rows[0])),
        "tokens/s": lambda row: f"{row.tokens_per_second:,.0f}",
        "peak memory": lambda row: f"{row.peak_memory_bytes / 1e6:,.0f} MB",
    }
    if len(rows) < 2:
        del columns["difference"]
    table = markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])
    return f"{table}\n\n{_legend(unit, len(rows[0].val_loss))}" if len(rows) > 1 else table


def _legend(unit: str, n_seeds: int) -> str:
    difference = f"difference: {unit} minus that of the first row, paired by seed"
    if n_seeds < 2:
        return f"{difference}. One seed gives no interval: add some, as in --seeds 1 2 3."
    lines = [
        "val/loss and bits per byte: mean over the seeds ± half their range.",
        f"{difference}: mean ± its 95 % interval (Student's t, {n_seeds} seeds).",
    ]
    if n_seeds == 2:
        lines.append("Two seeds give a wide interval (12.7 standard errors): add some, as in --seeds 1 2 3.")
    return "\n".join(lines)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float | None]:
    """The mean difference of runs with equal seeds, and half its 95 % interval: None for one seed.

    Equal seeds give equal batches, so part of the noise of both runs is common, and cancels in the difference.

    Args:
        values: of each seed.
        baseline: of the same seeds in the same order.
    """
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    if len(differences) < 2:
        return differences[0], None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), student_t(len(differences) - 1) * error


def _with_interval(values: Sequence[float], baseline: Sequence[float]) -> str:
    mean, half = paired_difference(values, baseline)
    return f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")


def _with_spread(values: Sequence[float]) -> str:
    spread = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")


def draw_curves(rows: Sequence[ComparisonRow], path: Path) -> None:
    """Plot bits per byte of every seed, and speed, to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, places = [row.recipe for row in rows], range(len(rows))
    figure, (losses, speeds) = pyplot.subplots(
        1, 2, sharey=True, figsize=(9, 1 + 0.32 * len(rows)), width_ratios=(2, 1), layout="constrained"
    )
    for place, row in zip(places, rows, strict=True):
        losses.plot(row.bits_per_byte, [place] * len(row.bits_per_byte), "o", color="#3b6ea8", markersize=5)
        losses.plot(statistics.mean(row.bits_per_byte), place, "|", color="black", markersize=12)
    speeds.barh(places, [row.tokens_per_second for row in rows], color="#c9d7e8")
    losses.set_yticks(places, names)
    losses.invert_yaxis()
    losses.set_xlabel("bits per byte (each seed, and their mean)")
    speeds.set_xlabel("tokens per second")
    for axes in (losses, speeds):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, format="png", dpi=130)
    pyplot.close(figure)
