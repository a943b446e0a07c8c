"""A recipe, and what trains it -> contenders of a contest: `train.py` itself, a bare loop, nanoGPT, a matrix product.

Heavy imports are inside the functions: each contender's process loads what it needs alone.
"""

from __future__ import annotations

import logging
import os
import random
import string
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import nanogpt
from harness import Turn

from minigpt.config import Config

ROOT = Path(__file__).parent.parent
CHARS = ["data.tokenizer=chars", "data.val_fraction=0.1"]
ENDLESS = ["trainer.max_steps=1000000", "trainer.max_time=null", "trainer.val_check_interval=1000000"]
SIDE = 2048
"""Of the square matrices whose product shows the machine's peak."""


def parse(changes: Sequence[str]) -> Config:
    """Changes as of `train.py`'s command line, without the dashes; those to the default model where no recipe is."""
    from minigpt.cli import parsing

    return parsing.parse_training([f"--{change}" for change in changes])[0]


def characters(chosen: Namespace) -> Path:
    """The text that was given, or as good for a step's time: a million random characters, 65 different ones."""
    if chosen.text is not None:
        return chosen.text
    path: Path = chosen.folder / "random.txt"
    alphabet = string.ascii_letters + string.digits + " \n."
    if not path.exists():
        path.write_text(alphabet + "".join(random.Random(0).choices(alphabet, k=1_000_000)), encoding="utf-8")
    return path


def prepared(changes: Sequence[str], folder: Path) -> tuple[Config, Path]:
    """The config with its vocabulary, once its text is prepared, and its train split as nanoGPT reads it."""
    import numpy as np

    from minigpt.data.open import open_data
    from minigpt.training.run import filled_in

    config = parse(changes)
    data = open_data(config.data, quiet=True)
    tokens = data.train.tokens.read(0, len(data.train.tokens))
    path = folder / f"{data.manifest.text_fingerprint[:12]}-{data.tokenizer.vocab_size}.bin"
    ends = data.tokenizer.end_of_text if config.data.tokenizer == "chars" else None  # no token of nanoGPT's there
    tokens[tokens != ends].astype(np.uint16).tofile(path)
    return filled_in(config, data), path


def ours(changes: Sequence[str], terminal: bool, turn: Turn) -> None:
    """A contender: each piece of its work is a step of `train.py`."""
    from lightning.pytorch.callbacks import LambdaCallback

    from minigpt.training import run

    make, gate = run.make_callbacks, LambdaCallback(on_train_batch_start=lambda *_: turn())
    with mock.patch.object(run, "make_callbacks", lambda *given: [*make(*given), gate]), watched(terminal):
        run.train(parse(changes))


def earlier(checkout: Path, changes: Sequence[str], turn: Turn) -> None:
    """A contender: `train.py` of another checkout of this project."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "minigpt"]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout / "src"))
    ours(changes, False, turn)


@contextmanager
def watched(terminal: bool) -> Iterator[None]:
    """Print to a terminal that somebody reads, if there is to be one: then the progress bar is drawn."""
    if not terminal:
        yield
        return
    (screen, keyboard), gone = os.openpty(), subprocess.DEVNULL
    with subprocess.Popen(["cat"], stdin=screen, stdout=gone, stderr=gone), os.fdopen(keyboard, "w") as file:
        os.close(screen)
        with redirect_stdout(file), redirect_stderr(file):
            yield


def theirs(checkout: Path, recipe: nanogpt.Recipe, tokens: Path, turn: Turn) -> None:
    """A contender: nanoGPT's steps."""
    for _ in nanogpt.training(checkout, recipe, tokens):
        turn()


def raw(changes: Sequence[str], turn: Turn) -> None:
    """A contender: our module, batches, optimizer and schedule in the barest loop there is."""
    import lightning as L
    import torch

    from minigpt.data.batches import train_batches
    from minigpt.data.open import open_data
    from minigpt.training.module import TrainingModule
    from minigpt.training.optimizer import learning_rate
    from minigpt.training.run import filled_in
    from minigpt.training.threads import denormals_as_zero

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    config = parse(changes)
    data = open_data(config.data, quiet=True)
    config = filled_in(config, data)
    module = TrainingModule(config, data)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.trainer = trainer  # whose number of devices the module asks for
    optimizer, max_steps = module.configure_optimizers(), config.trainer.max_steps
    batches = torch.utils.data.DataLoader(train_batches(config, data, n_batches=max_steps), None)
    with denormals_as_zero():
        for step, batch in enumerate(batches):
            turn()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.optimizer, step, step / max_steps)
            optimizer.zero_grad()
            module.training_step(batch, step).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.trainer.gradient_clip_val)
            optimizer.step()
            module.micro_batches.clear()


def product(turn: Turn) -> None:
    """A contender: a float32 product of two square matrices, for the machine's peak."""
    import torch

    left, right, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    while True:
        turn()
        torch.mm(left, right, out=out)


def like(config: Config) -> nanogpt.Recipe:
    """nanoGPT's recipe at our sizes."""
    sizes = {each: getattr(config.model, each) for each in ("n_layer", "n_head", "n_embd", "context_length")}
    extra = 1 if config.data.tokenizer == "chars" else 0  # our end_of_text
    n_symbols = (config.model.vocab_size or 0) - extra
    return nanogpt.Recipe(**sizes, vocab_size=n_symbols, batch_size=config.data.batch_size, max_steps=10**6)
