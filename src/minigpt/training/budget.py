"""A budget of time or steps, and the text -> the settings that were not given.

The rules are first estimates: docs/recipes.md has the few runs behind them, and says which rules have none.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minigpt.config import Config, GPTConfig
from minigpt.config.trainer import as_max_time
from minigpt.data.prepare import find_text
from minigpt.data.shards import SCANS, PreparedData
from minigpt.data.sources.scan import Scans
from minigpt.data.splitting import PART_BYTES
from minigpt.errors import UserError, is_out_of_memory
from minigpt.training.arithmetic import flops_per_token, on_meta
from minigpt.training.finetuning import PASSES, is_pretrained, warmup_steps
from minigpt.training.machine import speeds
from minigpt.training.step_times import StepTimes, measure

if TYPE_CHECKING:
    import lightning as L

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
VOCABULARIES = ((15.0, 2048), (40.0, 1024), (math.inf, 512))
"""(Passes over a text of 1 MB up to which, size of the byte-level BPE): a small vocabulary overfits later, a large one
reads more text in a step. Of another size the limits change with its root: 300 kB allow half as many passes."""
BYTES_PER_TOKEN = 3.0
"""Of a vocabulary of 2048, about, before the text is tokenised."""
SMALL_BATCHES = ((300_000, 4), (2_000_000, 8))
"""(Bytes of text below which, most rows of a batch): more updates in the few passes before the model memorises."""
VAL_BYTES = 100_000
"""Held-out bytes to aim for: enough for a steady loss (an estimate), and more only costs time."""


class Size(NamedTuple):
    """A model of the ladder."""

    n_layer: int
    n_embd: int
    n_head: int
    context_length: int
    batch_size: int


LADDER = (
    Size(2, 64, 2, 128, 8),
    Size(2, 96, 3, 128, 8),
    Size(3, 128, 4, 128, 8),
    Size(4, 160, 5, 128, 16),
    Size(4, 192, 4, 128, 16),
    Size(6, 256, 4, 256, 16),
    Size(6, 384, 6, 256, 32),
    Size(8, 512, 8, 512, 32),
    Size(12, 768, 12, 1024, 16),
)
"""By parameters, ascending. Those above 192 wide were not measured."""
SMALLEST_OF_STEPS = 4
"""Place in LADDER of the smallest model for a budget of steps: small models only gain by their speed."""
TOKENS_PER_PARAMETER, OF_A_SMALL_TEXT = 3.0, 1.0
"""Training tokens for each parameter of the blocks, at least: a larger model would read too little in the time. The
second number where a smaller model would read the text more than ENOUGH_PASSES times, and so learn little more."""
PARAMETERS_PER_TOKEN = 8.0
"""Parameters of the blocks for each token of the text, at most: a larger model only memorises a small text sooner."""
ENOUGH_PASSES = 5
WIDTH = {"model.n_embd", "model.n_head", "model.head_dim", "model.n_kv_head"}
WIDE = 192
"""Width up to which any model is measured; wider ones only if the budget could hold 50 steps."""
REGULARISED = ((2.5, 0.0, 0.3), (6, 0.0, 1.0), (15, 0.1, 1.0), (math.inf, 0.2, 1.0))
"""(Passes over the text up to which, dropout, weight decay)."""
MOST_PASSES = 30
"""After this many passes even a regularised model only memorises; the run then ends before its budget."""
TUNING_ROWS, ENOUGH_STEPS = (1, 2, 4, 8), 50
"""Rows of a batch for a pretrained model, whose rows are long, and the steps to aim for in budget and passes."""
SHARE_OF_VALIDATION = 0.15
"""Largest share of the time for validations, their samples and attention maps."""
SECONDS_OF_VALIDATION = 1.5
"""Of one validation's samples and attention maps, about, besides its loss."""
OTHER_SECONDS = 8.0
"""Of a run outside its steps and its text: loading torch, and the scores of all heads at the end."""


