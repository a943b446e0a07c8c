"""Settings of the commands other than train, one class for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from minigpt.config.checks import (
    Device,
    PathName,
    PositiveInt,
    Rule,
    Section,
    Seed,
    bounds,
    matches,
    not_empty,
    require,
)
from minigpt.config.run import Config
from minigpt.config.sampling import GenerationConfig

Run = Annotated[PathName, not_empty("name a run folder such as runs/demo, or a checkpoint")]
FileName = Annotated[PathName, not_empty("name a file")]
DeviceName = Literal["h200", "h100", "a100", "l4", "t4", "rtx4090", "rtx3090", "m2", "m1max"]
"""Devices of which training/devices.py knows the rates."""
Length = Annotated[int, bounds(ge=1, le=256)]
HUB_NAME = r"(?a:(?!.*(--|\.\.|\.git$))(\b[\w.-]+\b/)?\b[\w.-]{1,96}\b)"
"""Names of models that the Hugging Face hub has, as gpt2 and Qwen/Qwen3-0.6B."""
_PART = r"(?a:\d{1,6}\.\d{1,6}|(?:mlp|attn|layer)\d{1,6})"
ABLATED = rf" *{_PART}(?: *, *{_PART})* *"
"""Names of parts of a model, as in `inspection.ablation.Part.of`."""


@dataclass(frozen=True)
class SampleConfig(GenerationConfig):
    """Options of `sample.py`."""

    run: Run
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    prompt: str | None = None
    """Text to continue; the run's first sampling prompt by default, and an empty one starts a new document."""
    prompt_file: PathName | None = None
    """Read the prompt from this file; - reads standard input."""
    num_samples: PositiveInt = 1
    """Number of samples per prompt, with seeds seed, seed + 1, ..."""
    prompts: FileName | None = None
    """Batch mode: a JSON Lines file, each line {"prompt": ...} plus optional settings; samples are appended to out."""
    out: FileName | None = None
    """JSON Lines file for the samples of prompts; rerunning the command resumes after the lines already there."""
    interactive: bool = False
    """Prompt at the terminal, with /commands that change settings; Ctrl-C stops the current sample only."""
    compare: Annotated[PathName, not_empty("name a run")] | None = None
    """A second run to compare with: both continue the same prompt with the same seeds, side by side."""
    explain: FileName | None = None
    """Write an HTML page that explains each token: attention of each head, and the likeliest alternatives."""
    checkpoints: FileName | None = None
    """Write an HTML page with a sample from each checkpoint of the run, with the same prompt and seed."""
    int8: bool = False
    """Quantize weights to int8, on a CPU; faster from about 50 million parameters."""
    compile: bool = False
    """Decode with torch.compile; compiling takes about a minute. For GPUs: on a CPU it is slower."""
    device: Device = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.int8 and self.compile), "int8 and compile are both given: leave one out")
        last = self.seed + self.num_samples - 1
        require(last < 2**31, f"seed={self.seed}: the last of num_samples={self.num_samples} would be above 2147483647")
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
class InspectConfig(Section):
    """What `minigpt inspect` is asked for."""

    run: Run
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    text: str | None = None
    """Text to inspect; the run's probe text by default."""
    file: FileName | None = None
    """Read the text from this file; - reads standard input."""
    relations: FileName | None = None
    """Instead of text: a JSON Lines, CSV or Parquet file of texts with what refers to what, see docs/data.md."""
    ablation: Literal["zero", "mean", "resample"] = "zero"
    """What replaces an ablated output: zeros, its mean over the text, or the output in another window of the text."""
    ablate: Annotated[str, matches(ABLATED, "name heads, MLPs, attentions or layers, as 1.0,1.3,mlp0")] | None = None
    """Loss without these, each alone and all together: heads as 1.0 (layer 1, head 0), mlp0, attn0, layer0."""
    compare: Annotated[PathName, not_empty("name a run")] | None = None
    """A second run or checkpoint to compare with: same tokenizer, n_layer and n_head."""
    max_tokens: Length = 96
    """Tokens shown in the maps, at most 256 and at most context_length; statistics use more of the text."""
    out: FileName | None = None
    """The page; inspection.html beside the weights by default. Or a table of the heads: .csv, .json or .parquet."""
    device: Device = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("text", "file", "relations") if getattr(self, name) is not None]
        require(len(given) < 2, f"{' and '.join(given)} are both given: leave one out")


