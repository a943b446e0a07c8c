"""What a run prints at its start and end."""

from __future__ import annotations

import math
import signal
from typing import Any

import lightning as L
import torch

from minigpt.command_line import command
from minigpt.config import Config
from minigpt.data.batches import TrainBatches
from minigpt.files import shown
from minigpt.pages.run_record import read_diagnosis
from minigpt.runs.folder import RunFolder
from minigpt.signals import SIGNALS
from minigpt.training.callbacks import of_part_of_val, seconds_of_training
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.dashboards import finish_dashboards
from minigpt.training.finetuning import described
from minigpt.training.lora import trained_parameters
from minigpt.training.module import TrainingModule
from minigpt.training.process import uses_tf32
from minigpt.training.resuming import Reached, go_on
from minigpt.training.stopping import requeue

MOST_SENTENCES = 4
"""Sentences of the diagnosis that are printed at the end."""


def announce(trainer: L.Trainer, module: TrainingModule, batches: Any, folder: RunFolder) -> None:
    """Print the run's text, model, length and devices; `batches` is the train loader's dataset."""
    config, data = module.run_config, module.data
    source = f"{', '.join(config.data.sources)}: {data.train} to train on"
    if config.data.streaming:
        source = f"{config.data.sources[0]}: streamed; tokenizer and held-out text are from its beginning"
    shares = []
    if isinstance(batches, TrainBatches) and len(batches.split.sources) > 1:
        shares = batches.shares(batches.n_batches * batches.batch_size)
    mixture = "".join(
        f"        {100 * each.share:.1f} % from {each.name}, {each.epochs:.2f} epochs\n" for each in shares
    )
    device = trainer.strategy.root_device
    until = f"{config.trainer.max_steps} steps" + (f" or {config.trainer.max_time}" if config.trainer.max_time else "")
    said = (
        f"text    {source}; {data.val} held out\n{mixture}"
        f"model   {_parameters(module)}, {config.model.n_layer} layers of {config.model.n_head} "
        f"heads, {config.model.n_embd} wide, context {config.model.context_length}, "
        f"vocabulary {config.model.vocab_size}\n"
        f"{described(config)}"
        f"train   {until} on {trainer.num_devices} {device.type}, {trainer.precision}"
        f"{' with TF32 products' if uses_tf32(device) else ''}, "
        f"{torch.get_num_threads()} threads -> {folder.path}"
    )
    print(shown(said), flush=True)


def _parameters(module: TrainingModule) -> str:
    n, rank = module.model.n_parameters, module.run_config.lora
    if rank is None:
        return f"{n:,} parameters"
    trained = trained_parameters(module.model)
    return f"{n - trained:,} frozen parameters, {trained:,} that train (LoRA of rank {rank})"


def say_stopped(code: Any, trainer: L.Trainer, config: Config, folder: RunFolder) -> None:
    """Print the command that resumes a run which a signal has stopped."""
    if not trainer.is_global_zero or code not in {128 + number for number in SIGNALS}:
        return
    saved = f"stopped and saved; to resume: {go_on(folder, config, Reached.of_trainer(trainer))}"
    print(f"\n{saved if folder.last.exists() else 'stopped before anything was saved'}", flush=True)
    if code == 128 + signal.SIGUSR1 and (again := requeue()):
        print(again, flush=True)
    if dashboard := finish_dashboards(trainer.loggers, code):
        print(f"dashboard: {dashboard}", flush=True)


def _prompt_arguments(config: Config) -> list[str]:
    """--prompt with the run's first prompt; empty if it is not printable: `sample.py` then takes it from the run."""
    prompt = next(iter(config.sampling.prompts or []), "")
    if not prompt or not prompt.isprintable():
        return []
    return [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]


def _val_losses(last: float, bits_per_byte: float, step: int, best: float, best_step: int) -> str:
    """The last validation's loss, and the best one's before it with its step if that was lower."""
    if not best < last:
        return f"val/loss {last:.4f} = {bits_per_byte:.4f} bits per byte"
    bits = bits_per_byte * best / last  # of one val split, so in proportion
    return (
        f"best val/loss {best:.4f} = {bits:.4f} bits per byte at step {best_step} (saved as the run's model); "
        f"last {last:.4f} at step {step}"
    )


def _happened(folder: RunFolder) -> str:
    """The diagnosis' file and its most telling sentences; the losses, its first, are printed already."""
    sentences = read_diagnosis(folder, [])[1:]
    more = [f"and {len(sentences) - MOST_SENTENCES} more"] if len(sentences) > MOST_SENTENCES else []
    return ("\n" + " " * 13).join([str(folder.diagnosis), *sentences[:MOST_SENTENCES], *more])


def summarise(trainer: L.Trainer, module: TrainingModule, folder: RunFolder, dashboard: str | None) -> None:
    """Print the losses of a run that is done, its files, and the commands to go on with."""
    saved = next((each for each in trainer.callbacks if isinstance(each, Checkpoints)), None)  # type: ignore[attr-defined]
    best = (saved.best_val_loss, saved.best_step) if saved else (math.inf, -1)
    val = _val_losses(module.val_loss, module.val_bits_per_byte, trainer.global_step, *best) + of_part_of_val(module)
    print(
        f"\ndone: {trainer.global_step} steps, {seconds_of_training(trainer):.0f} s of training, "
        f"{val if math.isfinite(module.val_loss) else 'no validation'}"
    )
    samples, page, last = folder.samples(trainer.global_step), folder.attention_page, folder.last
    weights = f"{folder.best} and last.ckpt; the best weights alone: {folder.weights}"
    rows = [
        ("diagnosis", folder.diagnosis.exists(), _happened(folder)),
        ("attention", page.exists(), f"{page} (open it in a browser), {folder.attention_grid}"),
        ("samples", samples.exists(), samples),
        ("metrics", folder.metrics.exists(), folder.metrics),
        ("checkpoint", last.exists(), weights if folder.best.exists() else last),
        ("dashboard", dashboard, dashboard),
        ("write", last.exists(), command("sample", folder.path, *_prompt_arguments(module.run_config))),
        ("live", last.exists(), f"{command('live', folder.path)}  # a page in which the model runs as you type"),
        ("resume", last.exists(), go_on(folder, module.run_config, Reached.of_trainer(trainer))),
    ]
    for name, exists, text in rows:
        if exists:
            print(f"  {name:<11}{text}")
