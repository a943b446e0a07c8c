"""A config -> a trained model in a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import math
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import Dataset

from minigpt.command_line import command
from minigpt.config import AUTO, Config, TrainerConfig
from minigpt.data.batches import Share, TrainBatches
from minigpt.data.prepare import open_data
from minigpt.data.shards import PreparedData
from minigpt.data.sources.stdin import keep_stdin
from minigpt.data.tokenizers.base import save_tokenizer
from minigpt.data.val_prompts import val_prompts
from minigpt.errors import UserError
from minigpt.files import shown, write_text
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, newest_checkpoint
from minigpt.signals import SIGNALS
from minigpt.training.anomalies import Anomalies
from minigpt.training.averaging import Averaging
from minigpt.training.callbacks import AttentionMaps, Metrics, Samples, seconds_of_training
from minigpt.training.checkpoints import AtomicCheckpointIO, Checkpoints, refuse_shards
from minigpt.training.class_path import build, find_class
from minigpt.training.dashboards import check_loggers, finish_dashboards, make_loggers
from minigpt.training.launchers import check_processes, devices_of, find_launcher
from minigpt.training.loaders import make_loaders
from minigpt.training.machine import free_disk
from minigpt.training.module import TrainingModule
from minigpt.training.processes import end_started, is_started_by_lightning
from minigpt.training.progress import ProgressBar
from minigpt.training.resuming import Reached, begun_before, check_resume, check_text, existing, go_on, with_paths_of
from minigpt.training.sharding import FSDP2
from minigpt.training.stopping import SECONDS_TO_EXIT, StopSignals, requeue
from minigpt.training.threads import choose_threads, denormals_as_zero
from minigpt.training.user_callbacks import check_callbacks, explained, save_beside


def train(config: Config, resume: str | Path | None = None) -> RunFolder:
    """Prepare the text, train, and leave everything in a run folder.

    Args:
        config: the run; model.vocab_size and sampling.prompts are filled in from the text.
        resume: continue this run folder instead of making a new one; "auto": the newest of the config's name that has
            saved something, if there is one, so that the same command can be started again and again; where that one
            is done, nothing happens but a line that says so.

    Returns:
        The run's folder.

    Raises:
        UserError: anything of the user's that cannot work, before training starts where possible.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"config={config!r}: expected a Config, as minigpt.cli.parsing.parse_training makes one of a recipe"
        )
    resume = None if resume is None else RunFolder(resume).path
    with denormals_as_zero(), StopSignals().listening() as stop, contextlib.ExitStack() as held:
        return _train(config, resume, stop, held)


def _train(config: Config, resume: Path | None, stop: StopSignals, held: contextlib.ExitStack) -> RunFolder:
    """`train`, with what is given back at the end, however that comes."""
    quieten()
    check_before_text(config)
    # Of several processes, the first makes the folder; the others read and write nothing in it.
    is_main = _is_main_process()
    config = dataclasses.replace(config, data=keep_stdin(config.data))
    checkpoint, content = None, dict[str, Any]()
    if resume == Path(AUTO):
        resume, done = begun_before(config)
        if resume is not None and done:
            if is_main:
                print(done, flush=True)
            return RunFolder(resume)
    if resume is not None:
        if is_main:
            held.enter_context(existing(resume).occupied())
        checkpoint, content = newest_checkpoint(RunFolder(resume), quiet=not is_main)
        config = with_paths_of(config, content)
    data = open_data(config.data)
    if resume is not None:
        check_text(content, RunFolder(resume), data)
    config = filled_in(config, data)
    if resume is not None:
        changes = check_resume(config, content, RunFolder(resume))
        if is_main:
            steps = content["global_step"]
            print(
                f"going on with {resume} from step {steps}" + "".join(f"\n  now {each}" for each in changes), flush=True
            )
    before = content.get(CHECKPOINT_KEY, {})
    choose_threads(before.get("n_threads"))
    content.clear()  # Lightning reads it again
    if resume is not None:
        folder = RunFolder(resume)
    elif is_main:
        folder = RunFolder.create(Path(config.runs_dir), config.name)
        held.enter_context(folder.occupied())
    else:
        folder = RunFolder(Path(config.runs_dir) / config.name)
    try:
        trainer = make_trainer(config, folder, make_callbacks(config, folder, data, stop))
        module = TrainingModule(config, data)
        loaders = make_loaders(config, data, trainer, before.get("micro_batches", 0))
    except (UserError, SystemExit):
        finish_dashboards(exit_code=1)
        if resume is None and is_main:
            shutil.rmtree(folder.path)  # a run that never began leaves no folder
        raise
    if is_main:
        _write_config(folder, config)
        if resume is None:
            save_tokenizer(data.tokenizer, folder.tokenizer)
        _announce(config, data, _shares(loaders[0].dataset), module, trainer, folder)
    try:
        dashboard = _fit(trainer, module, loaders, checkpoint, folder)
    except Exception:
        if resume is None and is_main and not module.has_trained:
            shutil.rmtree(folder.path)
        raise
    if is_main:
        _summarise(folder, module, dashboard)
    return folder