class Budget(NamedTuple):
    """What a run may cost: seconds, or else steps."""

    seconds: float | None
    steps: int | None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From `30s`, `5m`, `2h` or `1000 steps`, which the config has checked."""
        number, unit = re.fullmatch(r"([\d.]+) ?(s|m|h|steps?)", text).groups()  # type: ignore[union-attr]
        return cls(float(number) * UNITS[unit], None) if unit in UNITS else cls(None, int(number))


class Planner:
    """Fills in the settings of `config.planned` in two stages: the text's before it is prepared, then the others."""

    def __init__(self, config: Config, trainer: L.Trainer) -> None:
        """Args: the config with its budget, and a trainer with this run's device and precision."""
        assert config.budget is not None
        self.config, self.trainer, self.budget = config, trainer, Budget.parse(config.budget)
        self.open = set(config.open_settings)
        if config.initial_weights is not None:  # they come with their model and tokenizer
            self.open -= {key for key in self.open if key.startswith("model.")} - {"model.dropout"} | {"data.tokenizer"}
        self.tunes = is_pretrained(config)
        self.most_passes = PASSES if self.tunes else MOST_PASSES
        self.began = time.monotonic()
        self.n_bytes, self.most_rows = math.inf, sys.maxsize
        self.measured: dict[str, StepTimes] = {}
        """Of each model and batch size: both stages ask for most of them."""
        self.chosen: set[str] = set()
        self.lines: list[str] = []

    @classmethod
    def of(cls, config: Config, trainer: L.Trainer) -> tuple[Config, Planner | None]:
        """The config and its planner; the default budget of a text is dropped on several devices.

        Raises:
            UserError: a budget given for several devices, whose processes would measure different speeds.
        """
        if config.budget is None:
            return config, None
        if trainer.world_size == 1:
            return config, cls(config, trainer)
        if "budget" not in config.open_settings:
            raise UserError(
                f"budget={config.budget}: plans for one device, and this run has {trainer.world_size}: add "
                "--trainer.devices 1, or give trainer.max_steps instead of a budget"
            )
        if trainer.is_global_zero:
            print(f"budget  none: it plans for one device, and this run has {trainer.world_size}", flush=True)
        return dataclasses.replace(config, budget=None, planned=None), None

    def choose(self, section: str, **settings: Any) -> None:
        """Change those settings of a section that the user left open."""
        free = {name: value for name, value in settings.items() if f"{section}.{name}" in self.open}
        part = dataclasses.replace(getattr(self.config, section), **free)
        self.config = dataclasses.replace(self.config, **{section: part})
        self.chosen |= {f"{section}.{name}" for name in free}

    def of_text(self) -> Config:
        """The tokenizer and the held-out share, by the size of the text.

        Raises:
            UserError: there is no text, or it cannot be read.
        """
        n_bytes = self.n_bytes = text_bytes(self.config)
        self.most_rows = next((rows for limit, rows in SMALL_BATCHES if n_bytes < limit), sys.maxsize)
        steps, _ = self._fit(2048, n_bytes / BYTES_PER_TOKEN)
        passes = steps * self._tokens_per_step() * BYTES_PER_TOKEN / n_bytes
        vocabulary = next(size for limit, size in VOCABULARIES if passes <= limit * (n_bytes / 1e6) ** 0.5)
        if n_bytes > 20e6 and self.config.model.n_embd >= WIDE:
            vocabulary = 8192 if n_bytes > 200e6 else 4096
        share = min(0.1, max(0.005, round(VAL_BYTES / n_bytes, 3)))
        self.choose("data", tokenizer=f"bpe:{vocabulary}", val_fraction=share)
        if 2 * PART_BYTES <= share * n_bytes < math.inf:  # the end of a book is unlike the rest
            self.choose("data", val_from="spread")
        data = self.config.data
        held_out = f"{100 * data.val_fraction:.1f} % held out" if data.val_source is None else "val_source held out"
        self.lines.append(f"text: {_size(n_bytes)}, so tokenizer {data.tokenizer}, {held_out}")
        return self.config

    def of_training(self, data: PreparedData) -> Config:
        """Model, batch, length, regularisation and validations, by the text's tokens and this machine's speed."""
        is_stream = self.config.data.streaming
        n_train, n_val = (math.inf if is_stream else len(side.tokens) for side in (data.train, data.val))
        return self.of_tokens(data.tokenizer.vocab_size, n_train, n_val)

    def of_tokens(self, vocab_size: int, n_train: float, n_val: float) -> Config:
        """`of_training` by the sizes of the vocabulary and the two sides."""
        steps, step_seconds = self._fit(vocab_size, n_train)
        per_step = self._tokens_per_step()
        most = math.ceil(self.most_passes * n_train / per_step) if math.isfinite(n_train) else sys.maxsize
        is_given = "trainer.max_steps" not in self.open
        if is_given:
            most = self.config.trainer.max_steps
        passes = min(steps, most) * per_step / n_train
        _, dropout, decay = next(each for each in REGULARISED if passes <= each[0])
        self.choose("model", dropout=dropout)
        if self.config.model.dropout:  # takes time of its own: a CPU's fused attention has none
            step_seconds = self._seconds_of_step(vocab_size)
            steps = self._affordable(step_seconds)
        limited, steps = steps > most and not is_given, min(steps, most)
        passes = steps * per_step / n_train
        # Where time ends the run, there must be steps left: the schedule ends with the time, and a machine that was
        # busy when it was measured may become free.
        most = min(most, 3 * steps) if self.budget.seconds else steps
        interval = self._interval(n_val, steps, step_seconds)
        self.choose("optimizer", weight_decay=decay)
        if self.tunes:
            self.choose("optimizer", warmup_steps=warmup_steps(steps))
        max_time = as_max_time(round(self._seconds_left())) if self.budget.seconds else None
        self.choose("trainer", max_steps=most, max_time=max_time, val_check_interval=interval)
        self._say(steps, step_seconds, passes, limited=limited)
        return dataclasses.replace(self.config, planned=sorted(self.chosen))

    def _fit(self, vocab_size: int, n_train: float) -> tuple[int, float]:
        """Set the largest size with enough tokens in the budget and the text; (steps in the budget, seconds of one)."""
        if self.tunes:
            return self._fit_rows(vocab_size, n_train)
        first, *larger = self._sizes()
        self._set_size(first)
        step_seconds = self._seconds_of_step(vocab_size)
        passes = self._affordable(step_seconds) * self._tokens_per_step() / n_train
        for size in larger:
            smaller = self.config
            self._set_size(size)
            if self.config == smaller:
                continue
            try:
                seconds = self._seconds_of_step(vocab_size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                seconds = math.inf
            tokens = min(self._affordable(seconds) * self._tokens_per_step(), n_train * MOST_PASSES)
            n_blocks = sum(weight.numel() for weight in on_meta(self._sized(vocab_size)).blocks.parameters())
            least = n_blocks * (TOKENS_PER_PARAMETER if passes <= ENOUGH_PASSES else OF_A_SMALL_TEXT)
            if tokens < least or n_blocks > PARAMETERS_PER_TOKEN * n_train:
                self.config = smaller
                break
            step_seconds, passes = seconds, tokens / n_train
        return self._affordable(step_seconds), step_seconds

    def _sizes(self) -> Sequence[Size]:
        """The sizes to try, smallest first. A given width has no longer context and no larger batch than suit it."""
        width = math.inf if self.open >= WIDTH else self.config.model.n_embd
        sizes = [size for size in LADDER if size.n_embd <= width] or LADDER[:1]
        return sizes if self.budget.seconds else sizes[min(SMALLEST_OF_STEPS, len(sizes) - 1) :]

    def _fit_rows(self, vocab_size: int, n_train: float) -> tuple[int, float]:
        """For a pretrained model: the most rows that leave enough steps in the budget and the text; else as `_fit`."""
        self.choose("data", batch_size=1)
        seconds = self._seconds_of_step(vocab_size)  # more rows take at most as many times this

        def steps(rows: int) -> float:
            in_budget = self._affordable(rows * seconds) if self.budget.seconds else math.inf
            return min(in_budget, self.most_passes * n_train / (rows * self._tokens_per_step()))

        rows = max((rows for rows in TUNING_ROWS if steps(rows) >= ENOUGH_STEPS), default=1)
        self.choose("data", batch_size=rows)
        seconds = self._seconds_of_step(vocab_size)
        return self._affordable(seconds), seconds

    def _set_size(self, size: Size) -> None:
        n_layer, n_embd, n_head, context_length, batch_size = size
        self.choose("model", n_layer=n_layer, context_length=context_length)
        if self.open >= WIDTH:  # they hold only together
            self.choose("model", n_embd=n_embd, n_head=n_head)
        self.choose("data", batch_size=min(batch_size, self.most_rows))

    def _sized(self, vocab_size: int) -> GPTConfig:
        model = self.config.model
        return dataclasses.replace(model, vocab_size=model.vocab_size or vocab_size)

    def _tokens_per_step(self) -> int:
        config = self.config
        return config.data.batch_size * config.model.context_length * config.trainer.accumulate_grad_batches

    def _seconds_of_step(self, vocab_size: int) -> float:
        """Measured with this device, precision and vocabulary; a model far too slow for the budget is not built."""
        model = self._sized(vocab_size)
        config = dataclasses.replace(self.config, model=model)
        least = flops_per_token(model) * self._tokens_per_step() / self.flops
        if self.budget.seconds and least * 50 > self.budget.seconds and model.n_embd > WIDE and self.open >= WIDTH:
            return math.inf
        key = repr((model, config.data.batch_size))
        if key not in self.measured:
            self.measured[key] = measure(config, self.trainer, self.flops)
        times = self.measured[key]
        return times.micro_batch_seconds * config.trainer.accumulate_grad_batches + times.update_seconds

    @cached_property
    def flops(self) -> float:
        """Floating-point operations per second of this device's fastest precision."""
        return max(speeds(self.trainer.strategy.root_device).values())

    def _affordable(self, step_seconds: float) -> int:
        if math.isinf(step_seconds):
            return 0
        if self.budget.steps is not None:
            return self.budget.steps
        return max(1, int(self._seconds_left() * (1 - SHARE_OF_VALIDATION) / step_seconds))

    def _seconds_left(self) -> float:
        """Of the budget for training: without what preparing the text took, but at least half of it."""
        assert self.budget.seconds is not None
        spent = time.monotonic() - self.began + OTHER_SECONDS
        return max(1.0, 0.5 * self.budget.seconds, self.budget.seconds - spent)

    def _interval(self, n_val: float, steps: int, step_seconds: float) -> int:
        """Micro-batches between validations: up to twenty in a run, as far as their share of the time allows."""
        # A forward pass takes about a third of a step.
        seconds = SECONDS_OF_VALIDATION + step_seconds / 3 * n_val / self._tokens_per_step()
        n = max(2, min(20, int(SHARE_OF_VALIDATION * steps * step_seconds / seconds)))
        return max(1, math.ceil(steps / n)) * self.config.trainer.accumulate_grad_batches

    def _say(self, steps: int, step_seconds: float, passes: float, *, limited: bool) -> None:
        config, model = self.config, self.config.model
        n_micro = config.trainer.val_check_interval
        self.lines.append(
            f"model: {model.n_layer} layers, {model.n_embd} wide, context {model.context_length}: a step of "
            f"{config.data.batch_size} x {model.context_length} tokens takes {step_seconds:.2g} s here"
        )
        ends = f"the run ends after {self.most_passes} passes, before its budget; " if limited else ""
        self.lines.append(
            f"length: about {steps} steps, {passes:.1f} passes over the text, so {ends}dropout {model.dropout}, weight "
            f"decay {config.optimizer.weight_decay}; validation every {n_micro} micro-batches"
        )

    def report(self) -> str:
        """What was chosen and why, in three lines."""
        first, *rest = self.lines
        indent = "\n        "
        return f"budget  {self.config.budget}. {first}{indent}{indent.join(rest)}"


def text_bytes(config: Config) -> float:
    """UTF-8 bytes of the text to train on, about; infinite for a stream.

    Raises:
        UserError: there is no text, or it cannot be read.
    """
    if config.data.streaming:
        return math.inf
    scans = Scans(Path(config.data.dir) / SCANS)
    files = [file for source in find_text(config.data, scans).train for file in source.files]
    return max(1, sum(scan.n_bytes for scan in scans.of(files)))


def _size(n_bytes: float) -> str:
    if math.isinf(n_bytes):
        return "a stream"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"
