"""Models for the tests of generation: some that say what they are told, and a small real one."""

from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BPETokenizer, BytesTokenizer, CharsTokenizer, Tokenizer
from minigpt.model.gpt import GPT

BYTES = BytesTokenizer()
LETTERS = CharsTokenizer(" abcdefgh")  # ten tokens with the end of text
WORDS = BPETokenizer.train(["ab ab ab"], 2048)  # bytes, "ab" is 256, " ab" is 257, the end of text is 258


class Fake(nn.Module):
    """What the engine needs of a model; it remembers what it read."""

    def __init__(self, vocab_size: int, context_length: int = 8) -> None:
        super().__init__()
        sizes = {"context_length": context_length, "n_layer": 1, "n_head": 1, "n_embd": 2}
        self.config = GPTConfig(vocab_size=vocab_size, **sizes)
        self.token_embedding = nn.Embedding(vocab_size, 2)
        self.read: list[list[int]] = []

    def hidden(self, tokens: Tensor, document_ids: Tensor | None = None, cache: object = None) -> Tensor:
        assert not torch.is_grad_enabled()
        self.read += tokens.tolist()
        return tokens[..., None]


class Counting(Fake):
    """Finds the successor of the last token likeliest."""

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.one_hot((hidden[..., 0] + 1) % (self.config.vocab_size or 0), self.config.vocab_size or 0)


class Preferring(Fake):
    """Finds one and the same token likeliest, and the next ones less and less likely."""

    def __init__(self, token: int, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.order = -((torch.arange(vocab_size) - token) % vocab_size).float()

    def logits(self, hidden: Tensor) -> Tensor:
        return self.order.expand(*hidden.shape[:2], -1)


class Saying(Fake):
    """Says one text, whatever it reads."""

    def __init__(self, tokenizer: Tokenizer, text: str, vocab_size: int = 300) -> None:
        super().__init__(vocab_size, 64)
        self.tokens = [*tokenizer.encode(text), tokenizer.end_of_text]

    def logits(self, hidden: Tensor) -> Tensor:
        said = torch.tensor(self.tokens[len(self.read) - 1])
        return 50.0 * nn.functional.one_hot(said, self.config.vocab_size or 0).float().expand(*hidden.shape[:2], -1)


def real(vocab_size: int = 257, **changes: Any) -> GPT:
    torch.manual_seed(0)
    sizes = {"context_length": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(vocab_size=vocab_size, **sizes | changes)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model
