"""The card in the header of a shared file: what the model is, how good it is, and what it writes.

A card comes from someone else: it is checked before it is shown, and its control characters are escaped.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

from minigpt.config.checks import Section, bounds
from minigpt.errors import UserError
from minigpt.files import visible
from minigpt.runs.header import read_header

MAX_CARD_CHARACTERS = 100_000
"""Longer cards are refused; minigpt's own have less than 10,000."""
_LINE = 300
"""Characters shown of a line."""

Number = Annotated[int, bounds(ge=0, le=10**15)]
Measure = Annotated[float, bounds(ge=0, le=1e9)]


@dataclass(frozen=True, kw_only=True)
class Card(Section):
    """What a shared file says of its model; None where the run did not know."""

    SECTION = "card"

    name: str
    """Name of the run's folder."""
    title: str
    minigpt: str
    """Version of minigpt that wrote the file."""
    date: str
    """Day on which the file was written, as 2026-01-31."""
    n_parameters: Number
    n_layer: Number
    n_head: Number
    n_embd: Number
    context_length: Number
    tokenizer: str
    vocab_size: Number
    texts: list[str]
    """Names of the text sources, without folders."""
    text_bytes: Number | None = None
    """Length of train and val text in UTF-8."""
    step: Number | None = None
    """Optimizer step of the weights."""
    last_step: Number | None = None
    """Steps of the run until the file was written."""
    tokens: Number | None = None
    """Tokens trained on until `step`."""
    val_loss: Measure | None = None
    """In nats per token, at `step`."""
    val_bits_per_byte: Measure | None = None
    longest_copied_tokens: Number | None = None
    """Longest run of tokens in the samples that the train text has too."""
    copied_20gram_share: Measure | None = None
    """Share of the samples' runs of 20 tokens that the train text has too."""
    prompt: str | None = None
    """The run's first sampling prompt."""
    sample_step: Number | None = None
    samples: list[str] = field(default_factory=list)
    """Texts from `sample_step`; each begins with its prompt."""

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Check a card. Unknown entries, of later versions, are ignored.

        Raises:
            UserError: it is too long, not JSON, or an entry is missing or of another type.
        """
        if len(text) > MAX_CARD_CHARACTERS:
            raise UserError(f"the card has {len(text):,} characters; at most {MAX_CARD_CHARACTERS:,} are read")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError("the card is not valid JSON") from None
        if not isinstance(content, dict):
            raise UserError("the card is not a JSON object")
        own = dataclasses.fields(cls)
        needed = {each.name for each in own if each.default is each.default_factory is dataclasses.MISSING}
        if missing := sorted(needed - set(content)):
            raise UserError(f"the card has no {', '.join(missing)}")
        return cls(**{each.name: content[each.name] for each in own if each.name in content})

    def __str__(self) -> str:
        """The card for a terminal."""
        rows = {
            "model": f"{self.n_parameters:,} parameters: {self.n_layer} layers of {self.n_head} heads, {self.n_embd} "
            f"wide, context of {self.context_length:,} tokens",
            "tokenizer": f"{self.tokenizer}, {self.vocab_size:,} tokens",
            "text": ", ".join([*self.texts, *_known("{:.2f} MB", self.text_bytes and self.text_bytes / 1e6)]),
            "training": ", ".join(
                [
                    *_known("weights of step {}", self.step),
                    *_known("{} steps in all", self.last_step),
                    *_known("{:,} tokens", self.tokens),
                ]
            ),
            "val loss": ", ".join(
                [
                    *_known("{:.4f} nats per token", self.val_loss),
                    *_known("{:.4f} bits per byte", self.val_bits_per_byte),
                ]
            ),
            "copied": ", ".join(
                [
                    *_known("at most {} tokens in a row", self.longest_copied_tokens),
                    *_known("{:.1%} of all runs of 20 tokens", self.copied_20gram_share),
                ]
            ),
            "prompt": "" if self.prompt is None else repr(self.prompt),
            "made": f"{self.date} by minigpt {self.minigpt}",
        }
        lines = [f"{self.name}: {self.title}", *(f"  {name:<11}{text}" for name, text in rows.items() if text)]
        head = "\n".join(_one_line(line) for line in lines)
        step = "" if self.sample_step is None else f" of step {self.sample_step}"
        texts = [f"sample {i}{step}\n{indent(text, '    ')}" for i, text in enumerate(self.samples, start=1)]
        return visible("\n\n".join([head, *texts]))


def read_card(path: Path) -> Card:
    """The card of a shared file.

    Raises:
        UserError: the file is missing, damaged, another program's or without a card; or the card is not valid.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: not a shared file, which ends in .safetensors; to make one, name a run folder")
    card = read_header(path).get("card")
    if card is None:
        raise UserError(f"{path}: weights without a card; to make a file with one, name a run folder")
    try:
        return Card.from_json(card)
    except UserError as error:
        raise UserError(f"{path}: {_one_line(visible(str(error)))}") from None


def _known(form: str, value: Any) -> list[str]:
    return [] if value is None else [form.format(value)]


def _one_line(text: str) -> str:
    """A line of its own, whatever line breaks are in it."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _LINE else f"{text[: _LINE - 2]} …"
