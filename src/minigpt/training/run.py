"""A config -> a trained model in a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import minigpt.training.lightning_import  # noqa: F401 (before anything imports Lightning, and slowly)
from minigpt.config import AUTO, Config
from minigpt.data.answers import prompt_form
from minigpt.data.open import open_data
from minigpt.data.shards import PreparedData
from minigpt.data.sources.stdin import keep_stdin
from minigpt.data.tokenizers.base import save_tokenizer
from minigpt.data.val_prompts import val_prompts
from minigpt.errors import UserError, is_out_of_memory
from minigpt.files import shown, write_text
from minigpt.model.compiling import restored_exactness
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, newest_checkpoint
from minigpt.training.anomalies import Anomalies
from minigpt.training.attention_maps import AttentionMaps
from minigpt.training.budget import Planner
from minigpt.training.callbacks import Metrics
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.class_path import find_class
from minigpt.training.compile_cache import VARIABLE, CompileCache, MarkCompiled
from minigpt.training.compile_choice import choose
from minigpt.training.console import announce, say_stopped, summarise
from minigpt.training.dashboards import check_loggers, finish_dashboards
from minigpt.training.diagnosis import Diagnosis
from minigpt.training.distributed import end_started
from minigpt.training.initial import check_tokenizer, taken_over
from minigpt.training.lightning_compat import is_rank_zero
from minigpt.training.loaders import make_loaders
from minigpt.training.lora import adapters_of
from minigpt.training.machine import free_disk
from minigpt.training.memorising import Memorising
from minigpt.training.module import TrainingModule
from minigpt.training.process import FreezeGarbage, allow_tf32
from minigpt.training.progress import ProgressBar, can_show
from minigpt.training.ranks import Alike, Watch
from minigpt.training.resuming import Reached, begun_before, check_resume, check_text, existing, go_on, with_paths_of
from minigpt.training.samples import Samples
from minigpt.training.stopping import SECONDS_TO_EXIT, StopSignals
from minigpt.training.threads import choose_threads, denormals_as_zero
from minigpt.training.trainer import make_trainer, quieten
from minigpt.training.user_callbacks import check_callbacks, explained

if TYPE_CHECKING:
    import lightning as L


def train(config: Config, resume: str | Path | None = None) -> RunFolder:
    """Prepare the text, train, and write all results to a run folder.

    Args:
        config: the run; model.vocab_size and sampling.prompts are filled in from the text.
        resume: continue this run folder instead of making a new one. "auto" continues the newest run of the config's
            name that has a checkpoint, or starts a new one, so the same command can be repeated; if that run is done,
            it only prints so.

    Raises:
        UserError: a setting, text or checkpoint that cannot work; before training starts where possible.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"config={config!r}: expected a Config, such as minigpt.cli.parsing.parse_training returns for a recipe"
        )
    resume = None if resume is None else RunFolder(resume).path
    with (
        denormals_as_zero(),
        restored_exactness(),
        StopSignals().listening() as stop,
        contextlib.ExitStack() as held,
    ):
        return _train(config, resume, stop, held)


