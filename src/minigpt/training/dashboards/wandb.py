"""Opens a W&B run without prompting, failing or hanging, and finishes it in bounded time.

The run is online if the user is logged in and the service answers, else offline (`wandb sync` uploads it later). If the
service goes away later, W&B keeps unsent data in the run's folder, and the user is told at the end. A W&B run that the
user opened is used, and stays open.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from minigpt.command_line import tool
from minigpt.environment import without_collecting
from minigpt.pages.wandb_run import STEP
from minigpt.runs.folder import RunFolder
from minigpt.signals import SIGNALS, handled_by, not_to_children
from minigpt.training.class_path import one_line

CONNECT_SECONDS = 8
"""Time limit for W&B's service to answer, after which the run is offline; WANDB_INIT_TIMEOUT overrides it."""

FINISH_SECONDS = 30
"""Time limit for the last upload when the run ends; WANDB_FINISH_TIMEOUT overrides it."""

END_SECONDS = 10
"""Time limit for W&B's local service process to exit."""

SENT = ".wandb.synced"
"""Suffix of the file by which W&B marks an uploaded part of a run."""

OWN_KEYS = ("train/*", "val/*", "attn/*", "perf/*", "samples", "samples/*", "learning_rate", "grad_norm")
"""The keys that minigpt logs, as globs for W&B."""

_environment: dict[str, str | None] = {}
"""Values, before the run, of the environment variables that this module sets."""

_opened: Any = None
"""The W&B run that training opened; None if the user opened it, who then finishes it."""


def make_logger(
    make: Callable[[dict[str, Any]], WandbLogger],
    given: Mapping[str, Any],
    earlier: Mapping[str, Any],
    folder: RunFolder,
) -> WandbLogger | None:
    """Lightning's logger with its W&B run open, or None if W&B cannot log even offline.

    Args:
        make: builds the logger from arguments; a UserError of it is passed on.
        given: the arguments in the config.
        earlier: the arguments with which a resumed run continues its W&B run, see `identity`.
        folder: where W&B's files go, unless the config or WANDB_DIR names another folder.
    """
    global _opened
    _messages.incomplete = False
    if getattr(sys.modules.get("wandb"), "run", None) is not None:  # the user's
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a wandb run already in progress")
            logger = make(dict(given))
            # Lightning plots all keys of a run that it opens against the step; of the user's run, only minigpt's.
            logger.experiment.define_metric(STEP)
            for key in OWN_KEYS:
                logger.experiment.define_metric(key, step_metric=STEP, step_sync=True)
        return logger
    # No error of a logging service (network, key, version) may prevent training.
    try:
        arguments, mode = _prepare(given, earlier, folder)
    except Exception as error:
        warnings.warn(f"W&B cannot log ({one_line(error)[:300]}), so the run is logged to files only", stacklevel=2)
        return None
    import wandb

    for attempt in dict.fromkeys((mode, "offline")):
        logger = make(arguments | {"mode": attempt})
        try:
            _opened = logger.experiment  # with the step as the x-axis
            return logger
        except Exception as error:
            warnings.warn(f"W&B cannot log {attempt} ({one_line(error)[:300]})", stacklevel=2)
            _end_process(wandb)  # the process would refuse a second run of the same id
        except (KeyboardInterrupt, SystemExit):
            _end_process(wandb, interrupted=True)
            raise
    _restore_environment()
    return None


