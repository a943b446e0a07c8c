"""A run that starts from the weights of another one."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from small_runs import small_settings, small_text, train_and_die

from minigpt.cli import parsing
from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model, read_checkpoint
from minigpt.training.initial import taken_over
from minigpt.training.run import train

QUIET = {"attention": {"enabled": False}, "sampling": {"prompts": []}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a tokenizer of its own."""
    return train(small_settings(tmp_path_factory.mktemp("first"), data={"tokenizer": "chars"}, **QUIET))


def going_on(folder: Path, source: Path, **model: object) -> Config:
    """A run on another text, with the model's settings left to the other run."""
    (folder / "text.txt").write_text(small_text(600)[3000:])
    config = small_settings(folder, initial_weights=str(source), **QUIET)
    data = dataclasses.replace(config.data, tokenizer="bpe:2048")
    return dataclasses.replace(config, model=type(config.model)(**model), data=data)  # type: ignore[arg-type]


def test_it_starts_from_the_best_weights_with_their_model_and_tokenizer(first: RunFolder, tmp_path: Path) -> None:
    config, state = taken_over(going_on(tmp_path, first.path))
    source = load_model(first.path)
    assert config.model == source.config.model
    assert config.data.tokenizer == str(first.tokenizer)
    assert state is not None
    assert all(torch.equal(state[name], tensor) for name, tensor in source.model.state_dict().items())


def test_its_loss_goes_on_where_the_other_run_ended(first: RunFolder, tmp_path: Path) -> None:
    folder = train(going_on(tmp_path, first.path, context_length=32))
    rows = folder.metrics.read_text().splitlines()
    begin = float(rows[1].split(",")[rows[0].split(",").index("train/loss")])
    before = first.metrics.read_text().splitlines()
    assert begin < float(before[1].split(",")[before[0].split(",").index("train/loss")]) - 0.1
    loaded = load_model(folder.last)
    assert (loaded.step, loaded.config.model.context_length) == (12, 32)
    assert loaded.config.initial_weights == str(first.path)
    assert loaded.tokenizer.to_dict() == load_model(first.path).tokenizer.to_dict()


def test_it_resumes_to_the_same_bits_without_the_other_run(first: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "friend.safetensors"
    os.link(first.weights, file)
    config = going_on(tmp_path, file)
    whole = train(config)
    config = dataclasses.replace(config, name="stopped", checkpoint_every_n_steps=5)
    train_and_die(config, 8)
    file.unlink()
    stopped = RunFolder(tmp_path / "runs" / "stopped")
    resumed, run = parsing.parse_training(["--resume", str(stopped.path)])
    train(resumed, run)
    a, b = (read_checkpoint(run.last)["state_dict"] for run in (whole, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("model", [{"n_layer": 3}, {"n_embd": 32}, {"position": "learned"}])
def test_a_setting_that_its_weights_fix_is_refused(first: RunFolder, tmp_path: Path, model: dict[str, object]) -> None:
    (name,) = model
    with pytest.raises(UserError, match=rf"--from .*: model\.{name}=\S+ \(it has \S+\): its weights fix this"):
        taken_over(going_on(tmp_path, first.path, **model))


def test_a_setting_given_with_its_default_value_is_refused_too(first: RunFolder) -> None:
    arguments = ["--from", str(first.path), "--model.n_layer", "4"]
    with pytest.raises(UserError, match=r"model\.n_layer=4 \(it has 2\)"):
        taken_over(parsing.parse_training(arguments)[0])
    arguments = ["--from", str(first.path), "--data.tokenizer", "bpe:2048"]
    with pytest.raises(UserError, match=r"data\.tokenizer=bpe:2048: its weights need their own"):
        taken_over(parsing.parse_training(arguments)[0])


def test_dropout_is_the_new_runs_own(first: RunFolder, tmp_path: Path) -> None:
    assert taken_over(going_on(tmp_path, first.path, dropout=0.2))[0].model.dropout == 0.2


def test_another_tokenizer_is_refused(first: RunFolder, tmp_path: Path) -> None:
    config = going_on(tmp_path, first.path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer="bytes"))
    with pytest.raises(UserError, match=r"data\.tokenizer=bytes: its weights need their own"):
        taken_over(config)


def test_a_missing_file_and_another_programs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run or checkpoint"):
        train(going_on(tmp_path, tmp_path / "none"))
    other = tmp_path / "other.ckpt"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(UserError, match="a checkpoint of another program"):
        train(going_on(tmp_path, other))
    assert not (tmp_path / "runs").exists()


def test_from_is_the_options_short_name_and_not_with_resume(tmp_path: Path) -> None:
    assert parsing.parse_training(["--from", "runs/a"])[0].initial_weights == "runs/a"
    assert parsing.parse_training(["--from=runs/a"])[0].initial_weights == "runs/a"
    with pytest.raises(UserError, match="--from and --resume runs/b"):
        parsing.parse_training(["--from", "runs/a", "--resume", "runs/b"])
