"""Names of other programs' models: folders, the hub, and series of checkpoints."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from minigpt.errors import UserError
from minigpt.interop.hub import is_foreign, local_folder, series_of


def folder_of(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text("{}")
    return path


def test_a_folder_with_a_config_is_foreign_and_a_run_is_not(tmp_path: Path) -> None:
    assert is_foreign("hf:gpt2")
    assert is_foreign(folder_of(tmp_path / "model", "config.json"))
    assert not is_foreign(folder_of(tmp_path / "run", "config.yaml"))
    assert not is_foreign(tmp_path / "missing")


def test_revisions_and_a_folder_of_folders_are_a_series_by_step(tmp_path: Path) -> None:
    assert series_of("hf:gpt2") == [("hf:gpt2", None)]
    assert series_of("hf:a/pythia@step1000,step0") == [("hf:a/pythia@step0", 0), ("hf:a/pythia@step1000", 1000)]
    for name in ("checkpoint-200", "checkpoint-1000", "notes"):
        folder_of(tmp_path / "out" / name, "config.json")
    found = [(Path(path).name, step) for path, step in series_of(tmp_path / "out")]
    assert found == [("checkpoint-200", 200), ("checkpoint-1000", 1000)]
    one = tmp_path / "out" / "checkpoint-200"
    assert series_of(one) == [(str(one), 200)]
    with pytest.raises(UserError, match="hf:a/b@main has no step in its name"):
        series_of("hf:a/b@main,step3")


def test_a_model_that_cannot_be_downloaded_is_named_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"hf:nobody/nothing: the hub cannot be reached.*hf download nobody/nothing"):
        local_folder("hf:nobody/nothing")  # the tests are offline
    with pytest.raises(UserError, match=r"hf:\.\./x/y: not a name on the hub"):
        local_folder("hf:../x/y")


def test_weights_in_pickles_are_downloaded_only_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        asked.append((name, revision, allow_patterns[-1]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert local_folder("hf:a/b@step1") == tmp_path
    assert asked == [("a/b", "step1", "*.safetensors"), ("a/b", "step1", "pytorch_model*.bin")]
    (tmp_path / "model.safetensors").touch()
    local_folder("hf:a/b")
    assert asked[2:] == [("a/b", None, "*.safetensors")]


def test_weights_are_downloaded_once_not_their_copies_for_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_model = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    others = ["consolidated.safetensors", "onnx/model.safetensors", "onnx/config.json", "README.md", "tf_model.h5"]
    taken: list[str] = []

    def snapshot_download(name: str, *, revision: str | None, **patterns: list[str]) -> str:
        taken.extend(filter_repo_objects([*of_model, *others], **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    local_folder("hf:a/b")
    assert taken == of_model
