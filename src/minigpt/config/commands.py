"""Settings of the other commands: sample, inspect, compare, prove_resume."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from minigpt.config.checks import require, require_at_least, require_device, require_seed, require_types, take_paths
from minigpt.config.sampling import GenerationConfig


@dataclass(frozen=True)
class SampleConfig(GenerationConfig):
    """What `sample.py` is asked for."""

    run: str
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    prompt: str | None = None
    """Text to continue; the run's first prompt when not given, and an empty one starts a new document."""
    prompt_file: str | None = None
    """Read the prompt from this file, or from standard input if it is '-'."""
    num_samples: int = 1
    """Texts to write after each prompt, each with the next seed."""
    prompts: str | None = None
    """Instead, a file of JSON lines, each {"prompt": ...} and settings of its own if wanted; the texts go to `out`."""
    out: str | None = None
    """JSON lines of what was written after `prompts`; started again, what it has is not written again."""
    interactive: bool = False
    """Ask for prompts at the terminal; settings change on the fly, and Ctrl-C stops a text only."""
    compare: str | None = None
    """A second run: both write after the same prompt with the same seeds, side by side."""
    explain: str | None = None
    """An HTML file for why each token was written: what heads listened to, and what else was likely."""
    checkpoints: str | None = None
    """An HTML file for what each checkpoint of the run writes, with the same prompt and seed."""
    int8: bool = False
    """Read the weights with 8 bits each, on a CPU: models of 50 million parameters and more are faster then."""
    compile: bool = False
    """Decode through torch.compile, which takes a minute first: for a GPU; a CPU is faster without."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""

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
        require(self.out is None or self.prompts is not None, "out: is for what follows --prompts FILE; leave it out")
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
        """How text is written, without whose, after what and where it goes."""
        return GenerationConfig(
            **{each.name: getattr(self, each.name) for each in dataclasses.fields(GenerationConfig)}
        )

    def of_sample(self, number: int) -> GenerationConfig:
        """How the sample of this number, from 0, is written: with its own seed."""
        return dataclasses.replace(self.generation, seed=self.seed + number)


@dataclass(frozen=True)
class InspectConfig:
    """What `minigpt inspect` is asked for."""

    run: str
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    text: str | None = None
    """The text to look at; when not given, the one that was looked at while the run trained."""
    file: str | None = None
    """Read the text from this file, or from standard input if it is '-'."""
    relations: str | None = None
    """Instead, a file of JSON lines with texts and what refers to what in them, see docs/data.md."""
    compare: str | None = None
    """A second run or checkpoint with the same tokenizer and the same number of layers and heads."""
    max_tokens: int = 96
    """Tokens whose maps are shown (at most 256, and at most the context); more of the text is measured."""
    out: str | None = None
    """Where the page goes; when not given, inspection.html beside the weights."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""

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
    """YAML recipes that differ in model or optimizer alone."""
    seeds: list[int] = field(default_factory=lambda: [1, 2])
    """Each recipe is trained once with each seed."""
    max_steps: int | None = None
    """Optimizer steps of every run, instead of the recipes' own trainer.max_steps and max_time."""
    out: str = "runs/compare"
    """Folder for the runs, runs.csv, table.md and table.png; what it has finished is not trained again."""
    jobs: int = 1
    """Runs at the same time, each with its share of the CPU's cores."""

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
    """Optimizer steps of the run, instead of trainer.max_steps."""
    kills: int = 5
    """Processes to kill on the way."""
    kill_seed: int = 1
    """Seed of the moments at which they are killed."""

    def __post_init__(self) -> None:
        require_types("", self)
        require_at_least("", self, 4, "steps")
        require_at_least("", self, 1, "kills")
        require_seed("kill_seed", self.kill_seed)
