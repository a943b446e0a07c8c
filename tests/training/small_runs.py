"""Configs of runs of a second or two, on a text that is the same on every machine."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from minigpt.config import Config

GPT2: dict[str, Any] = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True}
"""Model settings of GPT-2's family, but for its tied embeddings."""


def small_text(n_lines: int = 400) -> str:
    """Lines of made-up arithmetic: learnable, and no file of anybody's."""
    return "".join(f"{i * 7 % 100} plus {i * 13 % 50} is {i * 7 % 100 + i * 13 % 50};\n" for i in range(n_lines))


def small_settings(tmp_path: Path, **sections: dict[str, Any]) -> Config:
    """A config of a second or two, with some sections' settings changed.

    Attention maps take half of so short a run, so only a run that is given `attention` has them. Nor does an endless
    one, which a test stops, compile its step.
    """
    text = tmp_path / "text.txt"
    if not text.exists():
        text.write_text(small_text())
    settings: dict[str, Any] = {
        "model": {"context_length": 16, "n_layer": 2, "n_head": 2, "n_embd": 16},
        "data": {"source": str(text), "tokenizer": "bytes", "batch_size": 4, "dir": str(tmp_path / "data")},
        "optimizer": {"warmup_steps": 3},
        "trainer": {
            "max_steps": 12,
            "val_check_interval": 6,
            "logger": False,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "accelerator": "cpu",
        },
        "sampling": {"prompts": ["1 plus"], "max_new_tokens": 8},
        "attention": {"enabled": "attention" in sections, "max_tokens": 12},
        "compile": False,
        "name": "small",
        "runs_dir": str(tmp_path / "runs"),
    }
    for name, value in sections.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    return Config.from_dict(settings)


def with_trainer(config: Config, **settings: Any) -> Config:
    """The same run with other Trainer settings."""
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **settings))


@contextlib.contextmanager
def said_by_lightning() -> Iterator[list[str]]:
    """What Lightning's loggers say meanwhile; its own handler writes to the stderr of when it was imported."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


class PowerCutError(Exception):
    """Ends training at once, as a power cut would: nothing is saved on the way out."""


def train_and_die(config: Config, micro_batch: int, resume: Path | None = None) -> None:
    """Train until a micro-batch, and no further."""
    from minigpt.training.module import TrainingModule  # which loads torch, and many tests do not need it
    from minigpt.training.run import train

    real_step = TrainingModule.training_step

    def step(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == micro_batch:
            raise PowerCutError
        return real_step(self, batch, batch_idx)

    with mock.patch.object(TrainingModule, "training_step", step), contextlib.suppress(PowerCutError):
        train(config, resume)
        raise AssertionError(f"the run ended before micro-batch {micro_batch}")


def wandb_tool() -> str:
    """W&B's own program, beside this Python or on the path."""
    tool = shutil.which("wandb", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert tool is not None
    return tool


def wandb_records(part: Path) -> Iterator[Any]:
    """The records in one of W&B's folders. Its log is LevelDB's: 32 KiB blocks of chunks with 7 bytes of head each."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = part.glob("*.wandb")
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):  # of a process that was killed
            return
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # the whole of a record, or its last chunk
            yield Record.FromString(record)
            record = b""
        if 32768 - at % 32768 < 7:  # no room for a head
            at += 32768 - at % 32768


def items(values: Iterable[Any]) -> dict[str, Any]:
    """Keys and values of a record's list."""
    return {".".join(value.nested_key) or value.key: json.loads(value.value_json) for value in values}


def wandb_history(run: Path, part: Path | None = None) -> tuple[list[dict[str, Any]], Path]:
    """The rows that W&B's newest folder in a run holds, or another, and the folder of its media."""
    folder = part or (run / "wandb" / "latest-run").resolve()
    return [
        items(record.history.item) for record in wandb_records(folder) if record.HasField("history")
    ], folder / "files"
