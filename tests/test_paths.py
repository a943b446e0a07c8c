"""What names a path takes a str and a Path alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import minigpt
from minigpt.config import (
    AttentionConfig,
    CompareConfig,
    Config,
    DataConfig,
    GPTConfig,
    InspectConfig,
    ProofConfig,
    ReportConfig,
    SampleConfig,
    ShareConfig,
    TrainerConfig,
)
from minigpt.data.relations import read_relations
from minigpt.data.shards import Manifest, open_prepared
from minigpt.data.tokenizers.base import BytesTokenizer, load_tokenizer, save_tokenizer
from minigpt.errors import UserError
from minigpt.files import append, write_csv, write_text
from minigpt.inspection.snapshot import Snapshot, read_numbers
from minigpt.lab.share import write_shared
from minigpt.model.gpt import GPT
from minigpt.pages.film import film
from minigpt.pages.model_report import inspect_runs, write_inspection
from minigpt.pages.report import read_run, report_run
from minigpt.pages.run_record import read_run_folder
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model, read_checkpoint, save_checkpoint, save_weights, weights_files
from minigpt.training.resuming import existing
from minigpt.training.run import train

CONFIGS: list[tuple[Callable[[Any], object], str]] = [
    (lambda path: Config(runs_dir=path), "runs_dir"),
    (lambda path: DataConfig(source=path), "data.source"),
    (lambda path: DataConfig(source=[path, "b"]), "data.source"),
    (lambda path: DataConfig(val_source=path), "data.val_source"),
    (lambda path: DataConfig(dir=path), "data.dir"),
    (lambda path: DataConfig(tokenizer=path), "data.tokenizer"),
    (lambda path: TrainerConfig(default_root_dir=path), "trainer.default_root_dir"),
    (lambda path: AttentionConfig(relations=path), "attention.relations"),
    (lambda path: SampleConfig(run=path), "run"),
    (lambda path: SampleConfig(run="r", prompt_file=path), "prompt_file"),
    (lambda path: SampleConfig(run="r", prompts=path, out="o"), "prompts"),
    (lambda path: SampleConfig(run="r", prompts="p", out=path), "out"),
    (lambda path: SampleConfig(run="r", compare=path), "compare"),
    (lambda path: SampleConfig(run="r", explain=path), "explain"),
    (lambda path: SampleConfig(run="r", checkpoints=path), "checkpoints"),
    (lambda path: InspectConfig(path), "run"),
    (lambda path: InspectConfig("r", file=path), "file"),
    (lambda path: InspectConfig("r", relations=path), "relations"),
    (lambda path: InspectConfig("r", compare=path), "compare"),
    (lambda path: InspectConfig("r", out=path), "out"),
    (lambda path: ReportConfig(path), "run"),
    (lambda path: ReportConfig("r", out=path), "out"),
    (lambda path: ShareConfig(path), "run"),
    (lambda path: CompareConfig([path]), "recipes"),
    (lambda path: CompareConfig(["a"], out=path), "out"),
]


@pytest.mark.parametrize(("config", "name"), CONFIGS)
def test_a_setting_that_names_a_path_is_the_same_text_from_a_path(config: Callable[[Any], object], name: str) -> None:
    assert config(Path("some/where.json")) == config("some/where.json")
    assert repr(config(Path("some/where.json"))) == repr(config("some/where.json"))
    with pytest.raises(UserError, match=rf"^{name}=.*: expected "):
        config(3)


READERS: list[Callable[[Any], object]] = [
    minigpt.load,
    load_model,
    weights_files,
    read_checkpoint,
    load_tokenizer,
    open_prepared,
    Manifest.read,
    Snapshot.load,
    read_numbers,
    read_run,
    read_run_folder,
    existing,
    RunFolder,
    lambda path: list(read_relations(path)),
    lambda path: RunFolder.all_named(path, "demo"),
    lambda path: film(path, "a"),
    lambda path: inspect_runs(InspectConfig(path)),
    lambda path: write_inspection(InspectConfig(path), "text"),
    lambda path: report_run(ReportConfig(path)),
    lambda path: write_shared(ShareConfig(path)),
    lambda path: train(Config(), resume=path),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("place", ["nowhere", "there"])
def test_a_function_that_reads_a_path_says_the_same_of_a_str_and_a_path(
    read: Callable[[Any], object], place: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()

    def outcome(path: str | Path) -> object:
        try:
            return read(path)
        except (UserError, ValueError, OSError) as error:
            return type(error), str(error)

    assert outcome(str(tmp_path / place)) == outcome(tmp_path / place)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "text"),
        lambda path: append(path, "text"),
        lambda path: write_csv(path, ["a"], [[1]]),
        lambda path: save_tokenizer(BytesTokenizer(), path),
        lambda path: save_checkpoint(path, {"minigpt": {}, "weights": torch.ones(1)}),
        lambda path: save_weights(path, GPT(TINY.model), TINY, BytesTokenizer()),
        lambda path: RunFolder.create(path, "demo"),
    ],
)
def test_a_function_that_writes_to_a_path_takes_a_str(write: Callable[[Any], object], tmp_path: Path) -> None:
    write(str(tmp_path / "out"))
    assert (tmp_path / "out").exists()


TINY = Config(model=GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=2, position="none"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train("configs/tiny.yaml"), "config='configs/tiny.yaml': expected a Config"),
        (lambda: train(Config(), resume=3), "3: expected the path of a run"),
        (lambda: RunFolder(None), "None: expected the path of a run"),
        (lambda: Config(model={"n_layer": 2}), "model={'n_layer': 2}: expected GPTConfig"),
        (lambda: GPTConfig(n_layer="4"), "model.n_layer='4': expected int"),
        (lambda: GPTConfig(window=["a"]), "model.window=['a']: expected int | list[int | None] | None"),
        (lambda: TrainerConfig(max_steps=1.5), "trainer.max_steps=1.5: expected int"),
        (lambda: ProofConfig(kills="5"), "kills='5': expected int"),
        (lambda: AttentionConfig(enabled="no"), "attention.enabled='no': expected bool"),
    ],
)
def test_values_of_another_kind_are_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(message)


def test_a_tuple_is_as_good_as_a_list() -> None:
    assert GPTConfig(window=(5, None)) == GPTConfig(window=[5, None])
