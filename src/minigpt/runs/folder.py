"""Paths in a run folder. No file is opened here, so nothing heavy is imported.

runs/demo/
  config.yaml          the resolved config
  minigpt_tokenizer.json  the tokenizer, complete, in a format of its own
  metrics.csv          losses, bits per byte, learning rate, speed: one row a step
  checkpoints/         last.ckpt, best.ckpt, and earlier checkpoints such as step_000150.ckpt in case last.ckpt is
                       damaged (keep_checkpoints in all): Lightning's format with a checksum at the end, everything
                       needed to resume; and the weights of keep_every_n_steps, as step_000200.safetensors
  model.safetensors    the weights with the best val loss, with config, tokenizer and checksum in its header
  samples/             samples of each validation
  attention.html       the interactive attention page; attention.png the grid of maps; attention/ their data,
                       and probe.json, the measured text
  heads.csv            label and scores of each head at the end
  diagnosis.json       what happened while it trained: events, a summary in words, what to try
  anomalies/           step_000123.json for each step whose loss or gradient was NaN or inf; spikes.csv for the steps
                       whose loss was far above those before
  loggers.json         run ids of the dashboards, so that a resumed run continues there
  .lock                names the process that trains here
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import UserError
from minigpt.files import locked, reason, refuse_url, require_writable, sweep


def name_of(path: str | Path) -> str:
    """Display name of a run or of a checkpoint in its folder: tiny, or tiny/checkpoints/last.ckpt."""
    path = Path(path).resolve()
    run = next((folder for folder in (path, *path.parents) if (folder / "config.yaml").is_file()), path)
    return path.relative_to(run.parent).as_posix()


@dataclass(frozen=True, init=False)
class RunFolder:
    """Paths of one run."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        refuse_url(path, "a run")
        object.__setattr__(self, "path", Path(path))

    @classmethod
    def create(cls, runs_dir: str | Path, name: str) -> RunFolder:
        """Create a new folder: runs_dir/name, or name-2, name-3, ... where that exists.

        Raises:
            UserError: the folder cannot be created.
        """
        runs_dir, number = Path(runs_dir), 1
        while True:
            path = runs_dir / (name if number == 1 else f"{name}-{number}")
            try:
                runs_dir.mkdir(parents=True, exist_ok=True)
                path.mkdir()
            except FileExistsError:
                if not runs_dir.is_dir():
                    raise UserError(f"runs_dir={runs_dir}: is a file, not a folder") from None
                number += 1
                continue
            except OSError as error:
                raise UserError(f"{path}: cannot be made ({reason(error)})") from None
            return cls(path)

    @classmethod
    def all_named(cls, runs_dir: str | Path, name: str) -> list[RunFolder]:
        """The existing folders that `create` made for a name, newest first."""
        pattern = re.compile(rf"{re.escape(name)}(?:-(\d+))?")
        found = [
            (int(match[1] or 1), path) for path in Path(runs_dir).glob("*/") if (match := pattern.fullmatch(path.name))
        ]
        return [cls(path) for _, path in sorted(found, reverse=True)]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for training, and remove temporary files of processes that died.

        Raises:
            UserError: another process trains in it, or it is not writable.
        """

        def refusal(owner: str) -> str:
            return f"{self.path}: {owner} trains in it; wait for it, stop it, or start another run"

        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock", refusal))
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written ({reason(error)})") from None
            if self.last.parent.exists():
                require_writable(self.last.parent)
            sweep(self.path, *(self.path / name for name in ("checkpoints", "samples", "attention", "anomalies")))
            yield

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def loggers(self) -> Path:
        return self.path / "loggers.json"

    @property
    def tokenizer(self) -> Path:
        """minigpt_tokenizer.json; in older runs tokenizer.json, a name that wrongly suggested Hugging Face's format."""
        path, old = self.path / "minigpt_tokenizer.json", self.path / "tokenizer.json"
        return old if old.is_file() and not path.is_file() else path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.ckpt"

    def earlier(self, step: int) -> Path:
        """A former last.ckpt, of this step."""
        return self.path / "checkpoints" / f"step_{step:06d}.ckpt"

    @property
    def all_earlier(self) -> dict[int, Path]:
        """Former last.ckpt files by step, newest first."""
        return dict(reversed(self._by_step(".ckpt").items()))

    def kept(self, step: int) -> Path:
        """Weights of one step, see keep_every_n_steps."""
        return self.path / "checkpoints" / f"step_{step:06d}.safetensors"

    @property
    def all_kept(self) -> dict[int, Path]:
        """Kept weights by step, in ascending order."""
        return self._by_step(".safetensors")

    def _by_step(self, ending: str) -> dict[int, Path]:
        files = (self.path / "checkpoints").glob(f"step_*{ending}")
        steps = {file.stem.removeprefix("step_"): file for file in files}
        return dict(sorted((int(step), file) for step, file in steps.items() if step.isdecimal()))

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def attention_page(self) -> Path:
        return self.path / "attention.html"

    @property
    def attention_grid(self) -> Path:
        return self.path / "attention.png"

    @property
    def heads(self) -> Path:
        return self.path / "heads.csv"

    @property
    def diagnosis(self) -> Path:
        return self.path / "diagnosis.json"

    def anomaly(self, step: int) -> Path:
        """Diagnostics of a step whose loss or gradient was NaN or inf."""
        return self.path / "anomalies" / f"step_{step:06d}.json"

    @property
    def spikes(self) -> Path:
        return self.path / "anomalies" / "spikes.csv"

    def samples(self, step: int) -> Path:
        """Samples of one step."""
        return self.path / "samples" / f"step_{step:06d}.txt"

    def snapshot(self, step: int) -> Path:
        """Attention maps of one step."""
        return self.path / "attention" / f"step_{step:06d}.npz"

    @property
    def probe(self) -> Path:
        """Token ids and relations of the text inspected during training."""
        return self.path / "attention" / "probe.json"

    @property
    def snapshots(self) -> list[Path]:
        """Attention maps of all saved steps, in ascending order."""
        steps = {file: file.stem.removeprefix("step_") for file in (self.path / "attention").glob("step_*.npz")}
        # By number: step_1000000 is before step_999999 in the alphabet. Other programs' files have other names.
        return sorted((file for file, step in steps.items() if step.isdecimal()), key=lambda file: int(steps[file]))
