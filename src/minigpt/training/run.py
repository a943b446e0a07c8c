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
from minigpt.training.callbacks import AttentionMaps, Metrics, Samples, seconds_of_training
from minigpt.training.checkpoints import AtomicCheckpointIO, Checkpoints, refuse_shards
from minigpt.training.class_path import build, find_class
from minigpt.training.dashboards import check_loggers, finish_dashboards, make_loggers
from minigpt.training.distributed import FSDP2, end_started
from minigpt.training.launchers import check_processes, devices_of, find_launcher
from minigpt.training.lightning_compat import DummyLogger, is_rank_zero, is_started_by_lightning
from minigpt.training.loaders import make_loaders
from minigpt.training.machine import free_disk
from minigpt.training.module import TrainingModule
from minigpt.training.progress import ProgressBar
from minigpt.training.resuming import Reached, begun_before, check_resume, check_text, existing, go_on, with_paths_of
from minigpt.training.stopping import SECONDS_TO_EXIT, StopSignals, requeue
from minigpt.training.threads import choose_threads, denormals_as_zero
from minigpt.training.user_callbacks import check_callbacks, explained, save_beside


def train(config: Config, resume: str | Path | None = None) -> RunFolder:
    """Prepare the text, train, and write all results to a run folder.

    Args:
        config: the run; model.vocab_size and sampling.prompts are filled in from the text.
        resume: continue this run folder instead of making a new one. "auto" continues the newest run of the config's
            name that has a checkpoint, or starts a new one, so the same command can be repeated; if that run is done,
            it only prints so.

    Returns:
        The run's folder.

    Raises:
        UserError: a setting, text or checkpoint that cannot work; before training starts where possible.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"config={config!r}: expected a Config, such as minigpt.cli.parsing.parse_training returns for a recipe"
        )
    resume = None if resume is None else RunFolder(resume).path
    with denormals_as_zero(), StopSignals().listening() as stop, contextlib.ExitStack() as held:
        return _train(config, resume, stop, held)


def _train(config: Config, resume: Path | None, stop: StopSignals, held: contextlib.ExitStack) -> RunFolder:
    """`train` inside its signal handlers; `held` releases the run's lock at the end."""
    quieten()
    check_before_text(config)
    # Only rank 0 creates, reads and writes the run's folder.
    is_main = is_rank_zero()
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
            print(f"resuming {resume} from step {steps}" + "".join(f"\n  now {each}" for each in changes), flush=True)
    before = content.get(CHECKPOINT_KEY, {})
    choose_threads(before.get("n_threads"))
    content.clear()  # frees memory: Lightning reads the file itself
    if resume is not None:
        folder = RunFolder(resume)
    elif is_main:
        folder = RunFolder.create(Path(config.runs_dir), config.name)
        held.enter_context(folder.occupied())
    else:
        folder = RunFolder(Path(config.runs_dir) / config.name)
    try:
        callbacks = make_callbacks(config, folder, data, stop)
        trainer = make_trainer(config, folder, callbacks)
        anomalies = next(callback for callback in callbacks if isinstance(callback, Anomalies))
        module = TrainingModule(config, data, anomalies.before_skip)
        loaders = make_loaders(config, data, trainer, before.get("micro_batches", 0))
    except (UserError, SystemExit):
        finish_dashboards(exit_code=1)
        if resume is None and is_main:
            shutil.rmtree(folder.path)  # a run that never started leaves no folder
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
    """Train, and end all processes that Lightning started; returns the dashboards' closing lines."""
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
            end.code = 0  # Lightning kills rank 0 if another rank exits with an error while rank 0 is still ending
        raise
    except UserError:
        if is_started_by_lightning(trainer):
            time.sleep(SECONDS_TO_EXIT)  # for the same reason: rank 0 prints the error and ends this process
        end_started(trainer, seconds=0)
        raise
    except Exception as error:
        module.data.check_unchanged()  # changed tokens can fail in any way: report the cause
        own = [each for each in trainer.callbacks if not type(each).__module__.startswith("minigpt.")]  # type: ignore[attr-defined]
        if (one_line := explained(error, own, begun=module.has_trained)) is not None:
            raise one_line from error
        raise
    finally:
        dashboard = finish_dashboards(trainer.loggers, exit_code)
        end_started(trainer, seconds=SECONDS_TO_EXIT)
    return dashboard


def _say_stopped(code: Any, trainer: L.Trainer, module: TrainingModule, folder: RunFolder) -> None:
    """Print the command that resumes a run which a signal has stopped."""
    if not trainer.is_global_zero or code not in {128 + number for number in SIGNALS}:
        return
    saved = f"stopped and saved; to resume: {go_on(folder, module.run_config, Reached.of_trainer(trainer))}"
    print(f"\n{saved if folder.last.exists() else 'stopped before anything was saved'}", flush=True)
    again = requeue() if code == 128 + signal.SIGUSR1 else None
    for line in (again, (dashboard := finish_dashboards(trainer.loggers, code)) and f"dashboard: {dashboard}"):
        if line:
            print(line, flush=True)


def check_before_text(config: Config) -> L.Trainer:
    """Check everything that does not need the text, since preparing it may take hours. Writes nothing.

    Returns:
        A trainer without logger and without minigpt's callbacks: device, precision and world size on this machine.

    Raises:
        UserError: runs_dir is not writable, or Lightning refuses a setting.
    """
    runs_dir = Path(config.runs_dir)
    free_disk(runs_dir, "runs_dir")
    check_loggers(config)  # a logger is built later, since it needs the run's folder
    check_callbacks([find_class(value) for value in config.trainer.callbacks or []], config.trainer)
    silent = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, logger=False))
    trainer = make_trainer(silent, RunFolder(runs_dir / config.name), [])
    if "-" in config.data.sources and trainer.world_size > 1:
        raise UserError(
            f"data.source=-: only one process can read stdin, and this run has {trainer.world_size}: "
            "save the text to a file"
        )
    return trainer