def _fit(
    trainer: L.Trainer, module: TrainingModule, loaders: tuple[Any, Any], checkpoint: Path | None, folder: RunFolder
) -> str | None:
    """Train, and leave no process behind, however it ends; returns what the dashboard has to say."""
    exit_code: Any = 1
    try:
        bar = trainer.progress_bar_callback
        with bar.below_what_is_printed() if isinstance(bar, ProgressBar) else contextlib.nullcontext():
            trainer.fit(module, *loaders, ckpt_path=checkpoint)
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code
        _say_stopped(end.code, trainer, module, folder)
        if is_started_by_lightning(trainer):
            end.code = 0  # Lightning kills the process of rank 0, should another fail while that one ends
        raise
    except UserError:
        if is_started_by_lightning(trainer):
            time.sleep(SECONDS_TO_EXIT)  # for the same reason; and rank 0, if it knows, says it and ends this process
        end_started(trainer, seconds=0)
        raise
    except Exception as error:
        module.data.check_unchanged()  # other tokens than were prepared make a step fail in their own ways
        own = [each for each in trainer.callbacks if not type(each).__module__.startswith("minigpt.")]  # type: ignore[attr-defined]
        if (one_line := explained(error, own, begun=module.has_trained)) is not None:
            raise one_line from error
        raise
    finally:
        dashboard = finish_dashboards(trainer.loggers, exit_code)
        end_started(trainer, seconds=SECONDS_TO_EXIT)
    return dashboard


def _say_stopped(code: Any, trainer: L.Trainer, module: TrainingModule, folder: RunFolder) -> None:
    """How to go on, where a signal has ended the run with what it has saved."""
    if not trainer.is_global_zero or code not in {128 + number for number in SIGNALS}:
        return
    saved = f"stopped and saved; to go on: {go_on(folder, module.run_config, Reached.of_trainer(trainer))}"
    print(f"\n{saved if folder.last.exists() else 'stopped before anything was saved'}", flush=True)
    again = requeue() if code == 128 + signal.SIGUSR1 else None
    for line in (again, (dashboard := finish_dashboards(trainer.loggers, code)) and f"dashboard: {dashboard}"):
        if line:
            print(line, flush=True)


def check_before_text(config: Config) -> L.Trainer:
    """Find out what cannot work here before the text is prepared, which may take hours; nothing is written.

    Returns:
        A trainer without logger and callbacks of ours, for who asks what the config comes to on this machine.

    Raises:
        UserError: runs_dir cannot be written, or Lightning refuses a setting.
    """
    runs_dir = Path(config.runs_dir)
    free_disk(runs_dir, "runs_dir")
    check_loggers(config)  # which are made only once there is a folder for them
    check_callbacks([find_class(value) for value in config.trainer.callbacks or []], config.trainer)
    silent = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, logger=False))
    trainer = make_trainer(silent, RunFolder(runs_dir / config.name), [])
    if "-" in config.data.sources and trainer.world_size > 1:
        raise UserError(
            f"data.source=-: only one process can read what is piped in, and there are {trainer.world_size}: "
            "keep it in a file"
        )
    return trainer


def make_callbacks(config: Config, folder: RunFolder, data: PreparedData, stop: StopSignals) -> list[L.Callback]:
    """What the config wants to happen beside training, until `stop`.

    Raises:
        UserError: a prompt or a probe text that the model cannot read.
    """
    callbacks: list[L.Callback] = [Anomalies(folder, config), Metrics(folder, config), Samples(folder, config, data)]
    if config.attention.enabled:
        callbacks.append(AttentionMaps(folder, config, data))
    if config.optimizer.average_decay is not None:
        callbacks.append(Averaging(config.optimizer.average_decay))
    if config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run:
        callbacks.append(Checkpoints(folder, config, stop))
    if config.trainer.enable_progress_bar is not False and sys.stdout.isatty():
        callbacks.insert(0, ProgressBar())  # first, so that its validation bar is gone when the others print
    return callbacks


