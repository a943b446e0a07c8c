"""Rows -> a Markdown table that reads as plain text too."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and numbers, which the others are, to the right.

    Args:
        header: names of the columns.
        rows: cells, as many in each row.
    """
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def written(line: Sequence[str]) -> str:
        cells = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        return "| " + " | ".join(cells) + " |"

    return "\n".join(map(written, [header, rule, *rows]))
