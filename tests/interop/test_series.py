"""Checkpoints of a training by another program: one attention page with their steps."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from comparing import small_model

from minigpt.config import InspectConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.interop.folder import write_folder
from minigpt.interop.tokenizer_files import hugging_face_files
from minigpt.pages.model_report import inspect_runs


def checkpoint(folder: Path, seed: int, **settings: int) -> None:
    model = small_model({"vocab_size": 257, **settings})
    with torch.no_grad():
        model.token_embedding.weight += 0.1 * seed
    write_folder(folder, model)
    for name, content in hugging_face_files(BytesTokenizer(), 64).items():
        (folder / name).write_text(json.dumps(content))


def test_checkpoints_of_another_program_are_one_page_with_their_steps(tmp_path: Path) -> None:
    for step in (1000, 0, 20):
        checkpoint(tmp_path / f"step{step}", step // 10)
    found = inspect_runs(InspectConfig(run=str(tmp_path)), "The cat sat on the mat, the cat sat on")
    assert found.snapshot.step == 1000, "the last"
    data = json.loads(found.page.split('"application/json">')[1].split("</script>")[0])
    assert [run["steps"] for run in data["runs"]] == [[0, 20, 1000]]
    shutil.rmtree(tmp_path / "step20")
    checkpoint(tmp_path / "step20", 1, n_layer=1)
    with pytest.raises(UserError, match="step20: has 1 layers of 4 heads instead of 2 of 4"):
        inspect_runs(InspectConfig(run=str(tmp_path)), "The cat sat on the mat")
