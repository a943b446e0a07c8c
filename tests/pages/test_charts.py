"""Charts: every value is told as it is, no spike is lost, and there is none that cannot be drawn."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.pages.charts import HEIGHT, WIDTH, Chart, short, thinned

STEPS = st.integers(min_value=-(10**12), max_value=10**15)
VALUES = st.floats(min_value=-1e300, max_value=1e300)


def drawn(chart: Chart, line: int = 0) -> list[tuple[int, int]]:
    """The points of a line, in units of the drawing."""
    (path,) = re.findall(rf'<path class="line line-{line}" d="M([^"]*)"', chart.html(0))
    numbers = [int(number) for number in path.split()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_line_goes_from_edge_to_edge_and_higher_values_are_higher() -> None:
    points = drawn(Chart({"loss": {0: 4.0, 50: 1.0, 100: 2.5}}))
    assert [x for x, _ in points] == [0, WIDTH // 2, WIDTH]
    heights = [y for _, y in points]
    assert 0 < heights[0] < heights[2] < heights[1] < HEIGHT
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2, abs=1)


def height(chart: Chart) -> float:
    """The share of the chart's height that its line takes."""
    heights = [y for _, y in drawn(chart)]
    return (max(heights) - min(heights)) / HEIGHT


def test_noise_around_a_constant_looks_small() -> None:
    assert height(Chart({"loss": {0: 3.37, 50: 3.371, 100: 3.369}})) < 0.01
    assert height(Chart({"attn/max/induction": {0: 0.008, 50: 0.010, 100: 0.009}}, least_span=0.1)) < 0.05
    assert height(Chart({"attn/max/induction": {0: 0.008, 50: 0.9, 100: 0.95}}, least_span=0.1)) > 0.8


def test_values_that_are_never_negative_get_no_axis_far_below_zero() -> None:
    chart = Chart({"score": {0: 0.008, 100: 0.010}}, least_span=0.1)
    _, _, bottom, top = chart.data()["limits"]  # type: ignore[misc]
    assert bottom >= -0.006
    assert top >= 0.1


def test_two_lines_share_their_axes() -> None:
    chart = Chart({"a": {0: 1.0, 10: 2.0}, "b": {10: 2.0, 20: 3.0}}, wide=True)
    assert drawn(chart, 0)[1] == drawn(chart, 1)[0]


def test_a_long_line_keeps_its_ends_and_its_spikes() -> None:
    points = [(step, math.sin(step / 1000)) for step in range(100_000)]
    points[54_321], points[77_777] = (54_321, 50.0), (77_777, -50.0)
    kept = thinned(points, 800)
    assert len(kept) <= 802
    assert {points[0], points[54_321], points[77_777], points[-1]} <= set(kept)
    assert kept == sorted(kept)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(STEPS, VALUES, min_size=1, max_size=8), min_size=1, max_size=2))
def test_any_finite_values_make_a_chart(lines: list[dict[int, float]]) -> None:
    chart = Chart({str(place): dict(sorted(line.items())) for place, line in enumerate(lines)})
    assert not re.search(r"\b(nan|inf)\b", chart.html(0))
    assert len(chart.html(0)) < 10_000
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn(chart))
    json.dumps(chart.data(), allow_nan=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.88513, "3.885"), (5928.65, "5929"), (412_345.6, "412346"), (0.0, "0"), (6.943e-5, "6.943e-05"), (-0.5, "-0.5")],
)
def test_a_value_is_told_with_four_digits(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("last", [3, 459, 20_000, 1_000_000, 30_000_000])
def test_labels_are_few_and_short(last: int) -> None:
    page = Chart({"loss": {0: 0.0, last: last / 7}}).html(0)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert 4 <= len(labels) <= 12
    assert all(len(label) <= 5 for label in labels)
    assert len(set(re.findall(r"<text[^>]*y=\"11\">([^<]*)", page))) == page.count('y="11"')


def test_a_name_is_text() -> None:
    page = Chart({'</svg>"<b>': {0: 1.0}}).html(0)
    assert "<b>" not in page
    assert "&lt;/svg&gt;&quot;&lt;b&gt;" in page