def _train(config: Config, resume: Path | None, stop: StopSignals, held: contextlib.ExitStack) -> RunFolder:
    """`train` inside its signal handlers; `held` releases the run's lock at the end."""
    quieten()
    checked = check_before_text(config)
    held.enter_context(allow_tf32(checked.strategy.root_device, str(checked.precision)))  # before a budget measures
    is_main = is_rank_zero()  # only rank 0 creates, reads and writes the run's folder
    config = dataclasses.replace(config, data=keep_stdin(config.data))
    checkpoint, content = None, dict[str, Any]()
    is_auto = resume == Path(AUTO)
    config, initial = taken_over(config) if resume is None or is_auto else (config, None)
    if is_auto:
        resume, done = begun_before(config)
        if resume is not None and done:
            if is_main:
                print(done, flush=True)
            return RunFolder(resume)
    if resume is not None:
        if is_main:
            held.enter_context(existing(resume).lock())
        checkpoint, content = newest_checkpoint(RunFolder(resume), quiet=not is_main)
        if is_auto:
            config = config.as_planned_before(Config.from_dict(content[CHECKPOINT_KEY]["config"]))
        config = with_paths_of(config, content)
        if config.compile is None:  # compiled and uncompiled sums are rounded differently
            config = dataclasses.replace(config, compile=content[CHECKPOINT_KEY]["config"]["compile"])
    before = content.get(CHECKPOINT_KEY, {})
    choose_threads(before.get("n_threads"))  # before a budget measures with them
    config, planner = Planner.of(config, checked) if resume is None else (config, None)
    config = config if planner is None else planner.of_text()
    data = open_data(config.data)
    if planner is not None:
        config = planner.of_training(data)
    if resume is not None:
        initial = None  # its own checkpoint has its weights
    elif initial is not None:
        check_tokenizer(config, data)
    config = filled_in(config, data) if resume is None else _checked(config, content, RunFolder(resume), data)
    if planner is not None:
        print(shown(planner.report()), flush=True)
    cache = CompileCache(config, checked, os.environ.get(VARIABLE))
    if config.compile is None:
        choice = choose(config, checked.strategy.root_device, is_warm=cache.is_warm)
        if is_main:
            print(f"compile {choice}", flush=True)
        config = dataclasses.replace(config, compile=choice.compiles)
    if config.compile:
        held.enter_context(cache.used())
    began_at = content.get("global_step", 0)
    content.clear()  # frees memory: Lightning reads the file itself
    if resume is not None:
        folder = RunFolder(resume)
    elif is_main:
        folder = RunFolder.create(Path(config.runs_dir), config.name)
        held.enter_context(folder.lock())
    else:
        folder = RunFolder(Path(config.runs_dir) / config.name)
    is_new = resume is None and is_main  # then a run that never starts leaves no folder
    try:
        seen = before.get("micro_batches", 0)
        trainer, module, loaders = _put_together(config, data, folder, stop, seen, initial)
        garbage = FreezeGarbage()
        held.callback(garbage.undo)
        trainer.callbacks += [  # type: ignore[attr-defined]
            Alike(config, data, began_at),
            garbage,
            *([MarkCompiled(cache)] if config.compile else []),
        ]
    except (UserError, SystemExit):
        finish_dashboards(exit_code=1)
        if is_new:
            shutil.rmtree(folder.path)
        raise
    if is_main:
        write_text(folder.config, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))
        if is_new:
            save_tokenizer(data.tokenizer, folder.tokenizer)
        announce(trainer, module, loaders[0].dataset, folder)
    try:
        dashboard = _fit(trainer, module, loaders, checkpoint, folder)
    except Exception:
        if is_new and not module.has_trained:
            shutil.rmtree(folder.path)
        raise
    if is_main:
        summarise(trainer, module, folder, dashboard)
    return folder


def _checked(config: Config, content: dict[str, Any], folder: RunFolder, data: PreparedData) -> Config:
    """The filled-in config of a resumed run, which may not differ much from that of the checkpoint's content."""
    check_text(content, folder, data)
    config = filled_in(config, data)
    changes = check_resume(config, content, folder)
    if is_rank_zero():
        said = "".join(f"\n  now {each}" for each in changes)
        print(f"resuming {folder.path} from step {content['global_step']}{said}", flush=True)
    return config


def _put_together(
    config: Config, data: PreparedData, folder: RunFolder, stop: StopSignals, seen: int, initial: dict[str, Any] | None
) -> tuple[L.Trainer, TrainingModule, tuple[Any, Any]]:
    """Trainer, module and loaders; `seen` micro-batches were trained on before a resume; `initial`: weights."""
    callbacks = make_callbacks(config, folder, data, stop)
    trainer = make_trainer(config, folder, callbacks)
    anomalies = next(callback for callback in callbacks if isinstance(callback, Anomalies))
    saves = next((callback for callback in callbacks if isinstance(callback, Checkpoints)), None)
    requests: Callable[[], Sequence[bool]] = tuple if saves is None else saves.requests
    module = TrainingModule(config, data, anomalies.on_bad_step, initial, adapters_of(config), requests)
    return trainer, module, make_loaders(config, data, trainer, seen)


