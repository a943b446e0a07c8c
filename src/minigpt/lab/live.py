"""`minigpt live`: a run -> one HTML file in which its model runs while one types."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from minigpt.config import LiveConfig
from minigpt.data.shards import open_prepared
from minigpt.errors import UserError
from minigpt.files import require_page, write_text
from minigpt.generation.generator import Writer
from minigpt.generation.text import encode_prompt
from minigpt.inspection.ablation import losses, rows_per_pass, without_head
from minigpt.inspection.capture import evaluation_mode
from minigpt.inspection.probes import read_probe, windows_of
from minigpt.interop.hub import folder_of, is_foreign, model_name
from minigpt.lab.prepared import prepared_of
from minigpt.lab.share import base_names
from minigpt.model.gpt import GPT
from minigpt.pages.documents import Page
from minigpt.pages.live.page import live_page
from minigpt.pages.live.questions import PAGE_OPERATIONS, check_operations, live_questions
from minigpt.pages.live.weights import WeightKind, quantised_model
from minigpt.runs.folder import RunFolder, name_of
from minigpt.runs.loading import UNKNOWN_TEXT, LoadedModel, load_model

TEXT = "Once upon a time there was a little cat. The little cat"
"""What the page of another program's model opens with. Words that come again are what its heads look for."""
OPENING_TOKENS = 48
"""Tokens of the run's probe text with which the page opens: they fill the screen, and take a moment to compute."""
LEAST_SURE = 0.15
"""Least probability of a token about which the first view asks."""
MEASURED = 8192
"""Maximum number of tokens on which the change of the loss is measured."""
OPERATIONS = 5e11
"""Floating-point operations for it: about ten seconds on a CPU."""


class Measured(NamedTuple):
    """What the page's weights change."""

    loss: float
    """Of the model as it was trained, in nats per token; NaN if the text is a single token."""
    change: float
    """Loss with the page's weights, minus `loss`."""
    text: str
    """On which both were measured, such as "8,192 held-out tokens"."""

    def __str__(self) -> str:
        if math.isnan(self.loss):
            return "not measured: the text is a single token"
        return f"{self.loss:.4f} nats per token on {self.text}; these weights change it by {self.change:+.4f}"


class Live(NamedTuple):
    """A page, and what it cost."""

    page: Page
    n_parameters: int
    measured: Measured


def write_live(config: LiveConfig) -> str:
    """Write the page, and return what to print.

    Raises:
        UserError: see `make_live`; or the file cannot be written.
    """
    out = Path(config.out) if config.out else folder_of(config.run) / "live.html"
    require_page(out)  # fails before the work, and protects other files from being overwritten
    live = make_live(config)
    write_text(out, live.page)
    return "\n".join(
        [
            f"weights  {live.n_parameters:,} parameters as {config.weights}",
            f"loss     {live.measured}",
            f"-> {out}: {len(live.page) / 1e6:.1f} MB (open it in a browser; it needs no network)",
        ]
    )


def make_live(config: LiveConfig) -> Live:
    """Load the model, measure what its weights lose in the page, and make the page.

    Raises:
        UserError: there is no such model, or the page cannot run it or encode the text.
    """
    loaded = load_model(config.run)
    text = _opening_text(loaded, config.run) if config.text is None else config.text
    from_start = loaded.config.data.mode == "examples"
    # Refuses a text that the page could not show.
    tokens = encode_prompt(loaded.tokenizer, text, loaded.model.config.context_length, from_start=from_start)
    n_parameters = loaded.model.n_parameters
    measured = measure(loaded, config.weights, text)
    page = live_page(
        loaded.model,
        loaded.tokenizer,
        text,
        title=model_name(config.run) if is_foreign(config.run) else name_of(config.run),
        facts=_facts(loaded, config.weights, n_parameters, measured),
        first_token=loaded.tokenizer.end_of_text if from_start else None,
        questions=live_questions(loaded.model, loaded.tokenizer, tokens),
        kind=config.weights,
    )
    return Live(page, n_parameters, measured)


def _facts(loaded: LoadedModel, kind: WeightKind, n_parameters: int, measured: Measured) -> dict[str, str]:
    model, sources = loaded.model.config, loaded.config.data.sources
    facts = {
        "model": f"{n_parameters / 1e6:.2f} million parameters: {model.n_layer} layers of {model.n_head} heads, "
        f"{model.n_embd} wide; context of {model.context_length} tokens",
        "trained on": "" if sources == [UNKNOWN_TEXT] else ", ".join(base_names(sources)),
        "weights": f"{kind}; loss {measured}",
    }
    return {name: text for name, text in facts.items() if text}


