"""Times a few steps on this machine: for `minigpt doctor`, and to plan a budget."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from minigpt.config import Config
from minigpt.model.gpt import GPT
from minigpt.training.arithmetic import flops_per_token
from minigpt.training.lora import adapters_of
from minigpt.training.loss import chunk_logits, model_loss
from minigpt.training.optimizer import make_optimizer

if TYPE_CHECKING:
    import lightning as L

MEASURING_SECONDS = 2.0
"""Approximate limit for one timed step; of a slower one, only part is timed."""
N_STEPS = (3, 12)
"""Least and most steps; the fastest counts, since other programs may disturb some. Up to MEASURING_SECONDS / 4."""
FLOPS_USED = 0.5
"""Fraction of a plain matrix product's speed that training reaches, roughly; used to plan the measurement only."""


@dataclass(frozen=True)
class StepTimes:
    """Time and memory of one step on this machine."""

    micro_batch_seconds: float
    update_seconds: float
    """Of the optimizer step."""
    activation_bytes: int
    """Of tensors saved for the backward pass of a micro-batch."""
    share: float
    """Fraction of a micro-batch that was timed; the seconds are scaled up by it."""


def measure(config: Config, trainer: L.Trainer, flops: float) -> StepTimes:
    """Time a few steps on random tokens, the first as a warm-up; the fastest counts.

    If a step would take longer than MEASURING_SECONDS, fewer rows or a shorter context are timed and scaled up.

    Args:
        config: with model.vocab_size set.
        trainer: with the run's device and precision.
        flops: operations per second of a plain matrix product there.
    """
    m, device = config.model, trainer.strategy.root_device

    def work(rows: int, length: int) -> float:
        return float(rows * length * flops_per_token(m, length))

    B, T = config.data.batch_size, m.context_length
    affordable = MEASURING_SECONDS * FLOPS_USED * flops
    rows = min(B, max(1, int(affordable / work(1, T))))
    length = min(T, max(8, int(T * affordable / work(1, T)))) if rows == 1 else T
    share = work(rows, length) / work(B, T)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    precision = trainer.precision_plugin
    with torch.random.fork_rng(devices=[]), precision.module_init_context():
        model = GPT(m)
        if (adapt := adapters_of(config)) is not None:
            adapt(model)
        model.recomputes_blocks = config.activation_checkpointing
        model = precision.convert_module(model).to(device)  # type: ignore[assignment]
        tokens = torch.randint(m.vocab_size or 1, (rows, length + 1), device=device)
    optimizer, at_a_time = make_optimizer(model, config.optimizer), chunk_logits(device)
    forward_backward, update = list[float](), list[float]()
    least, most = N_STEPS
    while len(update) < least or (sum(forward_backward + update) < MEASURING_SECONDS / 4 and len(update) < most):
        kept.clear()
        begin = time_when_done(device)
        with precision.forward_context(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model_loss(model, tokens[:, :-1], tokens[:, 1:], at_a_time=at_a_time)
        loss.backward()
        between = time_when_done(device)
        optimizer.step()
        optimizer.zero_grad()
        forward_backward.append(between - begin)
        update.append(time_when_done(device) - between)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(n_bytes for pointer, n_bytes in kept.items() if pointer not in own)
    if config.activation_checkpointing:  # of which torch holds the blocks' inputs elsewhere
        activations += m.n_layer * rows * length * m.n_embd * next(model.parameters()).element_size()
    activations += 4 * min(rows * length * (m.vocab_size or 1), at_a_time)  # the gradient of the logits
    per_token = activations / (rows * length)
    return StepTimes(min(forward_backward[1:]) / share, min(update[1:]), int(per_token * B * T), share)


def time_when_done(device: torch.device) -> float:
    """`time.perf_counter()` once the device has computed everything that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
