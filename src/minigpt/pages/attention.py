"""The attention page: snapshots of one probe text as one HTML document of all heads, without network or libraries."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from minigpt.inspection import packing
from minigpt.inspection.glossary import term_of
from minigpt.inspection.relations import Link
from minigpt.inspection.snapshot import Snapshot
from minigpt.pages.causes import causes_data
from minigpt.pages.colormap import COLOURS, DIFFERENCE_COLOURS
from minigpt.pages.documents import Page, base64_of, document, json_for_html, policy_of, rounded

if TYPE_CHECKING:  # it loads torch, which a report does without
    from minigpt.inspection.causes import Causes

Labels = Sequence[Sequence[str | None]]
"""Label of each head, n_layer x n_head; None for a head without one."""

# Further probabilities are small, and each adds to the size of the page.
_NEXT_TOKENS = 5

# What the lists of causes show, by the glossary's names.
_TOOLS = ("logit_lens", "loss_attribution", "ablation")

# Pages with more weights than this (about 1 MB of trained heads) round small weights and earlier steps more.
_EXACT_WEIGHTS = 1_000_000


def render_page(
    snapshots: Sequence[Snapshot],
    *,
    title: str,
    links: Sequence[Link] = (),
    labels: Sequence[Labels] = (),
    other: Sequence[Snapshot] = (),
    causes: Sequence[Causes | None] = (),
    ablation_kind: str = "zero",
    n_measured: int = 0,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Page:
    """Render the attention page: all heads, one head large, the text, the strongest keys, a slider over the steps.

    The document is self-contained: it opens from a disk, in a notebook or in `<iframe sandbox="allow-scripts">`. Its
    security policy allows only its own script and style, by their hashes, so text of a data set can neither run nor
    load anything.

    Measured: 0.85 to 0.96 characters for each weight on or below the diagonal of trained heads. Pages of more than a
    million weights take 0.8 for the last step and 0.15 for each earlier one, which they round more
    (`packing.encode_earlier`): 0.83 MB for ten steps of a trained model with 6 x 6 heads and 128 tokens, with scores
    and next tokens, 3.5 MB for a step of 12 x 12 heads of noise and 256 tokens.

    Args:
        snapshots: one or more, of the same tokens and the same shape; shown in the order of their steps. A score or
            next tokens that only some have are shown at those steps. Value weighting needs `value_norms` in all
            snapshots, those of `other` too.
        title: plain text, shown as the heading.
        links: relations between the tokens, marked in the map and in the text.
        labels: labels of the heads for each snapshot, in the order given; or none at all.
        other: snapshots of a second run or checkpoint, of the same tokens and shape. The page then shows either or
            the difference, at the nearest steps.
        causes: of the last snapshot, and of the last of `other`; for the same tokens. The page lists those of the
            selected token, whatever step its maps show.
        ablation_kind: what replaced the heads' outputs in the score `ablation`.
        n_measured: number of tokens on which the heads are scored; said where there are more than the page shows.
        notes: name of a score -> what its meaning leaves open, such as a number of links.

    Returns:
        The document as ASCII text.

    Raises:
        ValueError: there is no snapshot, tokens or shapes differ, or links, labels or causes do not fit them.
    """
    order = sorted(range(len(snapshots)), key=lambda i: snapshots[i].step)
    runs = [[snapshots[i] for i in order], sorted(other, key=lambda snapshot: snapshot.step)]
    frames = [frame for run in runs for frame in run]
    _check_alike(frames if snapshots else [])
    _check_links(links, len(frames[0].tokens))
    _check_labels(labels, snapshots)
    found = [*causes, None, None][:2]
    _check_causes(found, len(frames[0].tokens))
    n_layer, n_head, n_tokens, _ = frames[0].weights.shape
    names = list(dict.fromkeys(name for frame in frames for name in frame.scores))
    with_norms = all(frame.value_norms is not None for frame in frames)
    pairs: dict[str, list[tuple[int, int]]] = {}
    for link in links:
        pairs.setdefault(link.name, []).extend((int(link.query), int(key)) for key in link.keys)
    rounding = f"Weights are rounded by at most {packing.MAX_ERROR:.3f}"
    if any(_is_large(run) and len(run) > 1 for run in runs):
        rounding += f"; before the last step by at most {packing.COARSE_ERROR:.3f}, less for small weights"
    is_part = n_measured > n_tokens
    measured = f" Scores are of {n_measured:,} tokens, of which {n_tokens:,} are shown." if is_part else ""
    texts: dict[str, int] = {}
    data = {
        "tokens": frames[0].tokens,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_tokens": n_tokens,
        "score_names": names,
        "labels": [[name for layer in labels[i] for name in layer] for i in order] if labels else None,
        "links": list(pairs.items()),
        "runs": [_run_data(run, names, texts, with_norms, own) for run, own in zip(runs, found, strict=True) if run],
        "glossary": _meanings([*names, *(_TOOLS if any(found) else ())], notes),
        "ablation_kind": ablation_kind,
        "texts": list(texts),  # after the runs, which fill it
        "rounding": f"{rounding}.{measured}",
    }
    return page_of(title, data)


def page_of(title: str, data: Mapping[str, object]) -> Page:
    """Render the page from data for its scripts; what is not given is none."""
    none: dict[str, object] = {
        "score_names": [],
        "labels": None,
        "links": [],
        "glossary": [],
        "texts": [],
        "events": [],
    }
    none |= {"ablation_kind": "zero", "colours": base64_of(COLOURS), "difference": base64_of(DIFFERENCE_COLOURS)}
    return document("attention", title, data=json_for_html(dict(data) | {k: none[k] for k in none if k not in data}))


def renew_page(page: str, events: Sequence[tuple[int, str]] | None = None) -> Page | None:
    """Render a page again with the installed template; None if another version made it.

    A page in a folder is untrusted. Only its data is kept, parsed and escaped again; the rest is dropped. The data fits
    the template, since the page's policy has the hash of the same script.

    Args:
        page: made by `render_page`.
        events: (step, text) of what happened in training, for the slider; those of the page when not given.
    """
    begin = page[: page.find("</style>")]
    title = re.search(r"<title>(.*?)</title>", begin, re.DOTALL)
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    if title is None or data is None or f'content="{policy_of("attention")}"' not in begin:
        return None
    try:
        content = json.loads(data[1])
        if events is not None:
            content["events"] = events
        return document("attention", html.unescape(title[1]), data=json_for_html(content))
    except (TypeError, ValueError, RecursionError):
        return None


def _meanings(names: Sequence[str], notes: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """(name, meaning) of the names that the glossary knows."""
    terms = [(name, term_of(name)) for name in dict.fromkeys(names)]
    return [
        (
            name,
            {
                "sentence": term.sentence,
                "range": term.range,
                "higher": term.higher_means,
                "differs": term.differs or "",
                "note": notes.get(name, ""),
            },
        )
        for name, term in terms
        if term is not None
    ]


def _run_data(
    frames: Sequence[Snapshot], names: Sequence[str], texts: dict[str, int], with_norms: bool, causes: Causes | None
) -> dict[str, object]:
    """One run's data for parts/attention/data.js; `texts` numbers each distinct text of a next token."""
    norms = [packing.compand_lengths(frame.value_norms) for frame in frames if frame.value_norms is not None]
    details = {
        "scores": [
            [rounded(frame.scores[n].ravel()) if n in frame.scores else None for n in names] for frame in frames
        ],
        "next": [[_next_data(ranking, texts) for ranking in frame.next_tokens] for frame in frames],
        "causes": causes and causes_data(causes, frames[-1].step, texts),
    }
    return {
        "steps": [frame.step for frame in frames],
        **_levels_data(frames),
        "norms": packing.encode_frames(norms) if with_norms else None,
        "details": packing.encode_json(details),
    }


