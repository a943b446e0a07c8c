"""`compile: null` -> whether torch.compile earns its own time back in a run, and why."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from typing import NamedTuple

import torch

from minigpt.config import Config
from minigpt.cores import usable_cores
from minigpt.model.variants.flex import has_triton

PAYING_STEPS = 1000
"""Steps from which a run on a GPU earns back the minute of compiling."""
SAVED_PER_LAYER, SAVED_PER_ELEMENT = 3.9e-3, 9e-9
"""Seconds that a compiled micro-batch saves on a CPU: of calls, in each layer, and of elementwise work, in each layer
for each token times the model's width. Solved from configs/shakespeare_char.yaml, where a step of 54 ms saves 19, and
configs/demo.yaml, where one of 225 ms saves 30 (two cores of a Xeon, torch 2.13)."""
FLOPS, MOST_THREADS = 60e9, 8
"""Of a thread in those compiled steps, and the threads up to which small models gain."""
COLD_SECONDS, COLD_PER_LAYER = 26.0, 10.0
WARM_SECONDS, WARM_PER_LAYER = 1.5, 0.4
"""Of compiling on two cores, with an empty cache and with a warm one. Layers are unrolled, so the time grows with them:
4 take 59 to 73 s on an EPYC, 24 to 37 on that Xeon, and 3 s with a warm cache. The slower CPU counts: to compile in
vain has cost half of a run of five minutes on one core, and to miss a gain costs less."""


class Choice(NamedTuple):
    """What was decided, and the reason in words."""

    compiles: bool
    reason: str

    def __str__(self) -> str:
        return f"{'yes' if self.compiles else 'no'}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Saving:
    """What compiling would save a run on a CPU, in seconds, and what it would take."""

    saved: float
    cold: float
    warm: float

    @classmethod
    def of(cls, config: Config, n_threads: int, n_cores: int) -> Saving:
        """From the sizes; measured constants, so within a factor of two."""
        m, t = config.model, config.trainer
        n_tokens = config.data.batch_size * m.context_length
        # Parameters of a transformer's matrices, about: 12 C^2 a layer, and the head (Kaplan et al. 2020).
        n_weights = 12 * m.n_layer * m.n_embd**2 + (m.vocab_size or 0) * m.n_embd
        seconds = 6 * n_weights * n_tokens / (FLOPS * min(n_threads, MOST_THREADS))  # compiled
        saved = m.n_layer * (SAVED_PER_LAYER + SAVED_PER_ELEMENT * n_tokens * m.n_embd)
        n_batches = float(t.max_steps * t.accumulate_grad_batches)
        if t.max_time_seconds:
            n_batches = min(n_batches, t.max_time_seconds / (seconds + saved))
        cold = (COLD_SECONDS + m.n_layer * COLD_PER_LAYER) * (2 if n_cores == 1 else 1)  # two compilers at a time
        return cls(n_batches * saved, cold, WARM_SECONDS + m.n_layer * WARM_PER_LAYER)


def on_cpu(saving: Saving, *, is_warm: bool, compiler: str | None) -> Choice:
    """The rule for a CPU.

    Args:
        saving: of the run.
        is_warm: whether such a step is in the cache.
        compiler: what stops the C++ compiler from working, or None. It is needed with a warm cache too: torch asks it
            for the processor's instructions.
    """
    cost = saving.warm if is_warm else saving.cold
    cache = "warm" if is_warm else "cold"
    if saving.saved < cost:
        return Choice(False, f"it would save about {saving.saved:.0f} s and take {cost:.0f} s ({cache} cache)")
    if compiler is not None:
        return Choice(False, compiler)
    later = "" if is_warm else ", and later runs of this shape start warm"
    return Choice(True, f"{cache} cache, about {cost:.0f} s; it saves about {saving.saved:.0f} s{later}")


def choose(config: Config, device: torch.device, *, is_warm: bool) -> Choice:
    """Whether a run with `compile: null` compiles its step on this machine.

    Args:
        config: with model.vocab_size set.
        device: of the model.
        is_warm: whether such a step is in the cache.
    """
    if device.type == "cuda":
        if not has_triton():
            return Choice(False, "no Triton")
        steps = config.trainer.max_steps
        return Choice(steps >= PAYING_STEPS, f"{steps} steps on a GPU; it pays from {PAYING_STEPS} on")
    if device.type != "cpu":
        return Choice(False, f"not tried on {device.type}")
    saving = Saving.of(config, torch.get_num_threads(), usable_cores())
    pays_warm = saving.saved >= saving.warm
    return on_cpu(saving, is_warm=is_warm, compiler=why_no_compiler() if pays_warm else None)


@functools.cache
def why_no_compiler() -> str | None:
    """Why inductor cannot build its C++ here; None if a program like its own compiles."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        return f"no C++ compiler ({name}); install one or set CXX"
    include = sysconfig.get_path("include")
    try:
        tried = subprocess.run(
            [name, "-x", "c++", "-fsyntax-only", f"-I{include}", "-"],
            input="#include <Python.h>\n#include <cmath>\n",
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return f"the C++ compiler {name} does not run"
    return None if tried.returncode == 0 else f"the C++ compiler {name} does not work: {_first_error(tried.stderr)}"


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return (lines or ["no reason given"])[0].strip()[:100]