@dataclass(frozen=True)
class LiveConfig(Section):
    """What `minigpt live` is asked for."""

    run: Run
    """A run folder such as runs/demo, a .ckpt or .safetensors file, or another program's model, as hf:gpt2."""
    text: str | None = None
    """Text that the page opens with; by default the beginning of the run's probe text."""
    weights: Literal["int8", "float16", "float32"] = "int8"
    """Type of the weights in the page: int8 has a scale for each row, and takes a quarter of float32's bytes."""
    out: FileName | None = None
    """The page; live.html beside the weights by default."""


@dataclass(frozen=True)
class ReportConfig(Section):
    """What `minigpt report` is asked for."""

    run: Annotated[PathName, not_empty("name a run folder such as runs/demo, or a W&B run's")]
    """A run folder such as runs/demo, or the folder of a W&B run, also where that is all that is left."""
    out: FileName | None = None
    """Where the report goes; when not given, report.html in the run's folder."""


@dataclass(frozen=True)
class ShareConfig(Section):
    """What `minigpt share` is asked for."""

    run: Annotated[PathName, not_empty("name a run folder such as runs/demo, or a shared file")]
    """A run folder such as runs/demo; or a .safetensors file made by this command, whose card is printed."""
    out: Annotated[PathName, matches(r"(?s:.*)\.safetensors", "name a file that ends in .safetensors")] | None = None
    """The file to make, which must not exist yet; when not given, NAME.safetensors in the current folder."""


@dataclass(frozen=True)
class ExportConfig(Section):
    """What `minigpt export` is asked for."""

    run: Run
    """A run folder such as runs/demo, a .ckpt or .safetensors file, or another program's model, as hf:gpt2."""
    to: Literal["hf", "gguf", "safetensors"] = "hf"
    """hf: a folder for transformers, vLLM, TransformerLens; gguf: a file for llama.cpp, Ollama; safetensors: a file."""
    out: FileName | None = None
    """Folder to make, which must not exist yet; when not given, NAME-hf, NAME-gguf or NAME-safetensors."""
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "float32"
    """Type of the weights: float32 or float16 for any file, bfloat16 for hf and safetensors, q8_0 (8 bits) for gguf."""
    check: bool = False
    """Load the result with transformers, and compare logits, token ids and 200 greedy tokens."""
    push_to_hub: Annotated[str, matches(HUB_NAME, "give a name on the hub, as you/story-gpt")] | None = None
    """Upload the folder to the hub as this model; log in with `hf auth login` first."""
    private: bool = False
    """Make the model on the hub private, if it is new."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = {"gguf": {"bfloat16"}, "hf": {"q8_0"}, "safetensors": {"q8_0"}}[self.to]
        require(self.dtype not in wrong, f"dtype={self.dtype}: not for --to {self.to}; give float32 or float16")
        require(not self.check or self.to != "safetensors", "check: only minigpt opens --to safetensors; leave it out")
        require(not self.private or self.push_to_hub, "private: only --push_to_hub uses it; leave it out")


@dataclass(frozen=True)
class ImportConfig(Section):
    """What `minigpt import` is asked for."""

    model: Annotated[PathName, not_empty("name a folder, or a model on the hub such as hf:gpt2")]
    """The folder of a model in Hugging Face's format, or its name on the hub: hf:gpt2, hf:Qwen/Qwen3-0.6B@main."""
    out: FileName | None = None
    """Run folder to make, which must not exist yet; when not given, runs/NAME."""
    context_length: PositiveInt | None = None
    """Maximum sequence length in tokens, at most the model's own, which is the default."""


