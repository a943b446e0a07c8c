"""Checks a config on this machine: what works, what would fail, and the run's time, memory and disk.

    minigpt doctor --config configs/demo.yaml --trainer.max_steps 2000

It takes the arguments of `train.py`, prints one screen, never prompts, and leaves no file behind. Lightning and wandb
are imported late: a compromised release is refused first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from minigpt.config import AUTO, Config, DataConfig
from minigpt.data.prepare import find_prepared, prepare
from minigpt.data.shards import PreparedData
from minigpt.data.sources.hub import is_kept, parse_name, require_dataset
from minigpt.data.tokenizers.tiktoken_tables import TIKTOKEN_NAMES, require_tables
from minigpt.errors import UserError, is_out_of_memory, memory_reason
from minigpt.files import shown
from minigpt.pages.run_record import duration
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, newest_checkpoint
from minigpt.training import machine
from minigpt.training.arithmetic import memory, on_meta
from minigpt.training.budget import BYTES_PER_TOKEN, Planner
from minigpt.training.compile_choice import choose
from minigpt.training.step_times import StepTimes, measure

if TYPE_CHECKING:
    import lightning as L

T = TypeVar("T")
WIDTH, INDENT = 100, 11
FETCHED = ("hf:", "http://", "https://")
"""How names of sources begin that are not files here."""
SHORT_BYTES = 1 << 20
"""Texts below this size are prepared in a temporary folder, to find errors and the number of tokens."""


@dataclasses.dataclass
class Findings:
    """Lines to print, and failures that the run would meet."""

    verdict: str = "nothing known here would stop this run"
    lines: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, label: str, text: str) -> None:
        """Add a line."""
        self.lines.append((label, text))

    def check(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Call a function; on UserError or too little memory, record the failure and return None."""
        try:
            return function(*arguments)
        except Exception as error:
            if not isinstance(error, UserError) and not is_out_of_memory(error):
                raise
            said = str(error) if isinstance(error, UserError) else f"too little memory ({memory_reason(error)})"
            if said not in self.failures:
                self.failures.append(said)
            return None

    def __str__(self) -> str:
        rows = [*self.lines, *(("WOULD FAIL", line) for line in self.failures)]
        if not self.failures:
            rows.append(("verdict", self.verdict))
        indent = " " * INDENT
        return "\n".join(
            textwrap.fill(text, WIDTH, initial_indent=label.ljust(INDENT), subsequent_indent=indent)
            for label, text in rows
        )

    def print(self) -> None:
        """Print all lines; exit code 2 where something would fail."""
        print(shown(self))
        if self.failures:
            sys.stdout.flush()
            sys.exit(2)


def diagnose(config: Config, resume: Path | None) -> None:
    """Examine, print; exit code 2 where something would fail."""
    findings, compiled = Findings(), os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="minigpt-doctor-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for variable in ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):  # libraries write there on import
            os.environ.setdefault(variable, folder)
        examine(config, resume, Path(folder), findings, compiled)
    findings.print()