def make_trainer(config: Config, folder: RunFolder, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer from the config: what differs from Lightning's defaults is passed on by name.

    Raises:
        UserError: Lightning refuses a setting, or an object cannot be built.
    """
    lightning_defaults = _lightning_defaults()
    given = {f.name: getattr(config.trainer, f.name) for f in dataclasses.fields(TrainerConfig)}
    settings = {name: build(value) for name, value in given.items() if name != "logger"}
    users_callbacks = settings["callbacks"] or []
    for made, value in zip(users_callbacks, config.trainer.callbacks or [], strict=True):
        if not isinstance(made, L.Callback):
            raise UserError(f"trainer.callbacks: class_path={value['class_path']}: is no callback of Lightning's")
    save_beside(users_callbacks, folder)
    unknown = [name for name in given if name not in lightning_defaults and given[name] != _our_default(name)]
    if unknown:
        raise UserError(f"trainer.{unknown[0]}: the installed Lightning {L.__version__} has no such argument")
    n_batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    interval = settings["val_check_interval"]
    launcher = find_launcher(settings["plugins"] or [])
    if launcher is not None:
        settings["devices"] = devices_of(launcher, settings["devices"], settings["num_nodes"])
    settings |= {
        "callbacks": [*users_callbacks, *callbacks],
        "plugins": [AtomicCheckpointIO(), *(settings["plugins"] or [])],
        "strategy": FSDP2() if settings["strategy"] == "fsdp2" else settings["strategy"],
        "precision": best_precision() if settings["precision"] == "auto" else settings["precision"],
        "default_root_dir": settings["default_root_dir"] or folder.path,
        # An interval beyond the end means: at the end.
        "val_check_interval": min(interval, n_batches) if isinstance(interval, int) else interval,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "overfit_batches": 0.0,  # the loaders repeat the batches themselves, so that a run stays one epoch
        "max_epochs": 1,  # else Lightning goes on for ever with epochs of no batches, should they run out
        "min_epochs": 0,  # else Lightning takes min_steps for a whole epoch at least, which is all of the run
    }
    settings["logger"] = False
    if config.trainer.loggers and not config.trainer.fast_dev_run:
        # Rank 0 logs; Lightning's monitors ask for a logger on each rank.
        settings["logger"] = (make_loggers(config, folder) if _is_main_process() else [DummyLogger()]) or False
    changed = {k: v for k, v in settings.items() if k in lightning_defaults and v != lightning_defaults[k]}
    try:
        trainer = L.Trainer(**changed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"{_culprits(given, str(error))}: {' '.join(str(error).split())}") from error
    if launcher is not None:
        check_processes(trainer, launcher)
    if trainer.precision == "64-true" and trainer.strategy.root_device.type == "mps":
        raise UserError(
            "trainer.precision=64-true: Apple's GPUs have no float64; use 32-true or trainer.accelerator=cpu"
        )
    refuse_shards(trainer)
    return trainer


def _culprits(given: dict[str, Any], complaint: str) -> str:
    """The settings that Lightning complains of: those it names, else all about devices that are not the defaults."""
    about = ("accelerator", "devices", "strategy", "precision", "num_nodes", "profiler", "plugins", "callbacks")
    changed = {name: value for name, value in given.items() if value != _our_default(name)}
    named = [name for name, value in changed.items() if name in complaint.lower() or f"'{value}'" in complaint]
    shown = named or [name for name in about if name in changed]
    return ", ".join(f"trainer.{name}={changed[name]}" for name in shown) or "trainer"


def best_precision() -> str:
    """bfloat16 where a GPU computes in it natively; else float32, which a CPU without bfloat16 units prefers."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(False) else "32-true"


def _is_main_process() -> bool:
    """Whether this is the process of rank 0, known from the launcher before any group is formed."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _lightning_defaults() -> dict[str, Any]:
    parameters = inspect.signature(L.Trainer.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self"}


def _our_default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(TrainerConfig) if f.name == name)


def filled_in(config: Config, data: PreparedData) -> Config:
    """The config with what it leaves to the text: the vocabulary, and prompts.

    Raises:
        UserError: a vocabulary smaller than the tokenizer's.
    """
    needed, given = data.tokenizer.vocab_size, config.model.vocab_size
    if given is not None and given < needed:
        raise UserError(f"model.vocab_size={given}: the tokenizer has {needed} tokens; leave the setting out")
    filled: dict[str, Any] = {"vocab_size": given or needed}
    if config.model.document_mask and config.model.end_of_text is None:
        filled["end_of_text"] = data.tokenizer.end_of_text
    sampling = config.sampling
    if sampling.prompts is None:
        prompts = val_prompts(data, config.model.context_length, documents_only=config.data.mode == "examples")
        sampling = dataclasses.replace(sampling, prompts=prompts)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **filled), sampling=sampling)


def _write_config(folder: RunFolder, config: Config) -> None:
    write_text(folder.config, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))


def quieten() -> None:
    """Lightning's advice about things that are chosen on purpose here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for asked_for in ("callbacks", "profilers"):  # their tables and reports are what the user gave them for
        logging.getLogger(f"lightning.pytorch.{asked_for}").setLevel(logging.INFO)
    for pattern in (
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # a resume says what it changes
        ".*treespec.*",
        ".*`isinstance\\(.*LeafSpec.*",
        ".*WeightAveraging callback with a model that overrides.*",  # which only fsdp2 needs, and that refuses averages
    ):
        warnings.filterwarnings("ignore", pattern)


def _shares(batches: Dataset[Any]) -> list[Share]:
    """What a run takes from each source, where there are several."""
    if not isinstance(batches, TrainBatches) or len(batches.split.sources) == 1:
        return []
    return batches.shares(batches.n_batches * batches.batch_size)


def _announce(
    config: Config,
    data: PreparedData,
    shares: Sequence[Share],
    module: TrainingModule,
    trainer: L.Trainer,
    folder: RunFolder,
) -> None:
    p = config.trainer
    source = f"{', '.join(config.data.sources)}: {data.train} to train on"
    if config.data.streaming:
        source = f"{config.data.sources[0]}: streamed, the tokenizer and the held-out part from its beginning"
    mixture = "".join(
        f"        {100 * part.share:.1f} % from {part.name}, read through {part.epochs:.2f} times\n" for part in shares
    )
    until = f"{p.max_steps} steps" + (f" or {p.max_time}" if p.max_time else "")
    said = (
        f"text    {source}; {data.val} held out\n{mixture}"
        f"model   {module.model.n_parameters:,} parameters, {config.model.n_layer} layers of {config.model.n_head} "
        f"heads, {config.model.n_embd} wide, context {config.model.context_length}, "
        f"vocabulary {config.model.vocab_size}\n"
        f"train   {until} on {trainer.num_devices} {trainer.strategy.root_device.type}, {trainer.precision}, "
        f"{torch.get_num_threads()} threads -> {folder.path}"
    )
    print(shown(said), flush=True)


def _prompt_arguments(config: Config) -> list[str]:
    """The first prompt for a command line; none where it cannot be printed, as `sample.py` takes it by itself."""
    prompt = next(iter(config.sampling.prompts or []), "")
    if not prompt or not prompt.isprintable():
        return []
    return [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]


def _summarise(folder: RunFolder, module: TrainingModule, dashboard: str | None) -> None:
    val = f"val/loss {module.val_loss:.4f} = {module.val_bits_per_byte:.4f} bits per byte"
    print(
        f"\ndone: {module.trainer.global_step} steps, {seconds_of_training(module.trainer):.0f} s of training, "
        f"{val if math.isfinite(module.val_loss) else 'no validation'}"
    )
    samples = folder.samples(module.trainer.global_step)
    best = f"{folder.best} and last.ckpt; the best weights alone: {folder.weights}"
    rows = [
        (
            "attention",
            folder.attention_page,
            f"{folder.attention_page} (open it in a browser), {folder.attention_grid}",
        ),
        ("samples", samples, str(samples)),
        ("metrics", folder.metrics, str(folder.metrics)),
        ("checkpoint", folder.last, best if folder.best.exists() else str(folder.last)),
        ("dashboard", folder.path if dashboard else None, dashboard),
        ("write", folder.last, command("sample", folder.path, *_prompt_arguments(module.run_config))),
        ("go on", folder.last, go_on(folder, module.run_config, Reached.of_trainer(module.trainer))),
    ]
    for name, needed, text in rows:
        if needed is not None and needed.exists():
            print(f"  {name:<11}{text}")
