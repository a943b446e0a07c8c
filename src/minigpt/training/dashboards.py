"""Metrics, pictures, pages and tables -> whichever dashboard the run logs to. Files are written elsewhere, always.

W&B must never ask, hang or fail a run: it is online where the user is logged in, otherwise offline (`wandb sync`
sends it later), and offline as well when the service does not answer.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
import sys
import urllib.parse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from minigpt.config import Config, UserError
from minigpt.markdown import table
from minigpt.run_folder import RunFolder

CONNECT_SECONDS = 8
"""How long W&B's service may take to answer before the run goes on offline."""


def make_logger(config: Config, folder: RunFolder) -> Logger | None:
    """The logger that `trainer.logger` names, or None when files alone are wanted.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """
    match config.trainer.logger:
        case "wandb" | True:
            return _wandb_logger(config, folder)
        case "tensorboard":
            if importlib.util.find_spec("tensorboard") is None:
                raise UserError("trainer.logger=tensorboard: not installed; pip install 'minigpt[tensorboard]'")
            return TensorBoardLogger(folder.path, name="tensorboard", version="")
        case _:
            return None


def _wandb_logger(config: Config, folder: RunFolder) -> Logger | None:
    if importlib.util.find_spec("wandb") is None:
        warnings.warn("wandb is not installed, so the run is logged to files alone", stacklevel=2)
        return None
    # Staging and caches belong to the run, not to a home folder that may be read-only or on a slow disk.
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        if variable not in os.environ:
            os.environ[variable] = str((folder.path / "wandb" / ".local").absolute())
    import wandb

    arguments: dict[str, Any] = {
        "project": "minigpt",
        "name": folder.path.name,
        "dir": folder.path,
        "config": config.to_dict(),
        # A resumed run is the same run for W&B: its id stands at the end of the folder that its first part left.
        "id": next((p.name.rsplit("-", 1)[-1] for p in (folder.path / "wandb").glob("*run-*-*")), None),
        "resume": "allow",
        "settings": wandb.Settings(silent=True, init_timeout=CONNECT_SECONDS, finish_timeout=30),
    }
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in(wandb) else "offline")
    # Whatever a logging service has to complain of (network, key, version) is no reason not to train.
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return WandbLogger(experiment=wandb.init(mode=attempt, **arguments))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"W&B cannot log {attempt} ({reason})", stacklevel=2)
    return None


def _logged_in(wandb: Any) -> bool:
    """Whether credentials are there, without asking for any."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup().settings
    if getattr(settings, "api_key", None):
        return True
    host = urllib.parse.urlsplit(settings.base_url).hostname or ""
    try:
        file = os.environ.get("NETRC") or str(Path.home() / (".netrc" if os.name != "nt" else "_netrc"))
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def finish_wandb() -> str | None:
    """Close the W&B run, if one is open, in bounded time; returns what the user may want to know of it."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return None
    run = wandb.run
    offline, folder = run.offline, Path(run.dir).parent
    url = "" if offline else run.url  # asking an offline run for it prints a warning
    try:
        wandb.finish()
    except Exception as error:
        warnings.warn(
            f"W&B did not close properly ({type(error).__name__}); what was logged is in {folder}",
            stacklevel=2,
        )
        offline = True
    return f"wandb sync {_short(folder)}" if offline else str(url)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def log_scalars(loggers: Sequence[Logger], metrics: Mapping[str, float], step: int) -> None:
    """Numbers, to every logger."""
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=step)


def log_image(loggers: Sequence[Logger], key: str, image: np.ndarray, step: int) -> None:
    """An (H, W, 3) uint8 picture, to the loggers that show pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.log_metrics({key: wandb.Image(image)}, step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, image, step, dataformats="HWC")


def log_page(loggers: Sequence[Logger], key: str, html: str, step: int) -> None:
    """A self-contained HTML page, to the loggers that show pages."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

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
            logger.log_table(key, columns=list(columns), data=[list(row) for row in rows], step=step)
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