def make_callbacks(config: Config, folder: RunFolder, data: PreparedData, stop: StopSignals) -> list[L.Callback]:
    """The run's own callbacks: anomalies, metrics, samples, attention maps, checkpoints, progress bar.

    Args:
        config: the run.
        folder: where the callbacks write.
        data: the prepared text, for prompts, probes and the tokenizer.
        stop: signals that `Checkpoints` acts on.

    Raises:
        UserError: the tokenizer or the context length cannot hold a prompt or a probe text.
    """
    callbacks: list[L.Callback] = [Anomalies(folder, config), Metrics(folder, config), Samples(folder, config, data)]
    if config.attention.enabled:
        callbacks.append(AttentionMaps(folder, config, data))
    if config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run:
        callbacks.append(Checkpoints(folder, config, stop))
    if config.trainer.enable_progress_bar is not False and sys.stdout.isatty():
        callbacks.insert(0, ProgressBar())  # first, so that it clears its validation bar before the others print
    return callbacks


def make_trainer(config: Config, folder: RunFolder, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer from the config. Only settings that differ from Lightning's defaults are passed to it.

    Raises:
        UserError: Lightning refuses a setting, or a class_path cannot be built.
    """
    lightning_defaults = _lightning_defaults()
    given = {f.name: getattr(config.trainer, f.name) for f in dataclasses.fields(TrainerConfig)}
    settings = {name: build(value) for name, value in given.items() if name != "logger"}
    users_callbacks = settings["callbacks"] or []
    for made, value in zip(users_callbacks, config.trainer.callbacks or [], strict=True):
        if not isinstance(made, L.Callback):
            raise UserError(f"trainer.callbacks: class_path={value['class_path']}: is not a Lightning Callback")
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
        # Lightning refuses an interval beyond the last batch; here it means one validation, at the end.
        "val_check_interval": min(interval, n_batches) if isinstance(interval, int) else interval,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "overfit_batches": 0.0,  # the loaders repeat the batches, so that a run stays one epoch
        "max_epochs": 1,  # else, if the batches run out, Lightning loops over empty epochs for ever
        "min_epochs": 0,  # else min_steps makes Lightning finish an epoch, which is the whole run
    }
    settings["logger"] = False
    if config.trainer.loggers and not config.trainer.fast_dev_run:
        # Only rank 0 logs, but Lightning's monitors require a logger on every rank.
        settings["logger"] = (make_loggers(config, folder) if is_rank_zero() else [DummyLogger()]) or False
    changed = {k: v for k, v in settings.items() if k in lightning_defaults and v != lightning_defaults[k]}
    try:
        trainer = L.Trainer(**changed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"{_culprits(given, str(error))}: {' '.join(str(error).split())}") from error
    if launcher is not None:
        check_processes(trainer, launcher)
    if trainer.precision == "64-true" and trainer.strategy.root_device.type == "mps":
        raise UserError("trainer.precision=64-true: Apple GPUs have no float64; use 32-true or trainer.accelerator=cpu")
    refuse_shards(trainer)
    return trainer


def _culprits(given: dict[str, Any], complaint: str) -> str:
    """The settings that an error of Lightning names; if none, all device settings that differ from the defaults."""
    about = ("accelerator", "devices", "strategy", "precision", "num_nodes", "profiler", "plugins", "callbacks")
    changed = {name: value for name, value in given.items() if value != _our_default(name)}
    named = [name for name, value in changed.items() if name in complaint.lower() or f"'{value}'" in complaint]
    shown = named or [name for name in about if name in changed]
    return ", ".join(f"trainer.{name}={changed[name]}" for name in shown) or "trainer"


def best_precision() -> str:
    """bf16-mixed on a GPU with native bfloat16, else 32-true: CPUs without bfloat16 units emulate it slowly."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(False) else "32-true"


def _lightning_defaults() -> dict[str, Any]:
    parameters = inspect.signature(L.Trainer.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self"}


def _our_default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(TrainerConfig) if f.name == name)


def filled_in(config: Config, data: PreparedData) -> Config:
    """The config with vocab_size, end_of_text and prompts filled in from the text where they are unset.

    Raises:
        UserError: model.vocab_size is smaller than the tokenizer's.
    """
    needed, given = data.tokenizer.vocab_size, config.model.vocab_size
    if given is not None and given < needed:
        raise UserError(f"model.vocab_size={given}: the tokenizer has {needed} tokens; remove the setting")
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
    """Silence Lightning's advice against settings that are deliberate here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for asked_for in ("callbacks", "profilers"):  # the user configured these for their printed tables
        logging.getLogger(f"lightning.pytorch.{asked_for}").setLevel(logging.INFO)
    for pattern in (
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # a resume prints its changes itself
        ".*treespec.*",
        ".*`isinstance\\(.*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", pattern)


def _shares(batches: Dataset[Any]) -> list[Share]:
    """The share of tokens and the epochs of each source; empty if there is only one source."""
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
        source = f"{config.data.sources[0]}: streamed; tokenizer and held-out text are from its beginning"
    mixture = "".join(
        f"        {100 * part.share:.1f} % from {part.name}, {part.epochs:.2f} epochs\n" for part in shares
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
    """--prompt with the run's first prompt; empty if it is not printable: `sample.py` then takes it from the run."""
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
        ("resume", folder.last, go_on(folder, module.run_config, Reached.of_trainer(module.trainer))),
    ]
    for name, needed, text in rows:
        if needed is not None and needed.exists():
            print(f"  {name:<11}{text}")