def _fit(
    trainer: L.Trainer, module: TrainingModule, loaders: tuple[Any, Any], checkpoint: Path | None, folder: RunFolder
) -> str | None:
    """Train, and end all processes that Lightning started; returns the dashboards' closing lines."""
    exit_code: Any = 1
    watch = Watch(trainer, lambda lost: _said(lost, trainer, module, folder))
    try:
        bar = trainer.progress_bar_callback
        below_bar = bar.below_what_is_printed() if isinstance(bar, ProgressBar) else contextlib.nullcontext()
        with below_bar, watch.watching():
            trainer.fit(module, *loaders, ckpt_path=checkpoint)
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code
        say_stopped(end.code, trainer, module.run_config, folder)
        if watch.parent is not None:
            end.code = 0  # else rank 0, while it is still ending, takes this process for a lost one
        raise
    except UserError:
        watch.wait_for_rank_zero()  # for the same reason
        end_started(trainer, seconds=0)
        raise
    except Exception as error:
        module.data.check_unchanged()  # changed tokens can fail in any way: report the cause
        if is_out_of_memory(error):
            raise _too_little_memory(error, module) from None
        own = [each for each in trainer.callbacks if not type(each).__module__.startswith("minigpt.")]  # type: ignore[attr-defined]
        if (one_line := explained(error, own, begun=module.has_trained)) is not None:
            raise one_line from error
        raise
    finally:
        dashboard = finish_dashboards(trainer.loggers, exit_code)
        end_started(trainer, seconds=SECONDS_TO_EXIT)
    return dashboard


def _too_little_memory(error: Exception, module: TrainingModule) -> UserError:
    """One line that says what to lower; frees what the failed step holds, for a notebook that goes on."""
    traceback.clear_frames(error.__traceback__)
    config = module.run_config
    return UserError(
        f"{module.device} has too little memory for step {module.global_step}: start a run with half of "
        f"data.batch_size={config.data.batch_size} and twice trainer.accumulate_grad_batches="
        f"{config.trainer.accumulate_grad_batches}, or with a lower model.context_length="
        f"{config.model.context_length}; `minigpt doctor` estimates the memory"
    )


def _said(lost: str, trainer: L.Trainer, module: TrainingModule, folder: RunFolder) -> str:
    """The message of a run whose process was lost, with the command that resumes it."""
    why = f"{lost}, so the run ends at step {trainer.global_step}; see above, or whether memory ran out"
    if not folder.last.exists():
        return f"{why}; nothing was saved"
    return f"{why}; to resume: {go_on(folder, module.run_config, Reached.of_trainer(trainer))}"


def check_before_text(config: Config) -> L.Trainer:
    """Check everything that does not need the text, since preparing it may take hours. Writes nothing.

    Returns:
        A trainer without logger and without minigpt's callbacks: device, precision and world size on this machine.

    Raises:
        UserError: runs_dir is not writable, peft is missing, or Lightning refuses a setting.
    """
    runs_dir = Path(config.runs_dir)
    free_disk(runs_dir, "runs_dir")
    adapters_of(config)
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
    """The run's own callbacks, from anomalies to checkpoints and the progress bar.

    Raises:
        UserError: the tokenizer or the context length cannot hold a prompt or a probe text.
    """
    anomalies, memorising = Anomalies(folder, config), Memorising(config)
    maps = AttentionMaps(folder, config, data) if config.attention.enabled else None
    callbacks = [anomalies, Metrics(folder, config), Samples(folder, config, data), memorising]
    callbacks += [maps] if maps is not None else []
    callbacks.append(Diagnosis(folder, config, anomalies, memorising, maps))
    if config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run:
        callbacks.append(Checkpoints(folder, config, stop))
    if config.trainer.enable_progress_bar is not False and can_show(sys.stdout):
        callbacks.insert(0, ProgressBar())  # first, so that it clears its validation bar before the others print
    return callbacks


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
        prompts = val_prompts(
            data,
            config.model.context_length,
            documents_only=config.data.mode == "examples",
            form=prompt_form(config.data),
        )
        sampling = dataclasses.replace(sampling, prompts=prompts)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **filled), sampling=sampling)
