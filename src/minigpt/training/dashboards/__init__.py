"""Sends metrics, images, pages and tables to the run's loggers. The run's own files are written elsewhere.

Each logger is a Lightning Logger, named in the config or built from its class_path. It gets the config, every metric
with its step, and its end, as from Lightning's own loop.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
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
from minigpt.training.class_path import find_class, instantiate, one_line
from minigpt.training.dashboards import wandb

NAMED: dict[str, dict[str, Any]] = {
    "wandb": {"class_path": "lightning.pytorch.loggers.WandbLogger"},
    "tensorboard": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"name": "tensorboard", "version": ""},
    },
}
"""The names allowed in `trainer.logger`, and the classes they stand for."""


def check_loggers(config: Config) -> None:
    """Check trainer.logger before the text is prepared.

    Raises:
        UserError: a logger is not installed, is not a Lightning Logger, or has log_model set.
    """
    for value in config.trainer.loggers:
        if value == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            raise UserError("trainer.logger=tensorboard: not installed; pip install 'minigpt[tensorboard]'")
        if isinstance(value, dict):
            found = find_class(value)
            if isinstance(found, type) and not issubclass(found, Logger):
                raise _not_a_logger(value)
            if value.get("init_args", {}).get("log_model"):
                raise UserError(
                    "trainer.logger: log_model: checkpoints are not uploaded during training; remove it, and upload "
                    f"them with: wandb artifact put {config.runs_dir}/{config.name}/checkpoints"
                )


def make_loggers(config: Config, folder: RunFolder) -> list[Logger]:
    """Build the loggers of `trainer.logger` and log the config to each.

    A resumed run continues its earlier W&B run or TensorBoard folder.

    Raises:
        UserError: a logger cannot be built or refuses the config.
    """
    identities = _read_identities(folder)
    loggers: list[Logger] = []
    for value in config.trainer.loggers:
        if value == "wandb" and importlib.util.find_spec("wandb") is None:
            warnings.warn("wandb is not installed, so the run is logged to files only", stacklevel=2)
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
    with contextlib.suppress(TypeError, ValueError):  # a class without an inspectable signature
        parameters = inspect.signature(found).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    def make(arguments: Mapping[str, Any]) -> Any:
        """Build the logger. Arguments that the user did not give are dropped if the class does not take them."""
        taken = {k: v for k, v in arguments.items() if k in given or k in parameters or takes_any}
        return instantiate(value | {"init_args": taken})

    if isinstance(found, type) and issubclass(found, WandbLogger):
        return wandb.make_logger(make, given, earlier, folder)
    needs_folder = "save_dir" in parameters and parameters["save_dir"].default is inspect.Parameter.empty
    logger = make(earlier | ({"save_dir": folder.path} if needs_folder else {}) | given)
    if not isinstance(logger, Logger):
        raise _not_a_logger(value)
    return logger


def _not_a_logger(value: Mapping[str, Any]) -> UserError:
    return UserError(f"trainer.logger: class_path={value['class_path']}: is not a Lightning Logger")


def _identity(logger: Logger) -> dict[str, dict[str, Any]]:
    """The logger's class name and the arguments with which a resumed run continues in the same place."""
    arguments: dict[str, Any] = {}
    if isinstance(logger, WandbLogger):
        arguments = wandb.identity(logger)
    elif isinstance(logger, TensorBoardLogger):
        arguments = {"version": logger.version}
    return {type(logger).__name__: arguments} if arguments else {}


def _read_identities(folder: RunFolder) -> dict[str, dict[str, Any]]:
    try:
        identities = json.loads(folder.loggers.read_text(encoding="utf-8"))
        return {name: dict(arguments) for name, arguments in identities.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # no file yet, or damaged: start a new dashboard run
        return {}


def _log_config(logger: Logger, config: Config) -> None:
    settings = config.to_dict()
    if isinstance(logger, WandbLogger):
        settings = wandb.config_for(logger, settings)
    elif isinstance(logger, TensorBoardLogger):
        # Lightning does not overwrite an existing file, so a resumed run's changed settings would be missing.
        Path(logger.log_dir, logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
    try:
        with wandb.unharmed(logger):
            logger.log_hyperparams(settings)
            logger.save()
    except Exception as error:  # a class outside minigpt can raise anything
        raise UserError(f"trainer.logger: {type(logger).__name__} cannot log the config ({one_line(error)})") from error


def finish_dashboards(loggers: Sequence[Logger] = (), exit_code: Any = 0) -> str | None:
    """Close the W&B run that training opened; returns where each logger's results are, a line for each, or None.

    Args:
        loggers: the run's.
        exit_code: the program's; anything but 0 and None marks the run as failed.
    """
    lines = [wandb.finish(exit_code if isinstance(exit_code, int) else int(exit_code is not None))]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            lines.append(wandb.how_to_see(logger))
        elif isinstance(logger, TensorBoardLogger):
            lines.append(tool("tensorboard", "--logdir", Path(logger.log_dir)))
        else:
            lines.append(logger.log_dir)
    return ("\n" + " " * 13).join(line for line in lines if line) or None


def log_scalars(loggers: Sequence[Logger], metrics: Mapping[str, float], step: int) -> None:
    """Log numbers to every logger."""
    for logger in loggers:
        with wandb.unharmed(logger):
            logger.log_metrics(dict(metrics), step=step)
            logger.save()  # as Lightning does; without it, a CSVLogger writes only at the end


def log_image(loggers: Sequence[Logger], key: str, image: np.ndarray, step: int) -> None:
    """Log a (height, width, 3) uint8 image to W&B and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            wandb.log_media(logger, key, lambda wandb: wandb.Image(image), step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, image, step, dataformats="HWC")


def log_page(loggers: Sequence[Logger], key: str, html: str, step: int) -> None:
    """Log a self-contained HTML page to W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            # inject=True would link a style sheet from the network.
            wandb.log_media(logger, key, lambda wandb: wandb.Html(html, inject=False), step)


def log_table(
    loggers: Sequence[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Log a table to W&B, and to TensorBoard as Markdown.

    If a cell has several lines, as samples do, each row becomes a Markdown block.
    """
    data = [list(row) for row in rows]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            wandb.log_media(logger, key, lambda wandb: wandb.Table(columns=list(columns), data=data), step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, _markdown(columns, rows), step)


def alert(loggers: Sequence[Logger], title: str, text: str, *, warn: bool) -> None:
    """Send an alert to W&B, which mails it or posts it to Slack as the user has set; other loggers have none."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            wandb.alert(logger, title, text, warn=warn)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|")

    if not any("\n" in str(value) for row in rows for value in row):
        return table(columns, [[cell(value) for value in row] for row in rows])
    blocks = []
    for row in rows:
        label, text = " ".join(map(str, row[:-1])), str(row[-1])
        blocks += [label, "\n".join("    " + line for line in text.splitlines())]  # a Markdown code block
    return "\n\n".join(blocks)
