"""A run's folder -> the paths of what a run leaves behind. Nothing is opened here, so that nothing heavy is loaded.

runs/demo/
  config.yaml          the resolved config
  minigpt_tokenizer.json  the tokenizer, complete, in a format of its own
  metrics.csv          losses, bits per byte, learning rate, speed
  checkpoints/         last.ckpt, best.ckpt and, should last.ckpt be damaged, the one before it as step_000150.ckpt (as
                       many as keep_checkpoints says): Lightning's format with a checksum at the end, everything needed
                       to resume; the weights that keep_every_n_steps keeps, as step_000200.safetensors
  model.safetensors    the weights with the best val loss, with config, tokenizer and checksum in its header
  samples/             text written at each validation
  attention.html       the interactive attention page; attention.png the grid of maps; attention/ their data
  heads.csv            every head's label and scores at the end
  anomalies/           what is known of a step whose loss or gradient was not finite, as step_000123.json; and in
                       spikes.csv the steps whose loss was far above those before
  loggers.json         which run of a dashboard this is, for a resumed run to go on in it
  .lock                while a process trains here: which
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
    """What a run, or a checkpoint in its folder, is called on a page: tiny, or tiny/checkpoints/last.ckpt."""
    path = Path(path).resolve()
    run = next((folder for folder in (path, *path.parents) if (folder / "config.yaml").is_file()), path)
    return path.relative_to(run.parent).as_posix()


@dataclass(frozen=True, init=False)
class RunFolder:
    """The paths of one run."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        refuse_url(path, "a run")
        object.__setattr__(self, "path", Path(path))

    @classmethod
    def create(cls, runs_dir: str | Path, name: str) -> RunFolder:
        """Make a new folder: runs_dir/name, or name-2, name-3, ... It never takes one that exists.

        Raises:
            UserError: the folder cannot be made.
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
        """The folders that `create` has made under a name, the newest first."""
        pattern = re.compile(rf"{re.escape(name)}(?:-(\d+))?")
        found = [
            (int(match[1] or 1), path) for path in Path(runs_dir).glob("*/") if (match := pattern.fullmatch(path.name))
        ]
        return [cls(path) for _, path in sorted(found, reverse=True)]

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """One process trains in a folder at a time; what dead ones had begun to write there is removed first.

        Raises:
            UserError: another process does, or nothing can be written there.
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
        """Older runs have it as tokenizer.json, as if Hugging Face's tools could open it."""
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
        """The checkpoint that was last.ckpt once, at this step."""
        return self.path / "checkpoints" / f"step_{step:06d}.ckpt"

    @property
    def all_earlier(self) -> dict[int, Path]:
        """Checkpoints that were last.ckpt once, by their steps, the newest first."""
        return dict(reversed(self._by_step(".ckpt").items()))

    def kept(self, step: int) -> Path:
        """Weights of one step."""
        return self.path / "checkpoints" / f"step_{step:06d}.safetensors"

    @property
    def all_kept(self) -> dict[int, Path]:
        """Weights of the steps that were kept, in their order."""
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

    def anomaly(self, step: int) -> Path:
        """What is known of a step whose loss or gradient was not finite."""
        return self.path / "anomalies" / f"step_{step:06d}.json"

    @property
    def spikes(self) -> Path:
        return self.path / "anomalies" / "spikes.csv"

    def samples(self, step: int) -> Path:
        """Text written at one step."""
        return self.path / "samples" / f"step_{step:06d}.txt"

    def snapshot(self, step: int) -> Path:
        """Attention maps of one step."""
        return self.path / "attention" / f"step_{step:06d}.npz"

    @property
    def snapshots(self) -> list[Path]:
        """Attention maps of all steps there are, in their order."""
        return sorted((self.path / "attention").glob("step_*.npz"))
