"""Metrics, pictures, pages and tables -> whichever dashboard the run logs to. Files are written elsewhere, always.

W&B must never ask, hang or fail a run: it is online where the user is logged in, otherwise offline (`wandb sync`
sends it later), and offline as well when the service does not answer. When the service goes away later, W&B keeps what
it cannot send in the run's folder, and the user is told at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import netrc
import os
import secrets
import signal
import sys
import threading
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from minigpt.config import Config, UserError
from minigpt.markdown import table
from minigpt.run_folder import RunFolder
from minigpt.training.stopping import handled_by, not_to_children

CONNECT_SECONDS = 8
"""How long W&B's service may take to answer before the run goes on offline; WANDB_INIT_TIMEOUT says otherwise."""

FINISH_SECONDS = 30
"""How long the last of a run may take to reach W&B's service; WANDB_FINISH_TIMEOUT says otherwise."""

END_SECONDS = 10
"""How long W&B's own process, which is on this machine, may take to end."""


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
    # Whatever a logging service has to complain of (network, key, version) is no reason not to train.
    try:
        arguments, mode = _prepare_wandb(config, folder)
    except Exception as error:
        warnings.warn(f"W&B cannot log ({_reason(error)}), so the run is logged to files alone", stacklevel=2)
        return None
    import wandb

    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return WandbLogger(experiment=wandb.init(mode=attempt, **arguments))
        except Exception as error:
            warnings.warn(f"W&B cannot log {attempt} ({_reason(error)})", stacklevel=2)
            _end_process(wandb)  # it would not give the run's id a second time
        except (KeyboardInterrupt, SystemExit):
            _end_process(wandb, interrupted=True)
            raise
    return None


def _prepare_wandb(config: Config, folder: RunFolder) -> tuple[dict[str, Any], Any]:
    """The arguments of wandb.init, and its mode; sets up what W&B reads from the environment."""
    # Staging and caches belong to the run, not to a home folder that may be read-only or on a slow disk.
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        os.environ.setdefault(variable, str((folder.path / "wandb" / ".local").absolute()))
    # The reports that W&B makes of its own errors go to the same service, and hold up the end while that hangs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Silent before it looks for a key: else it asks for one where WANDB_MODE is online and nobody has logged in.
    with not_to_children(signal.SIGUSR1):  # which SLURM sends to all there are: W&B is to live until the run has ended
        wandb.setup(settings=wandb.Settings(silent=True))
    _messages.forget()
    wandb.termsetup(wandb.Settings(silent=True), _messages)
    limits = {"init_timeout": CONNECT_SECONDS, "finish_timeout": FINISH_SECONDS}
    limits = {name: limit for name, limit in limits.items() if f"WANDB_{name.upper()}" not in os.environ}
    # A resumed run is the same run for W&B: its id stands at the end of the folder that its first part left.
    earlier = next((p.name.rsplit("-", 1)[-1] for p in (folder.path / "wandb").glob("*run-*-*")), None)
    arguments = {
        "project": "minigpt",
        "name": folder.path.name,
        "dir": folder.path,
        "config": config.to_dict(),
        "id": earlier or secrets.token_hex(4),
        "resume": "allow",
        "settings": wandb.Settings(silent=True, finish_timeout_raises=True, **limits),
    }
    return arguments, os.environ.get("WANDB_MODE") or ("online" if _logged_in(wandb) else "offline")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class _Messages:
    """Where W&B's messages go: warnings to the user, who is told at the end if some of the run was not sent."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A new run begins."""
        self.incomplete = False

    def info(self, message: str) -> None:
        """Whose key it uses and where it runs is no news."""

    def warning(self, message: str) -> None:
        # Where the service refuses the run, or was away for long, W&B gives up sending it and says so only here.
        self.incomplete |= "wandb sync" in message
        print(message, file=sys.stderr, flush=True)

    error = warning


_messages = _Messages()


def _logged_in(wandb: Any) -> bool:
    """Whether credentials are there, without asking for any."""
    settings = wandb.setup().settings
    return bool(getattr(settings, "api_key", None)) or has_key(settings.base_url)


def has_key(address: str) -> bool:
    """Whether the environment or the user's netrc has credentials for W&B's service at an address."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(address).hostname or ""
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
    run, folder = wandb.run, _short(Path(wandb.run.dir).parent)
    url = "" if run.offline else run.url  # asking an offline run for it prints a warning
    words = "W&B is sending the rest; Ctrl-C stops waiting, and nothing is lost"
    notice = threading.Timer(3, print, (words,), {"file": sys.stderr})
    notice.start()
    interrupted = False
    try:
        # A program that a signal ends while W&B waits would take W&B along before the last rows are in its file.
        with handled_by(signal.default_int_handler):
            wandb.finish()
    except TimeoutError:
        _messages.incomplete = True
    except KeyboardInterrupt:
        _messages.incomplete = interrupted = True
    except Exception as error:
        _messages.incomplete = True
        warnings.warn(f"W&B did not close properly ({_reason(error)})", stacklevel=2)
    finally:
        notice.cancel()
    _end_process(wandb, interrupted)
    if run.offline:
        return f"wandb sync {folder}"
    if _messages.incomplete:
        # Without the option, it passes over a run that was meant to be sent at once.
        return f"W&B did not receive everything; send it with: wandb sync --include-online {folder}"
    return url or None  # WANDB_MODE=disabled has none


def _end_process(wandb: Any, interrupted: bool = False) -> None:
    """End W&B's own process now, where its complaints can be caught; at the program's end they are tracebacks.

    W&B waits for it without limit, so it does that in another thread; a process that is left behind ends with ours.
    """

    def end() -> None:
        if interrupted:
            # It answers what was broken off. If nobody listens any more by then, it does not hear that it is to end
            # (0.31), and leaves the last rows unwritten. The answer takes some milliseconds.
            time.sleep(1)
        with contextlib.suppress(Exception, SystemExit):  # W&B exits with the code of its process if that died
            wandb.teardown()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(END_SECONDS)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextlib.contextmanager
def _unharmed(logger: Logger) -> Iterator[None]:
    """What W&B cannot take, as when its own process has died, is told once and stops no training."""
    try:
        yield
    except Exception as error:
        if not isinstance(logger, WandbLogger):
            raise
        if not _messages.incomplete:
            warnings.warn(f"W&B does not take what is logged ({_reason(error)}); the run's folder has it", stacklevel=4)
        _messages.incomplete = True


def log_scalars(loggers: Sequence[Logger], metrics: Mapping[str, float], step: int) -> None:
    """Numbers, to every logger."""
    for logger in loggers:
        with _unharmed(logger):
            logger.log_metrics(dict(metrics), step=step)


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