@dataclass(frozen=True)
class CompareConfig(Section):
    """What `minigpt compare` is asked for."""

    recipes: Annotated[list[PathName], Rule(bool, "{name}: name at least one, such as configs/attention/*.yaml")]
    """YAML recipes that differ only in model or optimizer settings."""
    seeds: Annotated[list[Seed], Rule(bool, "{name}=[]: give at least one, as in --seeds 1 2")] = field(
        default_factory=lambda: [1, 2]
    )
    """Seeds; each recipe is trained once per seed."""
    max_steps: PositiveInt | None = None
    """Optimizer steps per run; overrides the recipes' trainer.max_steps and trainer.max_time."""
    out: Annotated[PathName, not_empty("name a folder such as runs/compare")] = "runs/compare"
    """Folder for the runs, runs.csv, table.md and table.png; finished runs found there are not trained again."""
    jobs: PositiveInt = 1
    """Number of parallel runs; the CPU cores are divided among them."""
    set: list[str] = field(default_factory=list, metadata={"repeated": True})
    """Change a setting of all recipes: model.n_layer=2. Several values, as 2,4, are a variant each. May be repeated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={self.seeds}: each seed once")


class Variant(NamedTuple):
    """One row of a comparison: a recipe, or one with settings of its own."""

    file: str
    """The recipe's file, for messages."""
    config: Config
    """With a name that no other variant has, and that a folder can have."""
    label: str
    """Name in the table, such as learning_rate=0.001; the recipe's name if nothing is varied."""
    settings: Mapping[str, str]
    """What is varied: dotted name -> value, as shown."""


@dataclass(frozen=True)
class ProofConfig(Section):
    """What `minigpt prove-resume` is asked for, besides the config."""

    steps: Annotated[int, bounds(ge=4)] = 60
    """Optimizer steps of the run; overrides trainer.max_steps."""
    kills: PositiveInt = 5
    """How many times to kill and resume the run."""
    kill_seed: Seed = 1
    """Seed of the kill times."""


@dataclass(frozen=True)
class DoctorConfig(Section):
    """What `minigpt doctor` is asked for, besides the config."""

    for_device: DeviceName | None = None
    """Also written --for: print what the run would take on this device, which need not be here; --trainer.devices 8."""


@dataclass(frozen=True)
class LensConfig(Section):
    """What `minigpt lens` is asked for."""

    run: Run
    """A run folder such as runs/demo, a .ckpt or .safetensors file, or another program's model, as hf:gpt2."""
    text: Annotated[str, not_empty("give one, as --text 'Once upon a time'")] = ""
    """Text that the model reads; at most context_length tokens."""
    position: int = -1
    """Position whose next token each layer predicts, from 0, or from the end if negative."""
    top: PositiveInt = 3
    """Likeliest tokens shown for each layer."""
    out: FileName | None = None
    """Write a row for each layer and position to this .csv, .json or .parquet file."""
    device: Device = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True)
class AttributeConfig(Section):
    """What `minigpt attribute` is asked for."""

    run: Run
    """A run folder such as runs/demo, a .ckpt or .safetensors file, or another program's model, as hf:gpt2."""
    text: Annotated[str, not_empty("give one, as --text 'Once upon a time'")] = ""
    """Text that the model reads; at most context_length tokens."""
    token: str | None = None
    """The token whose logit is taken apart, a space before a word included; the likeliest one by default."""
    minus: str | None = None
    """A token whose logit is subtracted: what speaks for the first rather than for this one."""
    position: int | None = None
    """Position whose next token is predicted, negative from the end; the last by default, with loss the mean of all."""
    loss: bool = False
    """Take apart the loss of the text's own tokens instead of a logit."""
    top: PositiveInt = 20
    """Components shown, the largest of either sign; the others are summed."""
    out: FileName | None = None
    """Write all components to this .csv, .json or .parquet file, with loss those of each token."""
    device: Device = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("token", "minus"):
            require(
                not self.loss or getattr(self, name) is None, f"{name}: a loss is of the text's tokens; leave it out"
            )


