"""W&B's run: opened without asking, failing or hanging, and finished in bounded time.

It is online where the user is logged in, otherwise offline (`wandb sync` sends it later), and offline as well when the
service does not answer. When the service goes away later, W&B keeps what it cannot send in the run's folder, and the
user is told at the end. A run that the user opened is logged to, and stays open.
"""

from __future__ import annotations

import contextlib
import glob
import netrc
import os
import secrets
import signal
import sys
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from minigpt.command_line import tool
from minigpt.runs.folder import RunFolder
from minigpt.signals import SIGNALS, handled_by, not_to_children

CONNECT_SECONDS = 8
"""How long W&B's service may take to answer before the run goes on offline; WANDB_INIT_TIMEOUT says otherwise."""

FINISH_SECONDS = 30
"""How long the last of a run may take to reach W&B's service; WANDB_FINISH_TIMEOUT says otherwise."""

END_SECONDS = 10
"""How long W&B's own process, which is on this machine, may take to end."""


SENT = ".wandb.synced"
"""What a part of a run is called in W&B's folder once it was sent."""

OWN_KEYS = ("train/*", "val/*", "attn/*", "perf/*", "samples", "learning_rate", "grad_norm")
"""What minigpt logs, as W&B's globs."""

STEP = "trainer/global_step"
"""Lightning's name for the optimizer step: W&B's own step counts the calls of `log`."""


_environment: dict[str, str | None] = {}
"""Environment variables that were set here for one run, as they were before."""

_opened: Any = None
"""The run that training has opened. One that the user opened is theirs to finish."""


def make_wandb_logger(
    make: Callable[[dict[str, Any]], WandbLogger],
    given: Mapping[str, Any],
    earlier: Mapping[str, Any],
    folder: RunFolder,
) -> WandbLogger | None:
    """Lightning's logger with its run open, or None where W&B cannot even log offline.

    Args:
        make: builds the logger from arguments.
        given: the arguments in the config.
        earlier: the arguments with which a resumed run goes on in the same run of W&B.
        folder: where W&B's files go, unless the user says otherwise.

    Raises:
        UserError: the logger does not take the arguments.
    """
    global _opened
    _messages.forget()
    if getattr(sys.modules.get("wandb"), "run", None) is not None:  # the user's
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a wandb run already in progress")
            logger = make(dict(given))
            _use_step(logger.experiment, OWN_KEYS)
        return logger
    # Whatever a logging service has to complain of (network, key, version) is no reason not to train.
    try:
        arguments, mode = _prepare(given, earlier, folder)
    except Exception as error:
        warnings.warn(f"W&B cannot log ({_reason(error)}), so the run is logged to files alone", stacklevel=2)
        return None
    import wandb

    for attempt in dict.fromkeys((mode, "offline")):
        logger = make(arguments | {"mode": attempt})
        try:
            _opened = logger.experiment  # with the step as the x-axis
            return logger
        except Exception as error:
            warnings.warn(f"W&B cannot log {attempt} ({_reason(error)})", stacklevel=2)
            _end_process(wandb)  # it would not give the run's id a second time
        except (KeyboardInterrupt, SystemExit):
            _end_process(wandb, interrupted=True)
            raise
    _restore_environment()
    return None


def _use_step(run: Any, keys: Sequence[str]) -> None:
    """Draw some keys over the optimizer step, as Lightning's logger does with all keys of a run that it opens."""
    run.define_metric(STEP)
    for key in keys:
        run.define_metric(key, step_metric=STEP, step_sync=True)


