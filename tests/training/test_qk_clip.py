"""QK-clip bounds the attention scores of the heads that exceed its limit, and changes nothing else."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import small_settings, train_and_die

from minigpt.config import Config, GPTConfig
from minigpt.errors import UserError
from minigpt.inspection.measuring import measure
from minigpt.lab.differences import differences
from minigpt.model.gpt import GPT
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model
from minigpt.training.qk_clip import QKClip
from minigpt.training.run import train

ALONE: Any = SimpleNamespace(world_size=1)


def model_with_large_scores(**settings: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "context_length": 12, "n_layer": 2, "n_head": 4, "n_embd": 16}
    model = GPT(GPTConfig(**(shape | {"qk_norm": False} | settings)))
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(60)  # type: ignore[union-attr, operator]
    return model


def largest_scores(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(measure(model, tokens, {}).scores["largest_score"])


@pytest.mark.parametrize("settings", [{}, {"n_kv_head": 2}, {"similarity": "symmetric"}, {"bias": True}])
def test_heads_above_the_limit_come_down_to_it_and_the_others_stay_bit_for_bit(settings: dict[str, Any]) -> None:
    model = model_with_large_scores(**settings)
    tokens = torch.randint(30, (3, 13), generator=torch.Generator().manual_seed(1))
    before = largest_scores(model, tokens)[0]  # of the first layer: the others read other inputs afterwards
    limit = float(before.median())
    old = model.blocks[0].attn.qkv.weight.detach().clone()  # type: ignore[union-attr]
    clip = QKClip(model, limit)
    clip.attach()
    model(tokens[:, :-1])
    clip.clip(ALONE, taken=True)
    after = largest_scores(model, tokens)[0]
    assert (before > limit).any()
    assert (before < limit).any()
    torch.testing.assert_close(after[before > limit], torch.full_like(after[before > limit], limit), rtol=1e-4, atol=0)
    if "n_kv_head" not in settings:
        D = model.config.width_per_head
        rows = (before <= limit).repeat_interleave(D)
        assert torch.equal(model.blocks[0].attn.qkv.weight[: 4 * D][rows], old[: 4 * D][rows])  # type: ignore[union-attr, index]
    assert torch.equal(model.blocks[0].attn.qkv.weight[-4:], old[-4:]), "values stay"  # type: ignore[union-attr, index]


def test_a_skipped_step_and_a_validation_clip_nothing() -> None:
    model = model_with_large_scores()
    tokens = torch.randint(30, (1, 12))
    old = {name: value.clone() for name, value in model.state_dict().items()}
    clip = QKClip(model, 1.0)
    clip.attach()
    model(tokens)
    clip.clip(ALONE, taken=False)
    model.eval()
    model(tokens)
    clip.clip(ALONE, taken=True)
    assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())


def settings(tmp_path: Path, **optimizer: Any) -> Config:
    return small_settings(
        tmp_path,
        model={"qk_norm": False},
        optimizer={"name": "adamw", "learning_rate": 3e-2} | optimizer,
        trainer={"max_steps": 16, "val_check_interval": 16},
        attention={"enabled": False},
        sampling={"prompts": []},
        checkpoint_every_n_steps=5,
    )


def test_a_run_with_a_limit_keeps_its_scores_near_it_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = settings(tmp_path, qk_clip=0.3)
    straight = train(config)
    free = train(settings(tmp_path))
    tokens = torch.randint(250, (4, 17), generator=torch.Generator().manual_seed(0))
    scores = [float(largest_scores(load_model(run.path).model, tokens).max()) for run in (straight, free)]
    assert scores[0] < 0.6 < scores[1]
    with straight.metrics.open() as file:
        assert float(list(csv.DictReader(file))[-1]["train/loss"]) < 3.5
    train_and_die(config, 7)
    resumed = RunFolder(tmp_path / "runs" / "small-3")
    train(config, resumed.path)
    assert differences(straight, resumed) == []


def test_a_limit_that_no_score_reaches_changes_no_bit(tmp_path: Path) -> None:
    one, two = (load_model(train(settings(tmp_path, qk_clip=limit)).path).model for limit in (None, 1e4))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.slow
def test_the_compiler_can_trace_it() -> None:
    model = model_with_large_scores()
    clip = QKClip(model, 1e9)
    clip.attach()
    tokens = torch.randint(30, (2, 12))
    clip._is_bounded = lambda *_: False  # type: ignore[method-assign] # as on a GPU, which does not wait for a number
    model(tokens)
    largest = clip.largest.clone()
    clip.largest.zero_()
    torch.compile(model, backend="eager", fullgraph=True)(tokens)
    torch.testing.assert_close(clip.largest, largest)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"qk_norm": True}}, "model.qk_norm bounds the scores already"),
        ({"model": {"qk_norm": False, "similarity": "linear"}}, "similarity=linear scores otherwise"),
        ({"model": {"qk_norm": False}, "lora": 4, "initial_weights": "runs/x"}, "lora freezes"),
        ({"model": {"qk_norm": False}, "trainer": {"strategy": "fsdp2"}}, "use ddp"),
    ],
)
def test_a_limit_that_cannot_work_is_refused(sections: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"optimizer.qk_clip=100.0.*{words}"):
        small_settings(tmp_path, optimizer={"name": "adamw", "qk_clip": 100.0}, **sections)