def _prepare(
    given: Mapping[str, Any], earlier: Mapping[str, Any], folder: RunFolder
) -> tuple[dict[str, Any], str | None]:
    """The logger's arguments and W&B's mode; also sets W&B's environment variables.

    The config takes precedence over W&B's environment variables and settings files, and those over the defaults.
    """
    # Keep staging and caches in the run's folder: a home folder may be read-only or on a slow disk.
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        _set_environment(variable, str((folder.path / "wandb" / ".local").absolute()))
    # W&B sends reports of its own errors to the same service; if that hangs, they delay the run's end.
    _set_environment("WANDB_ERROR_REPORTING", "false")
    with without_collecting():
        import wandb

    # Silent before W&B looks for a key: otherwise it prompts for one if WANDB_MODE is online without a login.
    # Its process must outlive the run, so it ignores signals sent to all processes by SLURM or a closing terminal.
    with not_to_children(*set(SIGNALS) - {signal.SIGINT, signal.SIGTERM}):
        wandb.setup(settings=wandb.Settings(silent=True))
    wandb.termsetup(wandb.Settings(silent=True), _messages)
    known = wandb.setup().settings
    limits = {"init_timeout": CONNECT_SECONDS, "finish_timeout": FINISH_SECONDS}
    limits = {name: limit for name, limit in limits.items() if f"WANDB_{name.upper()}" not in os.environ}
    defaults = {
        "project": known.project or earlier.get("project") or "minigpt",
        "entity": known.entity or earlier.get("entity"),
        "name": known.run_name or earlier.get("name") or folder.path.name,
        "resume": known.resume or "allow",
    }
    if not {"id", "version"} & set(given):
        # Runs of earlier minigpt versions have their id only in the name of the first part's log.
        logs = (folder.path / "wandb").glob("*run-*/run-*.wandb")
        found = earlier.get("id") or next((log.stem.removeprefix("run-") for log in logs), None)
        defaults["id"] = known.run_id or found or secrets.token_hex(4)
    if not {"save_dir", "dir"} & set(given):
        defaults["save_dir"] = None if "WANDB_DIR" in os.environ else folder.path
    elif "dir" in given:
        defaults["save_dir"] = None  # Lightning's default would override `dir`
    settings = {"silent": True, "finish_timeout_raises": True, **limits, **dict(given.get("settings") or {})}
    mode = "offline" if given.get("offline") else given.get("mode") or os.environ.get("WANDB_MODE")
    _environment.setdefault("WANDB_MODE", os.environ.get("WANDB_MODE"))  # Lightning sets it if offline is given
    return (
        defaults | dict(given) | {"settings": wandb.Settings(**settings)},
        mode or ("online" if known.api_key or has_key(known.base_url) else "offline"),
    )


def _set_environment(variable: str, value: str) -> None:
    if variable not in os.environ:
        _environment[variable] = None
        os.environ[variable] = value


def _restore_environment() -> None:
    """Restore the user's environment, since another run of this process has another folder."""
    for variable, value in _environment.items():
        os.environ.pop(variable, None)
        if value is not None:
            os.environ[variable] = value
    _environment.clear()


def identity(logger: WandbLogger) -> dict[str, Any]:
    """The arguments with which a resumed run continues its W&B run; empty if W&B is disabled."""
    run = logger.experiment
    if run.disabled:
        return {}
    return {name: value for name in ("id", "project", "entity", "name") if (value := getattr(run, name))}


