"""A model and a prompt -> tokens and text, as they are made.

The simple engine: each new token costs one forward pass over the whole context. It is the reference for any faster one.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from minigpt.config import UserError
from minigpt.data.tokenizer import Tokenizer
from minigpt.generation.sampling import next_token
from minigpt.model.gpt import GPT


def encode_prompt(tokenizer: Tokenizer, prompt: str, context_length: int, *, from_start: bool = False) -> list[int]:
    """Token ids of a prompt; an empty one, or each one with `from_start`, begins where a document begins.

    Raises:
        UserError: the prompt does not fit the context, or has a character that the tokenizer does not know.
    """
    tokens = tokenizer.encode(prompt)
    if from_start or not tokens:
        tokens = [tokenizer.end_of_text, *tokens]
    if len(tokens) > context_length:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, but the model reads at most {context_length}: "
            "shorten it, or train with a longer model.context_length"
        )
    return tokens


def continue_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    from_start: bool = False,
) -> Iterator[str]:
    """Yield the text after a prompt, piece by piece as it is made; it ends where the model ends its document.

    With `from_start` the prompt is a document's beginning, which a model that was trained on whole examples expects.

    Spaces at a prompt's end are taken back before encoding and demanded of the new text instead: a tokenizer writes
    them as the beginning of the next word (" name"), and a model that is handed a lone " " has hardly ever seen one
    there.

    Raises:
        UserError: see `encode_prompt`.
    """
    context_length = model.config.context_length
    encode_prompt(tokenizer, prompt, context_length, from_start=from_start)  # judged as the user wrote it
    kept = prompt.rstrip(" ") or prompt
    spaces = prompt[len(kept) :]
    new_tokens = generate(
        model,
        encode_prompt(tokenizer, kept, context_length, from_start=from_start),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        end_of_text=tokenizer.end_of_text,
        n_drawable=tokenizer.vocab_size,
        beginning=Beginning(tokenizer, spaces.encode()) if spaces else None,
    )
    to_skip = len(spaces)
    for text in stream_text(tokenizer, new_tokens):
        if text[to_skip:]:
            yield text[to_skip:]
        to_skip = max(0, to_skip - len(text))


class Beginning:
    """Bytes that new text must begin with: tokens are drawn among those that agree with what is left of them."""

    def __init__(self, tokenizer: Tokenizer, text: bytes) -> None:
        self.left = text
        self._tokens = [
            b"" if token == tokenizer.end_of_text else tokenizer.decode_bytes([token])
            for token in range(tokenizer.vocab_size)
        ]

    def restrict(self, logits: Tensor) -> Tensor:
        """(V,) logits with -inf for the tokens that contradict the beginning."""
        if not self.left:
            return logits
        agrees = [bool(text) and (text.startswith(self.left) or self.left.startswith(text)) for text in self._tokens]
        return logits.masked_fill(~torch.tensor(agrees, device=logits.device), float("-inf"))

    def drawn(self, token: int) -> None:
        """Note a token that was drawn."""
        self.left = self.left[len(self._tokens[token]) :]


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    end_of_text: int | None = None,
    n_drawable: int | None = None,
    beginning: Beginning | None = None,
) -> Iterator[int]:
    """Yield new tokens after a prompt, until max_new_tokens or the document's end.

    Past the context's length the model reads its last context_length tokens.

    Args:
        model: in eval mode; its parameters' device is used.
        prompt: at least one token id.
        max_new_tokens: how many tokens at most.
        temperature: see `next_token`.
        top_k: see `next_token`.
        seed: of the draws; the same seed gives the same tokens.
        end_of_text: token that ends the text and is not yielded; None goes on to max_new_tokens.
        n_drawable: only ids below this are drawn (a model.vocab_size above the tokenizer's has more); None allows all.
        beginning: what the new text must begin with; None leaves it free.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        window = torch.tensor([tokens[-model.config.context_length :]], device=device)
        logits = model(window)[0, -1, :n_drawable]
        if beginning is not None:
            logits = beginning.restrict(logits)
        token = next_token(logits, temperature=temperature, top_k=top_k, generator=generator)
        if token == end_of_text:
            return
        if beginning is not None:
            beginning.drawn(token)
        tokens.append(token)
        yield token


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Text of tokens as they come; a character is shown when its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
