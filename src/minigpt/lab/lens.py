"""`minigpt lens`: what each layer of a model would predict next, for a text."""

from __future__ import annotations

import torch

from minigpt.config import LensConfig
from minigpt.frames import require_frame, write_frame
from minigpt.inspection.lens import Reading, logit_lens
from minigpt.inspection.places import check_position
from minigpt.lab.prompts import encode_text, text_of, written
from minigpt.markdown import table
from minigpt.runs.loading import LoadedModel, load_model

COLUMNS = ("after", "position", "token", "next_token", "next_probability", "kl", "top_token", "top_probability")
"""Columns of --out: a row for each depth and position."""


def read_lens(config: LensConfig) -> str:
    """Tables for the terminal; with `out`, a file of all positions as well.

    Raises:
        UserError: there is no such run or position, or the text does not fit.
    """
    if config.out is not None:
        require_frame(config.out, COLUMNS[0])  # fails before the work
    loaded = load_model(config.run, config.device)
    tokens = encode_text(loaded, config.text)
    position = check_position(config.position, len(tokens))
    ids = torch.tensor([tokens], device=config.device)
    # The last position's target is the first token, which nothing shows: what comes next is not known there.
    found = Reading(*(each[:, 0] for each in logit_lens(loaded.model, ids).read(ids.roll(-1, 1), config.top)))
    parts = [_by_depth(found), _at(loaded, found, tokens, position)]
    if config.out is not None:
        write_frame(config.out, COLUMNS, _rows(loaded, found, tokens))
        parts.append(f"-> {config.out}")
    return "\n\n".join(part for part in parts if part)


def _depths(n_rows: int) -> list[str]:
    """Names of the rows: the embedding, then the number of the layer after which the stream is read."""
    return ["embedding", *(str(layer) for layer in range(n_rows - 1))]


def _by_depth(found: Reading) -> str:
    """Means over the text."""
    losses, kl = -found.log_probabilities[:, :-1], found.kl.mean(1)
    if not losses.numel():
        return ""  # one token: nothing in the text is predicted
    same = (found.ids[..., 0] == found.ids[-1, :, 0]).float().mean(1)
    rows = [
        [name, f"{loss:.3f}", f"{divergence:.3f}", f"{share:.0%}"]
        for name, loss, divergence, share in zip(_depths(len(kl)), losses.mean(1), kl, same, strict=True)
    ]
    return table(["after layer", "loss (nats)", "KL from output (nats)", "same top token"], rows)


def _at(loaded: LoadedModel, found: Reading, tokens: list[int], position: int) -> str:
    """The likeliest next tokens at one position."""
    tokenizer, has_next = loaded.tokenizer, position + 1 < len(tokens)
    what = f"position {position}, after {written(tokenizer, tokens[position])}"
    header = ["after layer"]
    if has_next:
        header.append(f"p of {written(tokenizer, tokens[position + 1])}")
    header += [f"top {rank}" for rank in range(1, found.ids.shape[-1] + 1)]
    rows = []
    for row, name in enumerate(_depths(len(found.ids))):
        cells = [f"{float(found.log_probabilities[row, position].exp()):.3f}"] if has_next else []
        best = zip(found.ids[row, position].tolist(), found.probabilities[row, position].tolist(), strict=True)
        rows.append([name, *cells, *(f"{written(tokenizer, token)} {share:.3f}" for token, share in best)])
    return f"{what}\n\n{table(header, rows)}"


def _rows(loaded: LoadedModel, found: Reading, tokens: list[int]) -> list[list[object]]:
    """Rows of `COLUMNS`."""
    texts = [text_of(loaded.tokenizer, token) for token in tokens]
    following: list[str | None] = [*texts[1:], None]
    rows = list[list[object]]()
    for row, name in enumerate(_depths(len(found.ids))):
        p, kl, best = (
            found.log_probabilities[row].exp().tolist(),
            found.kl[row].tolist(),
            found.probabilities[row, :, 0].tolist(),
        )
        top = [text_of(loaded.tokenizer, token) for token in found.ids[row, :, 0].tolist()]
        for t, text in enumerate(texts):
            known = p[t] if t + 1 < len(tokens) else None
            rows.append([name, t, text, following[t], known, kl[t], top[t], best[t]])
    return rows
