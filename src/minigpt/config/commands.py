"""Settings of the other commands: sample, inspect, compare, prove_resume."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from minigpt.config.checks import require, require_at_least, require_device, require_seed, require_types, take_paths
from minigpt.config.sampling import GenerationConfig


@dataclass(frozen=True)
class SampleConfig(GenerationConfig):
    """Options of `sample.py`."""

    run: str
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    prompt: str | None = None
    """Text to continue; the run's first sampling prompt by default, and an empty one starts a new document."""
    prompt_file: str | None = None
    """Read the prompt from this file; - reads standard input."""
    num_samples: int = 1
    """Number of samples per prompt, with seeds seed, seed + 1, ..."""
    prompts: str | None = None
    """Batch mode: a JSON Lines file, each line {"prompt": ...} plus optional settings; samples are appended to out."""
    out: str | None = None
    """JSON Lines file for the samples of prompts; rerunning the command resumes after the lines already there."""
    interactive: bool = False
    """Prompt at the terminal, with /commands that change settings; Ctrl-C stops the current sample only."""
    compare: str | None = None
    """A second run to compare with: both continue the same prompt with the same seeds, side by side."""
    explain: str | None = None
    """Write an HTML page that explains each token: attention of each head, and the likeliest alternatives."""
    checkpoints: str | None = None
    """Write an HTML page with a sample from each checkpoint of the run, with the same prompt and seed."""
    int8: bool = False
    """Quantize weights to int8, on a CPU; faster from about 50 million parameters."""
    compile: bool = False
    """Decode with torch.compile; compiling takes about a minute. For GPUs: on a CPU it is slower."""
    device: str = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        take_paths(self, "run", "prompt_file", "prompts", "out", "compare", "explain", "checkpoints")
        super().__post_init__()
        require_device(self.device)
        require(not (self.int8 and self.compile), "int8 and compile are both given: leave one out")
        require_at_least("", self, 1, "num_samples")
        last = self.seed + self.num_samples - 1
        require(last < 2**31, f"seed={self.seed}: the last of num_samples={self.num_samples} would be above 2147483647")
        require(bool(self.run), "run is empty: name a run folder such as runs/demo, or a checkpoint")
        for name in ("prompts", "out", "compare", "explain", "checkpoints"):
            require(getattr(self, name) != "", f"{name} is empty: name a {'run' if name == 'compare' else 'file'}")
        modes = ("prompts", "interactive", "compare", "explain", "checkpoints")
        given = [name for name in modes if getattr(self, name)]
        require(len(given) < 2, f"{' and '.join(given)} are given together: give one at a time")
        require(
            self.prompts is None or self.out is not None, "prompts: name a file for the texts, as in --out texts.jsonl"
        )
        require(self.out is None or self.prompts is not None, "out: only --prompts FILE uses it; leave it out")
        sources = [name for name in ("prompts", "prompt_file", "prompt") if getattr(self, name) is not None]
        require(len(sources) < 2, f"{' and '.join(sources)} are given together: give one of them")
        single = next((name for name in ("explain", "checkpoints") if getattr(self, name)), None)
        require(
            single is None or self.num_samples == 1,
            f"{single} shows one text: leave out num_samples={self.num_samples}",
        )
        changed = next((name for name in ("int8", "compile") if getattr(self, name)), None)
        require(single is None or changed is None, f"{single} shows the model as it was trained: leave out {changed}")

    @property
    def generation(self) -> GenerationConfig:
        """The generation settings alone."""
        return GenerationConfig(
            **{each.name: getattr(self, each.name) for each in dataclasses.fields(GenerationConfig)}
        )

    def of_sample(self, number: int) -> GenerationConfig:
        """Generation settings of sample `number` (from 0), with its own seed."""
        return dataclasses.replace(self.generation, seed=self.seed + number)


@dataclass(frozen=True)
class InspectConfig:
    """What `minigpt inspect` is asked for."""

    run: str
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    text: str | None = None
    """Text to inspect; the run's probe text by default."""
    file: str | None = None
    """Read the text from this file; - reads standard input."""
    relations: str | None = None
    """Instead of text: a JSON Lines file of texts annotated with which token refers to which, see docs/data.md."""
    compare: str | None = None
    """A second run or checkpoint to compare with: same tokenizer, n_layer and n_head."""
    max_tokens: int = 96
    """Tokens shown in the maps, at most 256 and at most context_length; statistics use more of the text."""
    out: str | None = None
    """Where the page goes; when not given, inspection.html beside the weights."""
    device: str = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        take_paths(self, "run", "file", "relations", "compare", "out")
        require_types("", self)
        require(bool(self.run), "run is empty: name a run folder such as runs/demo, or a checkpoint")
        given = [name for name in ("text", "file", "relations") if getattr(self, name) is not None]
        require(len(given) < 2, f"{' and '.join(given)} are both given: leave one out")
        require(1 <= self.max_tokens <= 256, f"max_tokens={self.max_tokens}: must lie between 1 and 256")
        require_device(self.device)


@dataclass(frozen=True)
class ReportConfig:
    """What `minigpt report` is asked for."""

    run: str
    """A run folder such as runs/demo, or the folder of a W&B run, also where that is all that is left."""
    out: str | None = None
    """Where the report goes; when not given, report.html in the run's folder."""

    def __post_init__(self) -> None:
        take_paths(self, "run", "out")
        require_types("", self)
        require(bool(self.run), "run is empty: name a run folder such as runs/demo, or a W&B run's")


@dataclass(frozen=True)
class CompareConfig:
    """What `minigpt compare` is asked for."""

    recipes: list[str]
    """YAML recipes that differ only in model or optimizer settings."""
    seeds: list[int] = field(default_factory=lambda: [1, 2])
    """Seeds; each recipe is trained once per seed."""
    max_steps: int | None = None
    """Optimizer steps per run; overrides the recipes' trainer.max_steps and trainer.max_time."""
    out: str = "runs/compare"
    """Folder for the runs, runs.csv, table.md and table.png; finished runs found there are not trained again."""
    jobs: int = 1
    """Number of parallel runs; the CPU cores are divided among them."""

    def __post_init__(self) -> None:
        take_paths(self, "recipes", "out")
        require_types("", self)
        require(bool(self.recipes), "recipes: name at least one, such as configs/attention/*.yaml")
        require(bool(self.seeds), "seeds=[]: give at least one, as in --seeds 1 2")
        for seed in self.seeds:
            require_seed("seeds", seed)
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={self.seeds}: each seed once")
        require_at_least("", self, 1, "max_steps", "jobs")
        require(bool(self.out), "out is empty: name a folder such as runs/compare")


@dataclass(frozen=True)
class ProofConfig:
    """What `minigpt prove-resume` is asked for, besides the config."""

    steps: int = 60
    """Optimizer steps of the run; overrides trainer.max_steps."""
    kills: int = 5
    """How many times to kill and resume the run."""
    kill_seed: int = 1
    """Seed of the kill times."""

    def __post_init__(self) -> None:
        require_types("", self)
        require_at_least("", self, 4, "steps")
        require_at_least("", self, 1, "kills")
        require_seed("kill_seed", self.kill_seed)
