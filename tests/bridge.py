"""A model of ours in TransformerLens, on the same weights. Its import takes six seconds, so tests of it are slow."""

from pathlib import Path
from typing import Any

import torch
from interop.comparing import SMALL, randomised
from small_runs import GPT2

from minigpt.cli.main import dispatch
from minigpt.config import Config, GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.model.gpt import GPT
from minigpt.runs.loading import save_weights


def in_transformer_lens(path: str | Path) -> Any:
    """A run or a weights file, exported into the current folder and opened."""
    from transformer_lens.model_bridge import TransformerBridge

    dispatch(["export", str(path)])
    return TransformerBridge.boot_transformers(f"{Path(path).stem}-hf", device="cpu", dtype=torch.float32)


def random_model(settings: dict[str, Any]) -> tuple[Config, GPT]:
    """A small model of the vocabulary of bytes with weights that matter."""
    tied = settings.items() >= GPT2.items()
    config = Config(model=GPTConfig(**(SMALL | {"vocab_size": 257, "tie_embeddings": tied} | settings)))
    return config, randomised(GPT(config.model).eval())


def model_in_transformer_lens(config: Config, model: GPT) -> Any:
    """A model, saved into the current folder, exported and opened."""
    save_weights("model.safetensors", model, config, BytesTokenizer())
    return in_transformer_lens("model.safetensors")
