"""The kept results' bounds -> the table of benchmarks/README.md: `python benchmarks/summary.py` renews it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import RESULTS, Bound

README, BEGIN, END = Path(__file__).parent / "README.md", "<!-- figures -->\n", "<!-- /figures -->\n"
Kept = tuple[Bound, str]
"""A bound, and the line that says where and when it was measured."""


def kept_bounds(benchmark: str) -> dict[str, Kept]:
    """Those of a benchmark's kept results, by name. Args: benchmark is the name of its JSON, such as training_cpu."""
    path = RESULTS / f"{benchmark}.json"
    parts: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found: dict[str, Kept] = {}
    for blocks in parts.values():
        cells = [cell for block in blocks if isinstance(block, dict) for row in block["rows"] for cell in row]
        for cell in cells:
            if isinstance(cell, dict) and "name" in cell:
                known = {name: value for name, value in cell.items() if name != "text"}
                found[cell["name"]] = Bound(**known), blocks[0]
    return found


def figures() -> str:
    """A table for each benchmark that has bounds."""
    tables = []
    for path in sorted(RESULTS.glob("*_*.json")):
        rows = []
        for bound, where in kept_bounds(path.stem).values():
            low, middle, high = (f"{value:.4g}" for value in bound.quartiles)
            verdict = str(bound).partition(",")[0]
            processor, date = where.partition(",")[0], where.split("; ")[2] if where.count("; ") > 1 else ""
            figure = f"{middle} {bound.unit}".strip() + (f" ({low} to {high})" if low != high else "")
            rows.append([bound.name, figure, bound.limit, verdict, bound.limited_by, f"{processor}, {date}"])
        if rows:
            heading = f"**[{path.stem}](results/{path.stem}.md)**"
            lines = [["what", "median (quartiles)", "bound", "", "limited by", "measured"], ["---"] * 6, *rows]
            tables.append("\n".join([heading, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n")
    return "\n".join(tables) or "No kept result has a bound yet: `make bench`.\n"


def renewed(text: str) -> str:
    """The page with the figures that the results have now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{figures()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
