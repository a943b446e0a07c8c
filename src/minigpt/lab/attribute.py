"""`minigpt attribute`: what each head, MLP and embedding adds to a logit, or to the loss of a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import AttributeConfig
from minigpt.errors import UserError
from minigpt.frames import require_frame, write_frame
from minigpt.inspection.attribution import LossAttribution, direct_logit_attribution, loss_attribution
from minigpt.inspection.places import check_position
from minigpt.lab.prompts import encode_text, encode_token, text_of, written
from minigpt.markdown import table
from minigpt.runs.loading import LoadedModel, load_model

LOGIT_COLUMNS = ("component", "value")
"""Columns of --out for a logit."""
LOSS_COLUMNS = ("position", "token", "next_token", "component", "value")
"""Columns of --out for losses: a row for each position and component, with the entropy as a component of its own."""


def attribute(config: AttributeConfig) -> str:
    """The table for the terminal; with `out`, a file as well.

    Raises:
        UserError: there is no such run, position or token, or the text does not fit.
    """
    if config.out is not None:
        require_frame(config.out, (LOSS_COLUMNS if config.loss else LOGIT_COLUMNS)[0])  # fails before the work
    loaded = load_model(config.run, config.device)
    shown = _loss(loaded, config) if config.loss else _logit(loaded, config)
    return shown if config.out is None else f"{shown}\n\n-> {config.out}"


def _logit(loaded: LoadedModel, config: AttributeConfig) -> str:
    tokenizer, tokens = loaded.tokenizer, encode_text(loaded, config.text)
    position = check_position(-1 if config.position is None else config.position, len(tokens))
    ids = torch.tensor([tokens], device=config.device)
    asked = None if config.token is None else encode_token(tokenizer, config.token, "--token")
    token = _likeliest(loaded, ids, position) if asked is None else asked
    minus = None if config.minus is None else encode_token(tokenizer, config.minus, "--minus")
    found = direct_logit_attribution(loaded.model, ids, token, minus, position)
    values = found.values.tolist()
    if config.out is not None:
        write_frame(config.out, LOGIT_COLUMNS, list(zip(found.names, values, strict=True)))
    what = f"logit of {written(tokenizer, token)}" + ("" if minus is None else f" minus {written(tokenizer, minus)}")
    where = f"position {position}, after {written(tokenizer, tokens[position])}"
    return f"{what}: {sum(values):.3f}\n{where}\n\n{_table(found.names, values, 'logit', config.top)}"


def _likeliest(loaded: LoadedModel, ids: Tensor, position: int) -> int:
    """The model's own choice of the next token."""
    with torch.no_grad():
        return int(loaded.model.logits(loaded.model.hidden(ids)[:, position]).argmax())


def _loss(loaded: LoadedModel, config: AttributeConfig) -> str:
    tokenizer, tokens = loaded.tokenizer, encode_text(loaded, config.text)
    if len(tokens) < 2:
        raise UserError("--text: is one token; give two or more, as each token's loss is the next one's")
    found = loss_attribution(loaded.model, torch.tensor([tokens], device=config.device))
    if config.out is not None:
        write_frame(config.out, LOSS_COLUMNS, _loss_rows(loaded, found, tokens))
    if config.position is None:
        where, picked = f"mean over {len(tokens) - 1} tokens", slice(None)
    else:
        at = check_position(config.position, len(tokens) - 1)
        where, picked = f"position {at}: {written(tokenizer, tokens[at + 1])}", slice(at, at + 1)
        where += f" after {written(tokenizer, tokens[at])}"
    loss, entropy = (float(each[0, picked].mean()) for each in (found.losses, found.entropy))
    names, values = ("entropy", *found.names), [entropy, *found.values[:, 0, picked].mean(-1).tolist()]
    return f"loss: {loss:.3f} nats\n{where}\n\n{_table(names, values, 'nats', config.top)}"


def _loss_rows(loaded: LoadedModel, found: LossAttribution, tokens: list[int]) -> list[list[object]]:
    """Rows of `LOSS_COLUMNS`."""
    texts = [text_of(loaded.tokenizer, token) for token in tokens]
    names, values = ("entropy", *found.names), torch.cat([found.entropy[None], found.values])[:, 0].T.tolist()
    return [
        [t, texts[t], texts[t + 1], name, value]
        for t, row in enumerate(values)
        for name, value in zip(names, row, strict=True)
    ]


def _table(names: Sequence[str], values: Sequence[float], unit: str, most: int) -> str:
    """The largest parts of either sign, the rest in one row, and their sum."""
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    rows = [[names[i], f"{values[i]:+.3f}"] for i in order[:most]]
    if rest := order[most:]:
        rows.append([f"{len(rest)} other{'s' * (len(rest) > 1)}", f"{sum(values[i] for i in rest):+.3f}"])
    return table(["component", unit], [*rows, ["sum", f"{sum(values):+.3f}"]])