def _prepare(
    given: Mapping[str, Any], earlier: Mapping[str, Any], folder: RunFolder
) -> tuple[dict[str, Any], str | None]:
    """The logger's arguments, and W&B's mode; sets up what W&B reads from the environment.

    What the config gives comes first, then what W&B's environment variables and settings files say, then defaults.
    """
    # Staging and caches belong to the run, not to a home folder that may be read-only or on a slow disk.
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        _set_environment(variable, str((folder.path / "wandb" / ".local").absolute()))
    # The reports that W&B makes of its own errors go to the same service, and hold up the end while that hangs.
    _set_environment("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Silent before it looks for a key: else it asks for one where WANDB_MODE is online and nobody has logged in.
    # W&B is to live until the run has ended, whatever SLURM (SIGUSR1) or a closing terminal (SIGHUP) sends to all.
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
        # Runs of earlier versions have their id only in the name of the log that their first part left.
        logs = (folder.path / "wandb").glob("*run-*/run-*.wandb")
        found = earlier.get("id") or next((log.stem.removeprefix("run-") for log in logs), None)
        defaults["id"] = known.run_id or found or secrets.token_hex(4)
    if not {"save_dir", "dir"} & set(given):
        defaults["save_dir"] = None if "WANDB_DIR" in os.environ else folder.path
    elif "dir" in given:
        defaults["save_dir"] = None  # Lightning's default would come before it
    settings = {"silent": True, "finish_timeout_raises": True, **limits, **dict(given.get("settings") or {})}
    mode = "offline" if given.get("offline") else given.get("mode") or os.environ.get("WANDB_MODE")
    _environment.setdefault("WANDB_MODE", os.environ.get("WANDB_MODE"))  # which Lightning sets where offline is given
    return (
        defaults | dict(given) | {"settings": wandb.Settings(**settings)},
        mode or ("online" if _logged_in(wandb) else "offline"),
    )


def _set_environment(variable: str, value: str) -> None:
    if variable not in os.environ:
        _environment[variable] = None
        os.environ[variable] = value


def _restore_environment() -> None:
    """As the user had it: another run of this process has another folder."""
    for variable, value in _environment.items():
        os.environ.pop(variable, None)
        if value is not None:
            os.environ[variable] = value
    _environment.clear()


def identity(logger: WandbLogger) -> dict[str, Any]:
    """The arguments with which a resumed run goes on in the same run of W&B."""
    run = logger.experiment
    if run.disabled:
        return {}
    return {name: value for name in ("id", "project", "entity", "name") if (value := getattr(run, name))}


def config_for(logger: WandbLogger, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as W&B is to have it: what stands under the same names in the config of the user's run stays."""
    run = logger.experiment
    taken = set() if run is _opened else {key for key in config if key in run.config}
    ours = {key: value for key, value in config.items() if key not in taken}
    return ours | ({"minigpt": {key: config[key] for key in taken}} if taken else {})


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
        if "anonymous setting has no effect" in message:  # which Lightning's logger always gives
            return
        # Where the service refuses the run, or was away for long, W&B gives up sending it and says so only here.
        self.incomplete |= "wandb sync" in message
        print(message, file=sys.stderr, flush=True)

    error = warning


_messages = _Messages()


def note_loss(error: Exception) -> None:
    """W&B did not take something: the user is told once, and at the end how to send what it has."""
    if not _messages.incomplete:
        warnings.warn(f"W&B does not take what is logged ({_reason(error)}); the run's folder has it", stacklevel=5)
    _messages.incomplete = True


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


def finish_wandb(exit_code: int = 0) -> str | None:
    """Close the W&B run that training has opened, if any, in bounded time.

    Args:
        exit_code: 0 where the run is done; any other makes it a failed run for W&B.

    Returns:
        What the user may want to know of it: where it is, or how to send what W&B has not received.
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
        # A program that a signal ends while W&B waits would take W&B along before the last rows are in its file.
        with handled_by(signal.default_int_handler):
            run.finish(exit_code=exit_code)
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
    return None if run.offline or run.disabled else run.url  # asking an offline run for it prints a warning


def how_to_see(logger: WandbLogger) -> str | None:
    """Where the run is that the user opened, which stays open; None where it was opened and finished here."""
    run, wandb = logger.experiment, sys.modules.get("wandb")
    if wandb is None or run is not wandb.run or run.disabled:
        return None
    return _url(run) or f"{sync_command([Path(run.dir).parent])}  # once you have called wandb.finish()"


def _mark_sent(folder: Path) -> None:
    """Leave the file by which `wandb sync` knows what it has sent; it cannot tell of a run that was online."""
    with contextlib.suppress(OSError):
        for log in folder.glob("*.wandb"):
            log.with_suffix(SENT).touch()


def unsent_parts(wandb_dir: Path, run_id: str) -> list[Path]:
    """W&B's folders of a run that it has not received: each time that a run is resumed it gets another folder."""
    # The folder's own name ends otherwise where two parts began in the same second.
    logs = wandb_dir.glob(f"*run-*/run-{glob.escape(run_id)}.wandb")
    parts = [log.parent for log in logs if not log.with_suffix(SENT).exists()]
    return sorted(parts, key=lambda part: part.name.removeprefix("offline-"))


def sync_command(parts: Sequence[Path]) -> str:
    """The command that sends parts of a run, as it stands."""
    wandb_dir = parts[0].parent
    logs = {log.name for part in parts for log in part.glob("*.wandb")}
    alone = {log.name for log in wandb_dir.glob("*run-*/*.wandb")} <= logs
    # Without the option, it passes over parts that were meant to be sent at once.
    option = [] if all(part.name.startswith("offline-") for part in parts) else ["--include-online"]
    return tool("wandb", "sync", *option, *map(_short, [wandb_dir] if alone else parts))


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