def _opening_text(loaded: LoadedModel, path: str) -> str:
    """The beginning of the text inspected during training, as far as it can be typed; else what the model writes."""
    run, most = _run_of(loaded), min(OPENING_TOKENS, max(1, loaded.model.config.context_length // 2))
    if is_foreign(path):
        return TEXT
    if run is not None and run.probe.is_file():
        tokens, _ = read_probe(run.probe, loaded.tokenizer.vocab_size)
        end = loaded.tokenizer.end_of_text  # separates documents, and has no text
        document = list(itertools.takewhile(lambda token: token != end, tokens[tokens[0] == end :]))
        if document:
            n = _opening_end(loaded, document[:most])
            return _text_of(loaded, document[:n])
    writer = Writer.of(loaded)
    written = writer.generate(writer.first_prompt, max_new_tokens=most)
    return (written.prompt + written.text).replace("\ufffd", "")  # of half a character at the end


def _opening_end(loaded: LoadedModel, tokens: Sequence[int]) -> int:
    """How many of the tokens the page opens with, at least half of them.

    The first view asks what the model expects, and why. So the text ends where it expects a part of a word: best one
    that it would not expect without some head, since that head is an answer, else the one of the largest probability.
    """
    model, tokenizer, T = loaded.model, loaded.tokenizer, len(tokens)
    row = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    heads = list(itertools.product(range(model.config.n_layer), range(model.config.n_head)))
    with evaluation_mode(model):
        probability, expected = model(row)[0].float().softmax(dim=-1).max(dim=-1)
        hinges = torch.zeros_like(expected, dtype=torch.bool)  # (T,) whether one head decides
        if check_operations(model, T, len(heads)) <= PAGE_OPERATIONS:
            for layer, head in heads:
                with without_head(model, layer, head):
                    hinges |= model(row)[0].argmax(dim=-1) != expected
    ranked = sorted(
        range(T // 2, T),
        key=lambda i: (bool(hinges[i]) and float(probability[i]) >= LEAST_SURE, float(probability[i])),
        reverse=True,
    )
    for i in ranked:
        is_word = any(map(str.isalpha, tokenizer.decode_bytes([int(expected[i])]).decode("utf-8", errors="ignore")))
        # Cut off in a word, the same text may be other tokens.
        if is_word and tokenizer.encode(_text_of(loaded, tokens[: i + 1])) == list(tokens[: i + 1]):
            return i + 1
    return T


def _text_of(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    return loaded.tokenizer.decode_bytes(tokens).decode("utf-8", errors="ignore")


def measure(loaded: LoadedModel, kind: WeightKind, text: str) -> Measured:
    """The loss with and without the page's weights: on held-out text of the run, else on the page's text.

    Raises:
        UserError: a weight or the loss is NaN or inf, or a weight is beyond float16's range.
    """
    per_token = 4 * loaded.model.n_parameters  # two models, two operations a weight
    most = int(min(MEASURED, max(256, OPERATIONS / per_token)))
    tokens, where = _held_out(loaded, most), "held-out tokens"
    if not tokens:
        tokens, where = loaded.tokenizer.encode(text), "tokens of the page's text"
    windows = windows_of(tokens, min(loaded.model.config.context_length, most), most)
    if not windows.numel():
        return Measured(math.nan, math.nan, "")
    n_tokens = f"{windows.shape[0] * (windows.shape[1] - 1):,} {where}"
    after = mean_loss(quantised_model(loaded.model, kind), windows)  # first: it names the weights that are NaN
    before = mean_loss(loaded.model, windows)
    if not (math.isfinite(before) and math.isfinite(after)):
        raise UserError(f"{loaded.path}: the loss is NaN or inf on {n_tokens}: take an earlier checkpoint")
    return Measured(before, after - before, n_tokens)


def mean_loss(model: GPT, windows: torch.Tensor) -> float:
    """Loss of (B, T + 1) windows of token ids, in nats per token."""
    rows = rows_per_pass(windows.shape[1])
    with evaluation_mode(model):
        return float(torch.cat([losses(model, some).double().flatten() for some in windows.split(rows)]).mean())


def _held_out(loaded: LoadedModel, most: int) -> Sequence[int]:
    """The beginning of the run's val split, where its prepared text is still there; else nothing."""
    run, known = _run_of(loaded), loaded.tokenizer.to_dict()
    for folder, _ in () if run is None else prepared_of(run, loaded.config.data):
        with contextlib.suppress(UserError):  # damaged
            prepared = open_prepared(folder)
            if prepared.tokenizer.to_dict() == known:
                return prepared.val.tokens.read(0, min(len(prepared.val.tokens), most + 1)).tolist()
    return []


def _run_of(loaded: LoadedModel) -> RunFolder | None:
    """The run folder that has the weights; None for a file on its own, or another program's model."""
    folders = (folder for folder in loaded.path.absolute().parents if (folder / "config.yaml").is_file())
    return next(map(RunFolder, folders), None)
