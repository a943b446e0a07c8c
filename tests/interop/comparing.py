"""Tools of the tests that compare a model with transformers' on the same weights."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT

Module = TypeVar("Module", bound=nn.Module)

SMALL: dict[str, Any] = {
    "vocab_size": 70,  # which is padded
    "context_length": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "mlp_hidden": 48,
}


def randomised(model: Module) -> Module:
    """The model with its norms and biases off their starting values, and attention that is not flat."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if name.endswith("weight") and parameter.ndim == 1:
                parameter += 1
    if isinstance(model, GPT):
        with torch.no_grad():
            for table in (model.token_embedding.weight, model.head_weight):
                table[model.config.vocab_size :] = 0
    return model


def small_model(settings: dict[str, Any]) -> GPT:
    torch.manual_seed(5)
    return randomised(GPT(GPTConfig(**(SMALL | settings))).eval())


def opened_by_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logits_of(theirs: Any, tokens: Tensor) -> Tensor:
    return theirs(tokens).logits


@torch.no_grad()
def greedy(model: GPT, prompt: Tensor, n: int = 60) -> Tensor:
    cache = KVCache(model.config, 1, prompt.shape[1] + n)
    tokens, new = prompt, prompt
    for _ in range(n):
        logits = model(new, cache=cache)
        cache.position += new.shape[1]
        new = logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def same(first: GPT, second: GPT) -> None:
    """Both models compute the same logits."""
    tokens = torch.randint(70, (2, 40))
    torch.testing.assert_close(first(tokens), second(tokens), rtol=0, atol=2e-5)