def examine(
    config: Config, resume: Path | None, temporary: Path, findings: Findings, compiled: str | None = None
) -> None:
    """Run all checks in the order of the output; network requests start first, their answers are read last.

    Args: compiled is the user's folder of compiled code, if one is set.
    """
    machine.refuse_withdrawn()
    hub = machine.Asking(lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co") + "/")
    wandb = machine.Asking(_wandb_address)
    with contextlib.closing(machine.Compiling(temporary)) as compiling:
        from minigpt.training.initial import taken_over
        from minigpt.training.run import check_before_text
        from minigpt.training.trainer import quieten

        quieten()
        if resume is None:
            config, _ = findings.check(taken_over, config) or (config, None)
        trainer = findings.check(check_before_text, config)
        free, total = (n_bytes / 1e9 for n_bytes in machine.memory())
        cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} used by torch"
        findings.add("machine", f"{cores}; {free:.1f} of {total:.1f} GB memory free; {_gpus()}")
        disk = {
            name: findings.check(machine.free_disk, Path(path), name)
            for name, path in (("runs_dir", config.runs_dir), ("data.dir", config.data.dir))
        }
        room = [f"{free_bytes / 1e9:.1f} GB free for {name}" for name, free_bytes in disk.items() if free_bytes]
        findings.add("disk", ", ".join(room) or "no writable folder")
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        speeds = machine.speeds(device)
        rates = ", ".join(f"{name} {rate / 1e9:,.2g}" for name, rate in speeds.items())
        pays = max(speeds, key=lambda name: speeds[name])
        used = f"; this run: {trainer.precision}" if trainer else ""
        findings.add("precision", f"{rates} Gflop/s on {device}: {pays} is fastest{used}")
        names = ("torch", "lightning", "datasets", "wandb", "tiktoken")
        findings.add("versions", machine.versions(*names))
        works = compiling.result()
    findings.add("W&B", _wandb_line(config, wandb))
    silent = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else f"{hub.host} does not answer" * (not hub)
    findings.add("hub", f"{silent}; only cached data can be used" if silent else f"{hub.host} answers")
    if resume is not None and resume != Path(AUTO):
        config = findings.check(_with_paths, config, resume) or config
    planner = findings.check(_planner, config, trainer, temporary, findings) if resume is None and trainer else None
    config = planner.config if planner else config
    data = findings.check(_text, config, temporary, not silent, findings)
    config = (findings.check(_planned, planner, data, findings) if planner else None) or config
    config = _filled_in(config, data, findings)
    findings.add("compile", f"{works}; {_compile_line(config, trainer, compiled)}")
    if data is not None:
        findings.check(_start, config, data, trainer, resume, findings)
    _plan(config, data, trainer, speeds["float32"], disk["runs_dir"], findings)


def _planner(config: Config, trainer: L.Trainer, temporary: Path, findings: Findings) -> Planner | None:
    """What fills in a budget's settings, with those of the text filled in; None without a budget or a text to read."""
    config, planner = Planner.of(config, trainer)
    if planner is None:
        return None
    if not _is_here(config.data):
        findings.add("budget", f"{config.budget}: chooses when the text is read; below are the settings until then")
        return None
    planner.config = _with_data_dir(config, str(temporary))  # where reading the text leaves its notes
    planner.config = _with_data_dir(planner.of_text(), config.data.dir)
    return planner


def _with_data_dir(config: Config, folder: str) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dir=folder))


def _planned(planner: Planner, data: PreparedData | None, findings: Findings) -> Config:
    """The config with a budget's choices; those for a text that is not prepared yet are by its size."""
    if data is not None:
        config = planner.of_training(data)
    else:
        n_tokens, held_out = planner.n_bytes / BYTES_PER_TOKEN, planner.config.data.val_fraction
        vocab_size = with_guessed_vocabulary(planner.config).model.vocab_size or 0
        config = planner.of_tokens(vocab_size, (1 - held_out) * n_tokens, held_out * n_tokens)
    findings.add("budget", f"{config.budget}. {'; '.join(planner.lines)}")
    return config


def _is_here(settings: DataConfig) -> bool:
    """Whether the text can be read now: it is neither a pipe, nor fetched, nor endless."""
    return "-" not in settings.sources and not settings.streaming and not _fetched(settings)


def _fetched(settings: DataConfig) -> list[str]:
    return [name for name in (*settings.sources, *settings.val_sources) if name.startswith(FETCHED)]


def _compile_line(config: Config, trainer: L.Trainer | None, compiled: str | None) -> str:
    if config.compile is not None or trainer is None:
        return f"this run {'compiles' if config.compile else 'does not compile'}"
    from minigpt.training.compile_cache import CompileCache

    is_warm = CompileCache(config, trainer, compiled).is_warm
    choice = choose(config, trainer.strategy.root_device, is_warm=is_warm)
    return f"this run {'compiles' if choice.compiles else 'does not compile'}: {choice.reason}"


def _with_paths(config: Config, resume: Path) -> Config:
    """The config with the paths that the resumed run would use."""
    from minigpt.training.resuming import with_paths_of

    return with_paths_of(config, newest_checkpoint(RunFolder(resume))[1])