def _levels_data(frames: Sequence[Snapshot]) -> dict[str, str | None]:
    """Levels of all steps; on a large page those of the last, and of the earlier ones, which are rounded more."""
    levels = [packing.pack(frame.weights) for frame in frames]
    if not _is_large(frames):
        return {"levels": packing.encode_frames(levels), "earlier": None}
    last = packing.thin(levels[-1])
    return {"levels": packing.encode_frames([last]), "earlier": packing.encode_earlier(levels[:-1], last)}


def _is_large(frames: Sequence[Snapshot]) -> bool:
    """Whether the page would be so large that its weights are rounded more."""
    return sum(frame.weights.size for frame in frames) / 2 > _EXACT_WEIGHTS


def _next_data(ranking: Sequence[tuple[str, float]], texts: dict[str, int]) -> list[float]:
    """Number of the text, probability, number of the text, probability, ..."""
    return [
        number
        for text, share in ranking[:_NEXT_TOKENS]
        for number in (texts.setdefault(text, len(texts)), float(f"{share:.3g}"))
    ]


def _check_alike(frames: Sequence[Snapshot]) -> None:
    if not frames:
        raise ValueError("an attention page needs at least one snapshot, got none")
    first = frames[0]
    for other in frames[1:]:
        if other.weights.shape != first.weights.shape:
            raise ValueError(
                "snapshots must have the same shape of weights, got "
                f"{first.weights.shape} at step {first.step} and {other.weights.shape} at step {other.step}"
            )
        if other.tokens != first.tokens:
            raise ValueError(
                f"snapshots must be of the same tokens, but those of step {first.step} and step {other.step} differ"
            )


def _check_causes(causes: Sequence[Causes | None], n_tokens: int) -> None:
    for each in causes:
        if each is not None and len(each.targets) != n_tokens:
            raise ValueError(f"causes must be of the {n_tokens} tokens shown, got {len(each.targets)}")


def _check_links(links: Sequence[Link], n_tokens: int) -> None:
    for link in links:
        if not isinstance(link.name, str):
            raise ValueError(f"a link's name must be text (str), got {link.name!r}")
        if not all(0 <= position < n_tokens for position in (link.query, *link.keys)):
            raise ValueError(
                f"link {link.name!r} must be between positions 0 and {n_tokens - 1}, "
                f"got query {link.query} and keys {list(link.keys)}"
            )


def _check_labels(labels: Sequence[Labels], snapshots: Sequence[Snapshot]) -> None:
    if labels and len(labels) != len(snapshots):
        raise ValueError(f"labels must be given for each of the {len(snapshots)} snapshots or none, got {len(labels)}")
    n_layer, n_head = snapshots[0].weights.shape[:2]
    for grid in labels:
        if len(grid) != n_layer or any(len(layer) != n_head for layer in grid):
            raise ValueError(
                f"labels must be {n_layer} layers of {n_head} heads, got {[len(layer) for layer in grid]} heads"
            )
        strange = [name for layer in grid for name in layer if not isinstance(name, str | None)]
        if strange:
            raise ValueError(f"a label must be text (str) or None, got {strange[0]!r}")
