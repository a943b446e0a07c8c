"""Metrics, pictures, pages and tables -> whichever loggers the run has. Files are written elsewhere, always.

Each logger is one of Lightning's, whether the config names it or gives its class: it gets the config, every metric with
its step, and its end, as Lightning's own training would give them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from minigpt.command_line import tool
from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.files import write_text
from minigpt.markdown import table
from minigpt.runs.folder import RunFolder
from minigpt.training import wandb_service
from minigpt.training.class_path import build, find_class

NAMED: dict[str, dict[str, Any]] = {
    "wandb": {"class_path": "lightning.pytorch.loggers.WandbLogger"},
    "tensorboard": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"name": "tensorboard", "version": ""},
    },
}
"""What the names in `trainer.logger` stand for."""


def check_loggers(config: Config) -> None:
    """Find out before the text is prepared which logger cannot be made.

    Raises:
        UserError: its class is not there, or it is asked for what is not done here.
    """
    for value in config.trainer.loggers:
        if value == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            raise UserError("trainer.logger=tensorboard: not installed; pip install 'minigpt[tensorboard]'")
        if isinstance(value, dict):
            found = find_class(value)
            if isinstance(found, type) and not issubclass(found, Logger):
                raise UserError(f"trainer.logger: class_path={value['class_path']}: is no logger of Lightning's")
            if value.get("init_args", {}).get("log_model"):
                raise UserError(
                    "trainer.logger: log_model: checkpoints are not sent while training; "
                    f"send them with: wandb artifact put {config.runs_dir}/{config.name}/checkpoints"
                )


def make_loggers(config: Config, folder: RunFolder) -> list[Logger]:
    """The loggers that `trainer.logger` names, with the config; none when files alone are wanted.

    A resumed run goes on in the run of the dashboard that it had, where that can be asked for.

    Raises:
        UserError: one cannot be made.
    """
    identities = _read_identities(folder)
    loggers: list[Logger] = []
    for value in config.trainer.loggers:
        if value == "wandb" and importlib.util.find_spec("wandb") is None:
            warnings.warn("wandb is not installed, so the run is logged to files alone", stacklevel=2)
            continue
        logger = _make_logger(NAMED[value] if isinstance(value, str) else value, identities, folder)
        if logger is not None:
            _log_config(logger, config)
            loggers.append(logger)
            identities |= _identity(logger)
    if loggers and identities:
        write_text(folder.loggers, json.dumps(identities, indent=2) + "\n")
    return loggers


def _make_logger(value: dict[str, Any], identities: Mapping[str, dict[str, Any]], folder: RunFolder) -> Logger | None:
    found, given = find_class(value), value.get("init_args", {})
    earlier = identities.get(found.__name__, {})

    parameters: Mapping[str, inspect.Parameter] = {}
    with contextlib.suppress(TypeError, ValueError):  # a class that does not say what it takes
        parameters = inspect.signature(found).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    def make(arguments: Mapping[str, Any]) -> Any:
        """Build it, without those of our arguments that it does not take."""
        taken = {k: v for k, v in arguments.items() if k in given or k in parameters or takes_any}
        return build(value | {"init_args": taken})

    if isinstance(found, type) and issubclass(found, WandbLogger):
        return wandb_service.make_wandb_logger(make, given, earlier, folder)
    needs_folder = "save_dir" in parameters and parameters["save_dir"].default is inspect.Parameter.empty
    logger = make(earlier | ({"save_dir": folder.path} if needs_folder else {}) | given)
    if not isinstance(logger, Logger):
        raise UserError(f"trainer.logger: class_path={value['class_path']}: is no logger of Lightning's")
    return logger


def _identity(logger: Logger) -> dict[str, dict[str, Any]]:
    """By class, the arguments with which a resumed run goes on where this logger writes."""
    arguments: dict[str, Any] = {}
    if isinstance(logger, WandbLogger):
        arguments = wandb_service.identity(logger)
    elif isinstance(logger, TensorBoardLogger):
        arguments = {"version": logger.version}
    return {type(logger).__name__: arguments} if arguments else {}


def _read_identities(folder: RunFolder) -> dict[str, dict[str, Any]]:
    try:
        identities = json.loads(folder.loggers.read_text(encoding="utf-8"))
        return {name: dict(arguments) for name, arguments in identities.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: then it is a new run there
        return {}


def _log_config(logger: Logger, config: Config) -> None:
    settings = config.to_dict()
    if isinstance(logger, WandbLogger):
        settings = wandb_service.config_for(logger, settings)
    elif isinstance(logger, TensorBoardLogger):
        # Lightning keeps the file that is there, also when a resumed run has other settings.
        Path(logger.log_dir, logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
    try:
        with _unharmed(logger):
            logger.log_hyperparams(settings)
            logger.save()
    except Exception as error:  # somebody else's class
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"trainer.logger: {type(logger).__name__} does not take the config ({why})") from error


def finish_dashboards(loggers: Sequence[Logger] = (), exit_code: Any = 0) -> str | None:
    """Close what training has opened; returns what the user may want to know of it, a line for each logger.

    Args:
        loggers: the run's.
        exit_code: that of the program; anything but 0 and None says that the run is not done.
    """
    lines = [wandb_service.finish_wandb(exit_code if isinstance(exit_code, int) else int(exit_code is not None))]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            lines.append(wandb_service.how_to_see(logger))
        elif isinstance(logger, TensorBoardLogger):
            lines.append(tool("tensorboard", "--logdir", Path(logger.log_dir)))
        else:
            lines.append(logger.log_dir)
    return ("\n" + " " * 13).join(line for line in lines if line) or None


@contextlib.contextmanager
def _unharmed(logger: Logger) -> Iterator[None]:
    """What W&B cannot take, as when its own process has died, is told once and stops no training."""
    try:
        yield
    except Exception as error:
        if not isinstance(logger, WandbLogger):
            raise
        wandb_service.note_loss(error)


def log_scalars(loggers: Sequence[Logger], metrics: Mapping[str, float], step: int) -> None:
    """Numbers, to every logger."""
    for logger in loggers:
        with _unharmed(logger):
            logger.log_metrics(dict(metrics), step=step)
            logger.save()  # as Lightning does; a CSVLogger would else write only at the end


def log_image(loggers: Sequence[Logger], key: str, image: np.ndarray, step: int) -> None:
    """An (H, W, 3) uint8 picture, to the loggers that show pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            with _unharmed(logger):
                logger.log_metrics({key: wandb.Image(image)}, step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, image, step, dataformats="HWC")


def log_page(loggers: Sequence[Logger], key: str, html: str, step: int) -> None:
    """A self-contained HTML page, to the loggers that show pages."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            with _unharmed(logger):
                # inject=True would add a link to a style sheet on the network.
                logger.log_metrics({key: wandb.Html(html, inject=False)}, step=step)


def log_table(
    loggers: Sequence[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """A table of values and texts, to the loggers that show tables or texts.

    TensorBoard gets it as Markdown; where cells have lines of their own, as samples have, each row as a block.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            with _unharmed(logger):
                sent = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
                # A table that is no file of the run yet becomes an artifact as well, about which W&B asks the service
                # at once, in this thread: without an answer, training waits for minutes and then ends in an error.
                sent.bind_to_run(logger.experiment, key, step)
                logger.log_metrics({key: sent}, step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, _markdown(columns, rows), step)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|")

    if not any("\n" in str(value) for row in rows for value in row):
        return table(columns, [[cell(value) for value in row] for row in rows])
    blocks = []
    for row in rows:
        label, text = " ".join(map(str, row[:-1])), str(row[-1])
        blocks += [label, "\n".join("    " + line for line in text.splitlines())]  # shown as it is
    return "\n\n".join(blocks)
