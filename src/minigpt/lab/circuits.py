"""`minigpt circuits`: which heads compose with which, and why a head's query matches a key."""

from __future__ import annotations

import torch

from minigpt.config import CircuitsConfig
from minigpt.frames import require_frame, write_frame
from minigpt.inspection.composition import KINDS, composition_scores, random_composition, strongest
from minigpt.inspection.places import check_position
from minigpt.inspection.qk_attribution import QKAttribution, qk_attribution
from minigpt.lab.prompts import encode_text, written
from minigpt.markdown import table
from minigpt.runs.loading import LoadedModel, load_model

COMPOSITION_COLUMNS = ("composition", "earlier", "later", "score", "random")
"""Columns of --out: a row for each pair of heads and kind of composition, the strongest first."""
SCORE_COLUMNS = ("at_query", "at_key", "score")
"""Columns of --out with a head: a row for each pair of components, the largest part of either sign first."""
MOST_KEYS = 5
"""Keys listed for a query, the ones with the largest weights."""


def find_circuits(config: CircuitsConfig) -> str:
    """Tables for the terminal: the strongest compositions, or with `head` the score of a query and a key.

    With `out`, a file of all pairs as well.

    Raises:
        UserError: there is no such run, head or position, the text does not fit, the query does not attend to the key,
            or the file cannot be written.
    """
    if config.out is not None:
        require_frame(config.out, (SCORE_COLUMNS if config.head else COMPOSITION_COLUMNS)[0])
    loaded = load_model(config.run, config.device)
    shown = _compositions(loaded, config) if config.head is None else _attribution(loaded, config)
    return shown if config.out is None else f"{shown}\n\n-> {config.out}"


def _compositions(loaded: LoadedModel, config: CircuitsConfig) -> str:
    scores, by_chance = composition_scores(loaded.model), random_composition(loaded.model)
    if config.out is not None:
        pairs = [pair for kind in KINDS for pair in strongest(scores, kind, scores.numel())]
        write_frame(config.out, COMPOSITION_COLUMNS, [[*pair, by_chance] for pair in pairs])
    rows = [
        [pair.kind, pair.earlier, pair.later, f"{pair.score:.3f}", f"{pair.score / by_chance:.1f}"]
        for kind in KINDS
        for pair in strongest(scores, kind, config.top)
    ]
    if not rows:
        return "No head can compose with an earlier one: the model has one layer."
    lines = [
        "Composition scores, from the weights alone: how much of what the later head's query (Q), key (K) or value"
    ]
    lines += [f"(V) reads is what the earlier head writes. Heads with random weights have {by_chance:.3f}."]
    return "\n".join(lines) + "\n\n" + table(["composition", "earlier", "later", "score", "times random"], rows)


def _attribution(loaded: LoadedModel, config: CircuitsConfig) -> str:
    assert config.head is not None
    assert config.text is not None
    tokens = encode_text(loaded, config.text)
    layer, head = map(int, config.head.split("."))
    query = check_position(config.query, len(tokens), "query")
    ids = torch.tensor([tokens], device=config.device)
    if config.key is None:
        # The query attends to itself, if to nothing else.
        key = int(qk_attribution(loaded.model, ids, layer, head, query, query).weights.argmax())
    else:
        key = check_position(config.key, len(tokens), "key")
    found = qk_attribution(loaded.model, ids, layer, head, query, key)
    if config.out is not None:
        write_frame(config.out, SCORE_COLUMNS, found.strongest(found.values.numel()))

    def named(position: int) -> str:
        return f"{position} {written(loaded.tokenizer, tokens[position])}"

    best = found.weights.topk(min(MOST_KEYS, query + 1))
    keys = (f"{named(at)} {weight:.3f}" for at, weight in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    lines = [
        f"head {layer}.{head}, query {named(query)}, key {named(key)}",
        f"weight {float(found.weights[key]):.3f}, score {found.score:.3f}{_besides(loaded, found)}",
        f"largest weights of this query: {', '.join(keys)}",
    ]
    return "\n".join(lines) + "\n\n" + _pairs(found, config.top)


def _besides(loaded: LoadedModel, found: QKAttribution) -> str:
    """What happens to the score before the softmax."""
    cap = loaded.model.config.logit_softcap
    parts = [] if cap is None else [f"before the softcap of {cap:g}"]
    parts += [] if found.position_bias is None else [f"before ALiBi's {found.position_bias:+.3f}"]
    return f" ({' and '.join(parts)})" if parts else ""


def _pairs(found: QKAttribution, most: int) -> str:
    """The largest parts of either sign, the rest in one row, and their sum."""
    pairs, n = found.strongest(most), found.values.numel()
    rows = [[query, key, f"{value:+.3f}"] for query, key, value in pairs]
    total = float(found.values.sum())
    if n > len(pairs):
        rows.append(
            [
                f"{n - len(pairs)} other pair{'s' * (n - len(pairs) > 1)}",
                "",
                f"{total - sum(value for *_, value in pairs):+.3f}",
            ]
        )
    return table(["at the query", "at the key", "score"], [*rows, ["sum", "", f"{total:+.3f}"]])
