"""Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685): a few weights that train in place of all.

Checkpoints hold the model with its adapters, so that resume is exact; every reader of a model or of a file gets the
merged weights (runs/adapters.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.runs.adapters import SCALE


def adapters_of(config: Config) -> Callable[[GPT], None] | None:
    """What gives the run's model its adapters; None for a run that trains all weights.

    Raises:
        UserError: peft is not installed.
    """
    return None if config.lora is None else functools.partial(add_adapters, rank=config.lora, peft=_peft(config))


def add_adapters(model: GPT, rank: int, peft: Any) -> None:
    """Freeze the model, and add an adapter to each linear layer inside its blocks, attention's and the MLP's alike.

    Adapters on attention alone reach a higher loss at any rank (Schulman et al. 2025,
    https://thinkingmachines.ai/blog/lora). B begins at zero, so the first loss is that of the model.
    """
    model.requires_grad_(False)
    names = [name for name, module in model.blocks.named_modules() if isinstance(module, nn.Linear)]
    settings = peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, target_modules=names)
    peft.inject_adapter_in_model(settings, model.blocks)


def trained_parameters(model: GPT) -> int:
    """Number of parameters that train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _peft(config: Config) -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(f"lora={config.lora}: needs peft ({error}): pip install peft") from None
    return peft
