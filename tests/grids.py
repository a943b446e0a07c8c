"""Grids of cases: a pairwise sample runs in the quick suite, the whole grid under `make test-slow`.

Faults of combinations are mostly faults of two settings together, so a sample in which every two values meet that meet
anywhere in the grid finds nearly all of them in a fraction of the cases (Kuhn, Wallace and Gallo 2004).
"""

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pytest


def covering(cases: Sequence[Sequence[Hashable]], strength: int = 2) -> list[int]:
    """Indices of a few cases in which all `strength` values meet that meet in any case.

    Greedily: the case with most new meetings, and of several the one whose values were chosen least often.
    """
    found = [set(itertools.combinations(enumerate(case), strength)) for case in cases]
    missing, chosen = set().union(*found), list[int]()
    used = Counter[tuple[int, Hashable]]()
    while missing:
        best = max(
            range(len(cases)), key=lambda i: (len(found[i] & missing), -sum(used[each] for each in enumerate(cases[i])))
        )
        chosen.append(best)
        missing -= found[best]
        used.update(enumerate(cases[best]))
    return sorted(chosen)


def pairwise(*axes: Iterable[Any], strength: int = 2) -> list[Any]:
    """Parameters of a test: the product of the axes. What a pairwise sample leaves out is marked slow.

    With strength 1, each value of an axis is in the sample; with 2, each pair of values of two axes.
    """
    values = [list(axis) for axis in axes]
    places = list(itertools.product(*(range(len(axis)) for axis in values)))
    quick = set(covering(places, strength))
    return [
        pytest.param(*(axis[i] for axis, i in zip(values, place, strict=True)), marks=() if n in quick else SLOW)
        for n, place in enumerate(places)
    ]


def sampled(choices: Sequence[Mapping[str, Any]], strength: int = 2) -> list[Any]:
    """Parameters of a test: some settings each. What a sample leaves out, by names and values, is marked slow."""
    names = sorted({name for choice in choices for name in choice})
    quick = set(covering([[repr(choice.get(name)) for name in names] for choice in choices], strength))
    return [pytest.param(choice, marks=() if n in quick else SLOW) for n, choice in enumerate(choices)]


SLOW = pytest.mark.slow