def _gpus() -> str:
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{each.name} with {each.total_memory / 1e9:.0f} GB" for each in properties)
    return "Apple GPU" if torch.backends.mps.is_available() else "no GPU"


def _wandb_address() -> str:
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)


def _wandb_line(config: Config, answers: Any) -> str:
    from minigpt.training.dashboards.wandb import has_key

    if "wandb" not in config.trainer.loggers:
        return f"not used: trainer.logger={config.trainer.logger}"
    reached = f"{answers.host or 'its service'} {'answers' if answers else 'does not answer'}"
    key = has_key(f"https://{answers.host}")
    later = "offline; the `wandb sync` command is printed at its end"
    mode = os.environ.get("WANDB_MODE") or ("online" if key and answers else later)
    return f"{reached}; {'logged in' if key else 'not logged in'}: the run is logged {mode}"


def _text(config: Config, temporary: Path, hub: bool, findings: Findings) -> PreparedData | None:
    """The prepared data; None if the text is not prepared yet and too long to prepare here."""
    settings = config.data
    names = ", ".join(settings.sources)
    missing = [name for name in _fetched(settings) if not is_kept(name, Path(settings.dir))]
    for name in missing:
        _require_source(name, hub)
    if not _is_here(settings):
        findings.add("text", f"{names}: not checked{', since it is read when the run starts' if missing else ''}")
        if settings.tokenizer in TIKTOKEN_NAMES:
            require_tables(settings.tokenizer)
        return None
    data, n_bytes = find_prepared(settings)
    if data is None and settings.tokenizer in TIKTOKEN_NAMES:
        require_tables(settings.tokenizer)
    elif data is None and n_bytes < SHORT_BYTES:
        data = prepare(dataclasses.replace(settings, dir=str(temporary)), quiet=True)
        findings.add("text", f"{names}, not prepared yet: {data.train} to train on, {data.val} held out")
        return data
    later = f"{n_bytes / 1e6:,.1f} MB, not prepared yet: the run prepares it first"
    findings.add("text", f"{names}: {later if data is None else f'{data.train} to train on'}")
    return data


def _require_source(name: str, hub: bool) -> None:
    """Refuse a source that must be fetched but cannot be.

    Raises:
        UserError: the source or its host does not answer.
    """
    if name.startswith("hf:") and hub:
        path, _, _ = parse_name(name)
        with contextlib.suppress(OSError, RuntimeError):  # any network error; only a missing dataset counts
            require_dataset(name, path)
    elif name.startswith("hf:") or not machine.Asking(lambda: name):
        raise UserError(
            f"data.source={name}: no answer, and there is no cached copy; without network, use files on this machine"
        )


def _filled_in(config: Config, data: PreparedData | None, findings: Findings) -> Config:
    """The config with a vocab_size, guessed from the tokenizer's name if there is no prepared text."""
    from minigpt.training.run import filled_in

    known = data and findings.check(filled_in, config, data)
    return known or with_guessed_vocabulary(config)


def with_guessed_vocabulary(config: Config) -> Config:
    """The config with a vocab_size where it has none, by the tokenizer's name alone."""
    name = config.data.tokenizer
    sizes = {"bytes": 257, "chars": 100, "gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019}
    guess = config.model.vocab_size or sizes.get(name) or int(name.removeprefix("bpe:") if "bpe:" in name else 50257)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=guess, end_of_text=0))


def _start(
    config: Config, data: PreparedData, trainer: L.Trainer | None, resume: Path | None, findings: Findings
) -> None:
    """The checks of a run before its first step that write nothing."""
    from minigpt.training.loaders import make_loaders
    from minigpt.training.resuming import begun_before, check_resume, check_text
    from minigpt.training.run import make_callbacks
    from minigpt.training.stopping import StopSignals

    if resume == Path(AUTO):
        resume, done = begun_before(config)
        if done:
            findings.add("run", done)
            return
    folder, seen = RunFolder(resume or Path(config.runs_dir) / config.name), 0
    if resume is not None:
        _, content = newest_checkpoint(folder)
        check_text(content, folder, data)
        check_resume(config, content, folder)
        seen = content[CHECKPOINT_KEY]["micro_batches"]
    make_callbacks(config, folder, data, StopSignals())
    if trainer is not None:
        make_loaders(config, data, trainer, seen)


