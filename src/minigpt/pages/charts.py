"""Charts of values over steps: SVG that needs no script, and the points that report.js reads out."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 2000, 1000
"""Units of the SVG's viewBox, which is stretched to the page; the same as in report.js."""
MOST_POINTS = 800
"""Of one line. Longer ones keep the minimum and maximum of each stretch, so that no spike is lost."""
LEAST_SHARE = 0.1
"""The y axis covers at least this share of the largest value, so that noise around a constant looks small."""
MOST_DOTS = 40
"""Lines with more points are drawn without dots."""

_Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Chart:
    """One or two lines over the same steps: name -> step -> value, at least one each."""

    lines: Mapping[str, Mapping[int, float]]
    wide: bool = False
    least_span: float = 0.0
    """Least range of the y axis, in the unit of the values."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Name -> what the line shows, as a tooltip."""

    def html(self, number: int) -> str:
        """The chart as a <figure>; `number` is its index among the charts of a document."""
        lines = self._points()
        first, last, bottom, top = _limits(lines, self.least_span)

        def x(step: float) -> int:
            return round((step - first) / (last - first) * WIDTH)

        def y(value: float) -> int:
            return round((top - value) / (top - bottom) * HEIGHT)

        rows, columns = _ticks(bottom, top, 6 if self.wide else 4), _ticks(first, last, 8 if self.wide else 4)
        drawn = [f'<path class="rules" d="{"".join(f"M0 {y(row)}H{WIDTH}" for row in rows)}"/>']
        for place, points in enumerate(lines.values()):
            path = " ".join(f"{x(step)} {y(value)}" for step, value in points)
            drawn.append(f'<path class="line line-{place}" d="M{path}"/>')
            if len(points) <= MOST_DOTS:
                # A dot is a zero-length line with round caps, which stays round where the drawing is stretched.
                dots = "".join(f"M{x(step)} {y(value)}h0" for step, value in points)
                drawn.append(f'<path class="dots line-{place}" d="{dots}"/>')
        captions = "".join(self._caption(place, *line) for place, line in enumerate(lines.items()))
        told = "; ".join(f"{name} {_latest(points)}" for name, points in lines.items())
        values = "".join(f'<text x="100%" y="{y(row) / HEIGHT:.2%}">{_label(row)}</text>' for row in rows)
        steps = "".join(f'<text x="{x(step) / WIDTH:.2%}" y="11">{_label(step)}</text>' for step in columns)
        return (
            f'<figure class="chart{" wide" if self.wide else ""}" id="chart-{number}">'
            f"<figcaption>{captions}</figcaption>"
            f'<div class="plot"><svg class="left" aria-hidden="true">{values}</svg>'
            f'<svg class="lines" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" tabindex="0" role="slider"'
            f' aria-label="{html.escape(" and ".join(lines))} over the steps" aria-valuemin="{first}"'
            f' aria-valuemax="{last}" aria-valuenow="{last}" aria-valuetext="{html.escape(told)}">'
            f'{"".join(drawn)}<path class="cursor"/><path class="dots cursor-dots"/></svg>'
            f'<span class="unit">step</span><svg class="bottom" aria-hidden="true">{steps}</svg></div></figure>'
        )

    def data(self) -> dict[str, object]:
        """Limits and points, from which report.js shows the value at a step."""
        lines = self._points()
        return {
            "limits": _limits(lines, self.least_span),
            "lines": [
                {
                    "name": name,
                    "steps": [step for step, _ in points],
                    "values": [short(value) for _, value in points],
                }
                for name, points in lines.items()
            ],
        }

    def _caption(self, place: int, name: str, points: _Points) -> str:
        dots = '<path class="dots" d="M12 5h0"/>' if len(points) <= MOST_DOTS else ""
        sample = f'<svg class="sample line-{place}" aria-hidden="true"><path class="line" d="M1 5H23"/>{dots}</svg>'
        value = f'<span class="value">{_latest(points)}</span>'
        note = f' title="{html.escape(self.notes[name])}"' if name in self.notes else ""
        return f'<span class="entry"{note}>{sample} <bdi>{html.escape(name)}</bdi> {value}</span>'

    def _points(self) -> dict[str, _Points]:
        return {name: thinned(list(line.items())) for name, line in self.lines.items()}


def short(value: float) -> str:
    """Four significant digits, more only before the point."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"


def thinned(points: _Points, most: int = MOST_POINTS) -> _Points:
    """About `most` points: the first, the last, and the minimum and maximum of each stretch between."""
    if len(points) <= most:
        return points
    kept = {0, len(points) - 1}
    n_stretches = most // 2
    for stretch in range(n_stretches):
        places = range(stretch * len(points) // n_stretches, (stretch + 1) * len(points) // n_stretches)
        kept |= {min(places, key=lambda i: points[i][1]), max(places, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _latest(points: _Points) -> str:
    step, value = points[-1]
    return f"{short(value)} at step {step}"


def _limits(lines: Mapping[str, _Points], least_span: float) -> tuple[int, int, float, float]:
    """First and last step, bottom and top, with some room above and below the values."""
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    span = max(high - low, LEAST_SHARE * largest, least_span)
    if span <= 1e-200:  # all values are zero, or nearly
        span = 1.0
    room = 0.05 * span
    below = (span - (high - low)) / 2
    if low >= 0:  # values that are never negative get no axis below zero
        below = min(below, low)
    return min(steps), max(max(steps), min(steps) + 1), low - below - room, low - below + span + room


def _label(value: float) -> str:
    """A round number, in few characters: `0.25`, `2000`, `150k`, `3M`."""
    if 1e4 <= abs(value) < 1e10:
        return f"{value / 1e6:.6g}M" if abs(value) >= 1e6 else f"{value / 1e3:.6g}k"
    return f"{value:.6g}"


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, `most` steps at most."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough)
    return [i * size for i in range(math.ceil(low / size), math.floor(high / size) + 1)]