@dataclass(frozen=True)
class PatchConfig(Section):
    """What `minigpt patch` is asked for."""

    run: Run
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    clean: Annotated[str, not_empty("give a prompt that the model continues right, as --clean TEXT")] = ""
    """Prompt after which the model predicts the answer."""
    corrupted: Annotated[str, not_empty("give the clean prompt with a word changed, as --corrupted TEXT")] = ""
    """The same prompt, changed so that the model predicts another token: as many tokens as clean."""
    answer: Annotated[str, not_empty("give the token after the clean prompt, as --answer TOKEN")] = ""
    """Text of one token, the next one after clean; its logit is measured."""
    minus: Annotated[str, not_empty("give the token after the corrupted prompt, or leave it out")] | None = None
    """Text of one token whose logit is subtracted from that of answer: the answer after corrupted."""
    method: Literal["activation", "attribution", "path"] = "activation"
    """activation: copy one activation at a time; attribution: estimate that by a gradient; path: from head to head."""
    steps: PositiveInt = 4
    """With method=attribution: gradients averaged, from the corrupted to the clean prompt; 1 for the first alone."""
    sender: Annotated[str, matches(r"(?a:\d{1,6}\.\d{1,6})", "give LAYER.HEAD, as 0.3")] | None = None
    """With method=path: patch paths from this head only, LAYER.HEAD; from every head when not given."""
    through_mlps: bool = False
    """With method=path: paths may pass through MLPs, and not through the residual stream alone."""
    position: int = -1
    """Position whose logits are measured, from 0, or from the end as -1."""
    out: FileName | None = None
    """Where the page goes, or all effects as .csv, .json or .parquet; patching.html beside the weights by default."""
    device: Device = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.method == "attribution" or self.steps == 4, "steps: only --method attribution uses it; omit it")
        require(self.method == "path" or self.sender is None, "sender: only --method path uses it; leave it out")
        require(
            self.method == "path" or not self.through_mlps, "through_mlps: only --method path uses it; leave it out"
        )


@dataclass(frozen=True)
class CircuitsConfig(Section):
    """What `minigpt circuits` is asked for."""

    run: Run
    """A run folder such as runs/demo, a .ckpt or .safetensors file, or another program's model, as hf:gpt2."""
    text: str | None = None
    """With head: text that the model reads; at most context_length tokens."""
    head: Annotated[str, matches(r"[0-9]{1,4}\.[0-9]{1,4}", "give LAYER.HEAD, as 1.0")] | None = None
    """Take apart the score of a query and a key in this head, as 1.0; without it, heads that compose are shown."""
    query: int = -1
    """With head: position that attends, from 0, or from the end if negative."""
    key: int | None = None
    """With head: position attended to; the one with the largest weight by default."""
    top: PositiveInt = 10
    """Rows shown: pairs of heads of each kind of composition, or pairs of components of a score."""
    out: FileName | None = None
    """Write all pairs to this .csv, .json or .parquet file."""
    device: Device = "cpu"
    """Device: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.head is None or self.text is not None, f"head={self.head}: needs a text to attend in: give --text")
        for name, default in (("text", None), ("query", -1), ("key", None)):
            value = getattr(self, name)
            require(self.head or value == default, f"{name}={value!r}: is for --head LAYER.HEAD; leave it out")


@dataclass(frozen=True)
class StudyConfig(Section):
    """What `minigpt study` is asked for."""

    name: str = field(default="", metadata={"word": True})
    """A study such as soft-lookup, or a folder like those of studies/; all are listed when not given."""
    quick: bool = False
    """A smaller experiment of a few seconds, with one seed."""
    seeds: Annotated[int, bounds(ge=1, le=100)] = 3
    """Number of seeds that the experiment is repeated with."""
    out: FileName | None = None
    """The page; study-NAME.html in the current folder by default."""
    picture: FileName | None = None
    """Where the picture goes as a PNG file; it is on the page in any case."""
