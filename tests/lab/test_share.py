"""`minigpt share`: one file for a friend, who has neither the run nor its text; and nothing private in it."""

import csv
import dataclasses
import getpass
import json
import shlex
import shutil
import socket
import typing
from pathlib import Path

import pytest
import torch
from scripts import ROOT
from small_runs import small_settings

import minigpt
from minigpt.cli.main import dispatch
from minigpt.config import Config, DataConfig, ShareConfig, TrainerConfig
from minigpt.config.checks import PATH, Section
from minigpt.errors import UserError
from minigpt.lab.share import base_names, public, share_run, write_shared
from minigpt.runs.card import read_card
from minigpt.runs.folder import RunFolder
from minigpt.runs.header import read_header
from minigpt.training.initial import taken_over
from minigpt.training.run import train

GREEDY = {"temperature": 0, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a tokenizer of its own text."""
    folder = tmp_path_factory.mktemp("owner")
    return train(small_settings(folder, data={"tokenizer": "chars"}, attention={"enabled": False}))


def rows_of(run: RunFolder) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_friend_writes_the_same_text_and_trains_on_without_the_run(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved" / "small"
    shutil.copytree(run.path, moved)
    monkeypatch.chdir(tmp_path)
    dispatch(["share", str(moved)])
    told = capsys.readouterr().out
    expected = minigpt.load(moved).generate("1 plus", **GREEDY)  # type: ignore[arg-type]
    weights = minigpt.load(moved).model.state_dict()
    shutil.rmtree(tmp_path / "moved")
    (tmp_path / "friend").mkdir()
    monkeypatch.chdir(tmp_path / "friend")
    (tmp_path / "small.safetensors").rename("small.safetensors")

    assert "  minigpt sample small.safetensors\n" in told
    assert minigpt.load("small.safetensors").generate("1 plus", **GREEDY).text == expected.text  # type: ignore[arg-type]
    dispatch(["sample", "small.safetensors", "--temperature=0", "--max_new_tokens=20"])
    assert f"1 plus{expected.text}" in capsys.readouterr().out
    config, state = taken_over(Config(initial_weights="small.safetensors"))
    assert state is not None
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert Path(config.data.tokenizer).is_file()
    dispatch(["share", "small.safetensors"])
    assert capsys.readouterr().out == f"{read_card(Path('small.safetensors'))}\n"


def test_the_card_says_what_the_best_weights_are_and_write(run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(tmp_path / "tale")
    shutil.copytree(run.path, copy.path)
    rows = rows_of(run)
    best = rows[-1]
    more = {"samples/longest_copied_tokens": "7.0", "samples/copied_20gram_share": "0.25"}
    later = {**best, "step": "18", "val/loss": "99", **dict.fromkeys(more, "9")}
    with copy.metrics.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *more])
        writer.writeheader()
        writer.writerows([*rows[:-1], {**best, **more}, later])
    copy.samples(18).write_text(copy.samples(12).read_text().replace("step 12", "step 18"))
    card = read_card(minigpt.open_run(copy.path).share(tmp_path / "story.safetensors"))
    assert (card.name, card.tokenizer, card.texts, card.minigpt) == ("tale", "chars", ["text.txt"], minigpt.__version__)
    assert (card.n_layer, card.n_embd, card.context_length) == (2, 16, 16)
    assert card.text_bytes == (run.path.parents[1] / "text.txt").stat().st_size
    assert (card.step, card.last_step, card.tokens) == (12, 18, int(best["tokens"]))
    assert (card.val_loss, card.val_bits_per_byte) == (float(best["val/loss"]), float(best["val/bits_per_byte"]))
    assert (card.longest_copied_tokens, card.copied_20gram_share) == (7, 0.25)
    assert (card.prompt, card.sample_step) == ("1 plus", 12)
    assert card.samples == [sample.text for sample in minigpt.open_run(run.path).samples if sample.step == 12]


def test_nothing_in_the_file_tells_where_and_by_whom_it_was_made(run: RunFolder, tmp_path: Path) -> None:
    file, *_ = write_shared(ShareConfig(str(run.path), str(tmp_path / "story.safetensors")))
    header = " ".join(read_header(file).values())
    private = [str(run.path), str(run.path.parents[1]), str(Path.home()), str(Path.cwd()), socket.gethostname()]
    assert not [name for name in private if name in header]
    assert f'"{getpass.getuser()}"' not in header


def test_no_path_object_or_text_of_the_config_that_could_be_private_is_shared() -> None:
    sections = {field.name: field.default_factory for field in dataclasses.fields(Config)}
    secret: dict[str, typing.Any] = {}
    for name, section in (("", Config), *sections.items()):
        if isinstance(section, type) and issubclass(section, Section):
            hints = typing.get_type_hints(section, include_extras=True)
            paths = {key: "/home/alice/secret/x.json" for key, hint in hints.items() if repr(PATH) in repr(hint)}
            secret.update(paths) if not name else secret.update({name: paths})
    anything = {"class_path": "a.B", "init_args": {"entity": "alice", "save_dir": "/home/alice"}}
    secret["trainer"] |= dict.fromkeys(("logger", "profiler", "strategy"), anything) | {
        "callbacks": [anything],
        "model_registry": "alice/x",
        "max_time": "00:00:10:00",
        "max_steps": 7,
    }
    secret["data"] |= {"source": ["https://alice:key@host.org/a/story.txt?token=alice#alice", "hf:alice/tales:en"]}
    config = Config.from_dict(secret)
    assert len(json.dumps(config.to_dict()).split("alice")) > 12
    shared = public(config)
    assert "alice" not in json.dumps(shared.to_dict())
    assert "host.org" not in json.dumps(shared.to_dict())
    assert (shared.data.source, shared.data.tokenizer, shared.initial_weights) == (
        ["story.txt", "tales:en"],
        "x.json",
        "x.json",
    )
    assert shared.trainer == TrainerConfig(max_steps=7, max_time="00:00:10:00")


def test_names_of_texts_lose_their_folders_and_stay_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    given = ["/home/alice", "a/story.txt", "b/story.txt", "..", "C:\\Users\\alice\\c.txt", "d/*.txt", "notes/", "-"]
    names = base_names(given)
    assert names[1:3] == ["story.txt", "story.txt (source 3)"]
    assert [names[0], *names[3:]] == ["text", "text (source 4)", "c.txt", "*.txt", "notes", "-"]
    config = public(Config(data=DataConfig(source=given, weights=[1.0] * len(given))))
    assert Config.from_dict(config.to_dict()) == config


def test_a_file_that_is_there_stays_as_it_is(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.safetensors").write_text("a friend's")
    with pytest.raises(UserError, match=r"small\.safetensors: already exists; remove it, or name another"):
        share_run(ShareConfig(str(run.path)))
    assert Path("small.safetensors").read_text() == "a friend's"


def test_the_owner_is_told_what_can_be_read_and_the_friend_how_to_install(run: RunFolder, tmp_path: Path) -> None:
    told = share_run(ShareConfig(str(run.path), str(tmp_path / (file := "it's.safetensors"))))
    assert "1 sample with prompts and the" in told
    assert "tokens of the tokenizer, words of the text among them" in told
    assert f"  minigpt sample {shlex.quote(str(tmp_path / file))}\n" in told
    installs = [line.strip() for line in told.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert all(line in (ROOT / "README.md").read_text(encoding="utf-8") for line in installs)