def config_for(logger: WandbLogger, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config to log; keys that the user's own W&B run has set already move under "minigpt"."""
    run = logger.experiment
    taken = set() if run is _opened else {key for key in config if key in run.config}
    ours = {key: value for key, value in config.items() if key not in taken}
    return ours | ({"minigpt": {key: config[key] for key in taken}} if taken else {})


class _Messages:
    """Receives W&B's messages: prints warnings and notes whether part of the run was not uploaded."""

    incomplete = False

    def info(self, message: str) -> None:
        """Drop information messages, such as the account and the run's address."""

    def warning(self, message: str) -> None:
        if "anonymous setting has no effect" in message:  # Lightning's logger always sets it
            return
        # If the service refuses the run or stays away too long, W&B gives up and reports it only in this message.
        self.incomplete |= "wandb sync" in message
        print(message, file=sys.stderr, flush=True)

    error = warning


_messages = _Messages()


@contextlib.contextmanager
def unharmed(logger: Logger) -> Iterator[None]:
    """Errors of W&B, for example if its process has died, become one warning instead of ending training.

    The end of the run says how to upload the rest.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(logger, WandbLogger):
            raise
        if not _messages.incomplete:
            warnings.warn(f"W&B cannot log ({one_line(error)[:300]}); the run's folder has everything", stacklevel=4)
        _messages.incomplete = True


def log_media(logger: WandbLogger, key: str, make: Callable[[Any], Any], step: int) -> None:
    """Log what `make` builds from the module wandb, such as a table."""
    import wandb

    with unharmed(logger):
        media = make(wandb)
        if isinstance(media, wandb.Table):
            # Unless a table is bound to the run, W&B also makes an artifact of it and asks its service about it in this
            # thread: without an answer, training would hang for minutes and then fail.
            media.bind_to_run(logger.experiment, key, step)
        logger.log_metrics({key: media}, step=step)


def alert(logger: WandbLogger, title: str, text: str, *, warn: bool) -> None:
    """Send an alert; W&B refuses titles of more than 64 characters."""
    with unharmed(logger):
        logger.experiment.alert(title=title[:64], text=text, level="WARN" if warn else "INFO")


def has_key(address: str) -> bool:
    """Whether the environment or the user's netrc has credentials for the W&B service at an address."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    from requests.utils import get_netrc_auth

    return get_netrc_auth(address) is not None


def finish(exit_code: int = 0) -> str | None:
    """Finish the W&B run that training opened, if any, in bounded time.

    Args:
        exit_code: 0 if the run is done; any other marks it as failed in W&B.

    Returns:
        The run's address, or the command that uploads what W&B has not received; None if there is neither.
    """
    global _opened
    if _opened is None:
        return None
    import wandb

    run, _opened = _opened, None
    folder, url = Path(run.dir).parent, _url(run)
    words = "W&B is sending the rest; Ctrl-C stops waiting, and nothing is lost"
    notice = threading.Timer(3, print, (words,), {"file": sys.stderr})
    notice.start()
    interrupted = False
    try:
        # If a signal ended this program while W&B waits, W&B's process would die before writing the last rows.
        with handled_by(signal.default_int_handler):
            run.finish(exit_code=exit_code)
    except TimeoutError:
        _messages.incomplete = True
    except KeyboardInterrupt:
        _messages.incomplete = interrupted = True
    except Exception as error:
        _messages.incomplete = True
        warnings.warn(f"W&B did not close properly ({one_line(error)[:300]})", stacklevel=2)
    finally:
        notice.cancel()
    _end_process(wandb, interrupted)
    _restore_environment()
    if run.disabled:
        return None
    if url and not _messages.incomplete:
        _mark_sent(folder)
    unsent = unsent_parts(folder.parent, run.id)
    if not unsent:
        return url
    command = sync_command(unsent)
    if _messages.incomplete:
        return f"W&B did not receive everything; send it with: {command}"
    return f"{url}, without earlier parts of the run; send them with: {command}" if url else command


def _url(run: Any) -> str | None:
    return None if run.offline or run.disabled else run.url  # an offline run's url prints a warning


def how_to_see(logger: WandbLogger) -> str | None:
    """Address of a W&B run that the user opened, or how to upload it; None if training opened and finished it."""
    run, wandb = logger.experiment, sys.modules.get("wandb")
    if wandb is None or run is not wandb.run or run.disabled:
        return None
    return _url(run) or f"{sync_command([Path(run.dir).parent])}  # once you have called wandb.finish()"


def _mark_sent(folder: Path) -> None:
    """Create the file by which `wandb sync` recognises uploaded runs; W&B does not create it for online runs."""
    with contextlib.suppress(OSError):
        for log in folder.glob("*.wandb"):
            log.with_suffix(SENT).touch()


def unsent_parts(wandb_dir: Path, run_id: str) -> list[Path]:
    """W&B's folders of a run that are not uploaded; each resume makes another folder.

    Matched by the log's name: if two parts start in the same second, the folder's name has a suffix.
    """
    logs = wandb_dir.glob(f"*run-*/run-{glob.escape(run_id)}.wandb")
    parts = [log.parent for log in logs if not log.with_suffix(SENT).exists()]
    return sorted(parts, key=lambda part: part.name.removeprefix("offline-"))


def sync_command(parts: Sequence[Path]) -> str:
    """The command line that uploads parts of a run."""
    wandb_dir = parts[0].parent
    logs = {log.name for part in parts for log in part.glob("*.wandb")}
    alone = {log.name for log in wandb_dir.glob("*run-*/*.wandb")} <= logs
    # Without the option, `wandb sync` skips parts that were online.
    option = [] if all(part.name.startswith("offline-") for part in parts) else ["--include-online"]
    return tool("wandb", "sync", *option, *map(_short, [wandb_dir] if alone else parts))


def _end_process(wandb: Any, interrupted: bool = False) -> None:
    """End W&B's service process now, so that its errors can be caught; at the program's exit they print tracebacks.

    W&B waits for the process without limit, hence the thread. A process that does not end in time ends with this one.
    """

    def end() -> None:
        if interrupted:
            # The process still answers the interrupted request, within milliseconds. If the connection is closed by
            # then, it misses the request to end (wandb 0.31) and does not write the last rows.
            time.sleep(1)
        with contextlib.suppress(Exception, SystemExit):  # W&B exits with the code of its process if that died
            wandb.teardown()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(END_SECONDS)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
