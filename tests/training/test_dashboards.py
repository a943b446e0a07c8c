"""What any logger gets, whether it is named or given by its class: config, metrics with their step, its end."""

import csv
import json
import os
import shlex
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import Logger
from small_runs import items, small_settings, wandb_history, wandb_records, with_trainer

from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.training.dashboards import (
    check_loggers,
    finish_dashboards,
    log_image,
    log_page,
    log_scalars,
    log_table,
    make_loggers,
)
from minigpt.training.dashboards.wandb import sync_command, unsent_parts
from minigpt.training.module import TrainingModule
from minigpt.training.run import train

wandb = pytest.importorskip("wandb", reason="W&B is not installed")


class Notebook(Logger):
    """A logger of somebody's own, in a file of JSON lines."""

    def __init__(self, save_dir: Path) -> None:
        super().__init__()
        self.file = Path(save_dir, "notebook.jsonl")

    @property
    def name(self) -> str:
        return "notebook"

    @property
    def version(self) -> int:
        return 1

    def _write(self, kind: str, content: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps([kind, content]) + "\n")

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self._write("config", params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._write("row", metrics | {"step": step})

    def finalize(self, status: str) -> None:
        self._write("end", status)


Seen = tuple[dict[str, Any], list[dict[str, float]]]
"""The newest config, and the rows of all parts, as a logger has them."""


def in_wandb(folder: Path) -> Seen:
    """What W&B's files hold; the parts of a run must have one id, and the step as the x-axis of all that is logged."""
    config: dict[str, Any] = {}
    rows: list[dict[str, float]] = []
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len({log.name for part in parts for log in part.glob("*.wandb")}) == 1
    for part in parts:
        records = list(wandb_records(part))
        axes = {r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
        assert axes["*"] == "trainer/global_step"
        for record in records:
            config |= items(record.config.update)
        for row in wandb_history(folder, part)[0]:
            rows.append({"step": row.pop("trainer/global_step")} | row)
    return config, rows


def in_tensorboard(folder: Path) -> Seen:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("hparams.yaml")  # a resumed run goes on in the same folder
    events = EventAccumulator(str(file.parent))
    events.Reload()
    scalars = [(name, event) for name in events.Tags()["scalars"] for event in events.Scalars(name)]
    return yaml.safe_load(file.read_text()), [{"step": event.step, name: event.value} for name, event in scalars]


def in_csv(folder: Path) -> Seen:
    """A CSVLogger begins a new file at each start, else it would remove the one before."""
    *_, newest = sorted(folder.rglob("hparams.yaml"))
    rows = []
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open() as text:
            rows += [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(text)]
    return yaml.safe_load(newest.read_text()), rows


def in_notebook(folder: Path) -> Seen:
    lines = [json.loads(line) for line in (folder / "notebook.jsonl").read_text().splitlines()]
    configs = [content for kind, content in lines if kind == "config"]
    return configs[-1], [content for kind, content in lines if kind == "row"]


LOGGERS = {
    "wandb": ("wandb", in_wandb),
    "W&B's class": ({"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}, in_wandb),
    "tensorboard": ("tensorboard", in_tensorboard),
    "TensorBoard's class": ({"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}, in_tensorboard),
    "CSV": ({"class_path": "lightning.pytorch.loggers.CSVLogger"}, in_csv),
    "somebody's own": ({"class_path": "test_dashboards.Notebook"}, in_notebook),
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "small")


@pytest.fixture
def nothing_open() -> Iterator[None]:
    """Whatever a test leaves open is closed, so that the next finds nothing."""
    yield
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


pytestmark = pytest.mark.usefixtures("nothing_open")


def log_steps(config: Config, folder: RunFolder, *steps: int) -> str | None:
    """What a run logs, without training; returns what the user is told at the end."""
    loggers = make_loggers(config, folder)
    for step in steps:
        log_scalars(loggers, {"train/loss": 1 / step, "learning_rate": 0.5}, step)
        log_image(loggers, "attn/grid", np.zeros((2, 2, 3), np.uint8), step)
        log_page(loggers, "attn/page", "<p>", step)
        log_table(loggers, "samples", ("step", "text"), [(step, "a")], step)
    for logger in loggers:
        logger.finalize("success")  # as Lightning does
    return finish_dashboards(loggers)


@pytest.mark.parametrize("name", LOGGERS)
def test_every_logger_gets_the_config_and_each_metric_with_its_step_also_after_a_resume(
    name: str, tmp_path: Path, folder: RunFolder
) -> None:
    logger, read = LOGGERS[name]
    config = small_settings(tmp_path, trainer={"logger": logger})
    log_steps(config, folder, 10, 20)
    log_steps(with_trainer(config, max_steps=99), folder, 30)
    settings, rows = read(folder.path)
    assert settings["trainer"]["max_steps"] == 99
    assert settings["data"]["tokenizer"] == "bytes"
    assert {row["step"]: row["train/loss"] for row in rows if "train/loss" in row} == pytest.approx(
        {10: 1 / 10, 20: 1 / 20, 30: 1 / 30}
    )
    assert [row["step"] for row in rows if "learning_rate" in row] == [10, 20, 30]


def test_several_loggers_get_what_the_metrics_file_has_and_how_the_run_ended(tmp_path: Path) -> None:
    loggers = [LOGGERS[name][0] for name in ("tensorboard", "CSV", "somebody's own")]
    run = train(small_settings(tmp_path, trainer={"logger": loggers}, attention={}))
    with run.metrics.open() as file:
        expected = {
            (int(row["step"]), name)
            for row in csv.DictReader(file)
            for name in ("train/loss", "val/loss", "grad_norm")
            if row[name]
        }
    assert len(expected) > 20
    for read, place in ((in_tensorboard, "tensorboard"), (in_csv, "lightning_logs"), (in_notebook, "")):
        _, rows = read(run.path / place)
        assert {(row["step"], name) for row in rows for name in row if (row["step"], name) in expected} == expected
        assert {row["step"] for row in rows if "attn/entropy_mean" in row} == {0, 1, 2, 4, 6, 12}
    assert json.loads((run.path / "notebook.jsonl").read_text().splitlines()[-1]) == ["end", "success"]


def test_a_run_that_ends_in_an_error_is_a_failed_run_for_every_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = TrainingModule.training_step

    def step(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            raise UserError("no step")
        return real_step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    with pytest.raises(UserError, match="no step"):
        train(small_settings(tmp_path, trainer={"logger": ["wandb", LOGGERS["somebody's own"][0]]}))
    run = tmp_path / "runs" / "small"
    assert json.loads((run / "notebook.jsonl").read_text().splitlines()[-1]) == ["end", "failed"]
    (end,) = [r.exit.exit_code for r in wandb_records(run / "wandb" / "latest-run") if r.HasField("exit")]
    assert end == 1


def test_wandbs_environment_variables_come_before_defaults_and_the_config_before_them(
    tmp_path: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"PROJECT": "books", "NAME": "try 1", "ENTITY": "us", "RUN_GROUP": "g", "TAGS": "a,b", "NOTES": "n"}
    given |= {"RUN_ID": "abc123", "DIR": str(tmp_path), "JOB_TYPE": "j"}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    before = dict(os.environ)
    wandb.teardown()  # so that it reads the environment again
    arguments = {"name": "try 2"}
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": arguments}
    (made,) = make_loggers(small_settings(tmp_path, trainer={"logger": logger}), folder)
    run = made.experiment
    assert (run.project, run.entity, run.group, run.tags) == ("books", "us", "g", ("a", "b"))
    assert (run.notes, run.job_type, run.id, run.name) == ("n", "j", "abc123", "try 2")
    line = finish_dashboards([made])
    (part,) = (tmp_path / "wandb").glob("offline-run-*-abc123")
    assert line is not None
    assert shlex.split(line)[1:] == ["sync", str(part.parent)]
    assert dict(os.environ) == before

    for name in given:
        monkeypatch.delenv(f"WANDB_{name}")
    wandb.teardown()
    (resumed,) = make_loggers(small_settings(tmp_path, trainer={"logger": "wandb"}), folder)
    run = resumed.experiment
    assert (run.project, run.entity, run.id, run.name) == ("books", "us", "abc123", "try 2")
    finish_dashboards([resumed])
    assert capsys.readouterr().err == ""


def test_a_run_that_the_user_opened_is_logged_to_and_stays_the_users(tmp_path: Path, folder: RunFolder) -> None:
    opened = wandb.init(mode="offline", dir=tmp_path, config={"model": "mine", "lr": 1})
    opened.log({"before": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = log_steps(small_settings(tmp_path, trainer={"logger": "wandb"}), folder, 10)
    assert wandb.run is opened
    opened.log({"after": 2})
    assert opened.config["model"] == "mine"
    assert opened.config["minigpt"]["model"]["n_layer"] == 2
    assert opened.config["trainer"]["max_steps"] == 12
    part = Path(opened.dir).parent
    assert line is not None
    assert line.startswith(f"{sync_command([part])}  # ")
    assert log_steps(small_settings(tmp_path, trainer={"logger": False}), folder) is None
    opened.finish()
    wandb.teardown()  # which writes the rest
    rows, _ = wandb_history(folder.path, part)
    assert [row["trainer/global_step"] for row in rows if "train/loss" in row] == [10]
    assert {"before", "after"} <= {name for row in rows for name in row}
    axes = {
        r.metric.glob_name or r.metric.name: r.metric.step_metric
        for r in wandb_records(part)
        if r.metric.name or r.metric.glob_name
    }
    assert axes["train/*"] == "trainer/global_step"
    assert "*" not in axes


def test_the_command_for_what_was_not_sent_names_every_such_part_and_no_other(tmp_path: Path) -> None:
    def part(name: str, log: str, sent: bool = False) -> Path:
        path = tmp_path / "a run" / "wandb" / name
        path.mkdir(parents=True)
        (path / f"run-{log}.wandb").touch()
        if sent:
            (path / f"run-{log}.wandb.synced").touch()
        return path

    def command() -> list[str]:
        return shlex.split(sync_command(unsent_parts(tmp_path / "a run" / "wandb", "aa")))

    part("run-20260101_000000-aa", log="aa", sent=True)
    second = part("offline-run-20260102_000000-aa", log="aa")
    assert command()[1:] == ["sync", str(second.parent)]
    third = part("run-20260103_000000-aa-1", log="aa")  # begun in the same second as another part
    assert command()[1:] == ["sync", "--include-online", str(second.parent)]
    part("offline-run-20260104_000000-bb", log="bb")  # WANDB_DIR can be that of many runs
    assert command()[1:] == ["sync", "--include-online", str(second), str(third)]
    printed = shlex.join([*command(), "--dry-run"])
    dry = subprocess.run(printed, shell=True, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert "Would sync 2 run(s)" in dry.stderr


def test_the_end_names_the_command_that_shows_each_dashboard(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "my runs", "small")
    config = small_settings(tmp_path, trainer={"logger": ["tensorboard", LOGGERS["CSV"][0]]})
    line = log_steps(config, folder)
    assert line is not None
    first, second = line.splitlines()
    assert shlex.split(first)[1:] == ["--logdir", str(folder.path / "tensorboard")]
    assert shlex.split(first)[0].endswith("tensorboard")
    assert second.strip() == str(folder.path / "lightning_logs" / "version_0")


@pytest.mark.parametrize(
    ("logger", "words"),
    [
        ({"class_path": "pathlib.Path"}, "class_path=pathlib.Path: is not a Lightning Logger"),
        ({"class_path": "no.such.Thing"}, "class_path=no.such.Thing: cannot be built"),
        (
            {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"log_model": True}},
            "trainer.logger: log_model: checkpoints are not uploaded during training",
        ),
    ],
)
def test_a_logger_that_cannot_work_is_refused_before_the_text_is_prepared(
    logger: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        check_loggers(small_settings(tmp_path, trainer={"logger": [logger]}))
    assert words in str(refused.value)


class Unfinished(Notebook):
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        raise NotImplementedError("later")


@pytest.mark.parametrize(
    ("logger", "words"),
    [
        (
            {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"colour": "red"}},
            "CSVLogger: cannot be built .*colour",
        ),
        ({"class_path": "test_dashboards.Unfinished"}, "trainer.logger: Unfinished cannot log the config .*later"),
    ],
)
def test_a_logger_that_fails_at_its_start_leaves_no_folder_and_nothing_open(
    logger: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        train(small_settings(tmp_path, trainer={"logger": ["wandb", logger]}))
    assert wandb.run is None
    assert not list((tmp_path / "runs").iterdir())