def _plan(
    config: Config,
    data: PreparedData | None,
    trainer: L.Trainer | None,
    flops: float,
    disk: int | None,
    findings: Findings,
) -> None:
    """Estimate the run's disk, memory and time."""
    model = on_meta(config.model)
    need = memory(config, trainer.precision if trainer else "32-true")
    weights, state = need.weights, need.optimizer + need.average
    findings.add("model", f"{model.n_parameters:,} parameters")
    kept = (config.keep_every_n_steps and config.trainer.max_steps // config.keep_every_n_steps) or 0
    needed = 3 * (weights + state) + (2 + kept) * weights  # a new file is written before the old one is deleted
    findings.add("files", f"{(weights + state) / 1e6:,.0f} MB a checkpoint, {needed / 1e6:,.0f} MB of disk for the run")
    if disk is not None and needed > disk:
        findings.failures.append(
            f"runs_dir={config.runs_dir}: {needed / 1e9:.1f} GB of checkpoints do not fit in {disk / 1e9:.1f} GB of "
            "free disk: free space, give another folder, or keep fewer with keep_every_n_steps"
        )
    p, B, T = config.trainer, config.data.batch_size, config.model.context_length
    processes = trainer.world_size if trainer else 1
    n_tokens = B * T * p.accumulate_grad_batches * processes
    seen = n_tokens * p.max_steps
    epochs = f": {seen / len(data.train.tokens):.2f} epochs" if data else ""
    findings.add("tokens", f"{n_tokens:,} a step, {seen:,} in {p.max_steps:,} steps{epochs}")
    if trainer is None:
        return
    device = trainer.strategy.root_device
    here = processes if device.type == "cpu" else 1  # processes that share this memory
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.memory()[0]
    fixed = weights + need.gradients + state
    parts = f"weights {weights / 1e6:,.0f}, gradients {need.gradients / 1e6:,.0f}, optimizer {state / 1e6:,.0f}"
    measured = None
    smaller = (
        "try a smaller data.batch_size with more trainer.accumulate_grad_batches, a shorter model.context_length, or a "
        "smaller model"
    )
    if here * fixed < free:
        try:
            measured = measure(config, trainer, flops)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            findings.failures.append(f"memory: {device} has too little for a trial step: {smaller}")
        else:
            parts += f", activations of a micro-batch {measured.activation_bytes / 1e6:,.0f}"
    total = here * (fixed + (measured.activation_bytes if measured else 0))
    findings.add(
        "memory", f"{total / 1e9:.2f} GB besides {here * 0.4:.1f} for the program{'s' * (here > 1)} (MB: {parts})"
    )
    if total > free:
        findings.failures.append(
            f"memory: about {total / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free on {device}: {smaller}"
        )
    if measured is not None:
        findings.add("time", _time(config, data, processes, measured))


def _time(config: Config, data: PreparedData | None, processes: int, measured: StepTimes) -> str:
    """Estimated time of training and validation, as text; samples and attention maps are a small part."""
    p = config.trainer
    step = p.accumulate_grad_batches * measured.micro_batch_seconds + measured.update_seconds
    seconds, interval = p.max_steps * step, p.val_check_interval
    if data is not None:
        n_batches = p.max_steps * p.accumulate_grad_batches
        validations = n_batches // interval + 1 if isinstance(interval, int) else 1 / (interval or 1)
        rows = len(data.val.tokens) / config.model.context_length / config.data.batch_size / processes
        seconds += validations * rows * measured.micro_batch_seconds / 3  # forward alone is a third
    part = "measured" if measured.share == 1 else f"measured on {100 * measured.share:.2g} % of a micro-batch"
    limit = p.max_time_seconds
    within = ""
    if limit:
        enough = "all" if limit >= seconds else f"about {limit / seconds:.0%}"
        within = f"; trainer.max_time={p.max_time} is enough for {enough} of them"
    return f"{duration(seconds)} for {p.max_steps:,} steps with validation, {step:.3g} s a step ({part}){within}"
