"""Faults put into a run are named in its diagnosis, and healthy runs have no warning."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from small_runs import GPT2, small_settings, train_and_die

from minigpt.config import Config, GPTConfig
from minigpt.errors import UserError
from minigpt.inspection.diagnostics import Diagnostics, diagnose_model, position_effect
from minigpt.model.gpt import GPT
from minigpt.pages.report import read_run, render_report
from minigpt.runs.folder import RunFolder
from minigpt.training.dashboards import alert
from minigpt.training.diagnosis import MOST_LINES, MOST_UPDATES, Diagnosis
from minigpt.training.events import find_events
from minigpt.training.evidence import Evidence, ScoresAtStep, Spike, Update
from minigpt.training.run import train
from minigpt.training.update_ratios import UpdateRatios, part_of

ADAMW = {"name": "adamw", "learning_rate": 4e-3, "warmup_steps": 5, "weight_decay": 0.1}
TIED_GPT2 = GPT2 | {"tie_embeddings": True}


def settings(tmp_path: Path, steps: int = 160, callbacks: Any = (), **sections: Any) -> Config:
    base: dict[str, dict[str, Any]] = {
        "model": {"context_length": 32, "n_layer": 2, "n_head": 2, "n_embd": 32},
        "data": {"batch_size": 8},
        "optimizer": {"warmup_steps": 0},
        "trainer": {"max_steps": steps, "val_check_interval": 40, "log_every_n_steps": 2},
        "attention": {"max_tokens": 32},
        "sampling": {"prompts": []},
    }
    base["trainer"]["callbacks"] = [
        {"class_path": f"faults.{name}", "init_args": arguments} for name, arguments in callbacks
    ]
    merged = {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
    return small_settings(tmp_path, **merged)


def diagnosis_of(run: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.diagnosis.read_text())
    return content


def warnings_in(run: RunFolder) -> set[str]:
    return {f"{e['kind']} {e['where']}".strip() for e in diagnosis_of(run)["events"] if e["is_warning"]}


FAULTS: dict[str, tuple[list[tuple[str, dict[str, Any]]], set[str]]] = {
    "rate times ten late": ([("RateTimes", {"times": 10.0, "step": 100})], {"update_jump step 110"}),
    "bad batch": ([("BadBatch", {"steps": [100]})], {"spike step 101"}),
    "frozen layer": ([("FrozenLayer", {"layer": 1, "step": 50})], {"frozen blocks.1"}),
    "positions off": ([("PositionsOff", {})], {"positions_off"}),
    "head of zeros": ([("HeadOfZeros", {"layer": 0, "head": 1, "step": 30})], {"dead_head 0.1"}),
}
HEALTHY: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"optimizer": ADAMW},
    "gpt2": {"model": TIED_GPT2, "optimizer": ADAMW},
    "gpt2 with muon": {"model": TIED_GPT2},
    "alibi": {"model": {"position": "alibi"}},
    "grouped heads": {"model": {"n_kv_head": 1}},
    "post-norm": {"model": {"block": "post_norm"}, "optimizer": ADAMW},
    "linear": {"model": {"similarity": "linear", "position": "none"}},
    "dropout": {"model": {"dropout": 0.1, "n_layer": 3}},
    "no decay": {"optimizer": {"schedule": "constant"}, "data": {"tokenizer": "chars"}},
}


def test_faults_put_into_one_run_are_each_named_in_the_file_the_report_and_a_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("frozen layer", "positions off", "head of zeros")
    callbacks = [*itertools.chain.from_iterable(FAULTS[name][0] for name in names), ("BadBatch", {"steps": [72]})]
    run = train(settings(tmp_path, 80, callbacks))
    assert warnings_in(run) >= {*set.union(*(FAULTS[name][1] for name in names)), "spike step 73"}
    found = diagnosis_of(run)
    spike = next(event for event in found["events"] if event["kind"] == "spike")
    assert spike["details"]["cause"] == "the batch"
    assert spike["details"]["micro_batches"] == "72"
    assert spike["details"]["moved_first"], "the parts whose gradient was far from usual"
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("note: ")]
    assert 3 <= len([line for line in lines if "is a spike" not in line]) <= MOST_LINES
    assert any("head 0.1 adds nothing" in line for line in lines)
    assert str(run.diagnosis) in said.partition("done:")[2]
    assert "positions have no effect" in said.partition("done:")[2].lower()
    assert re.search(r'"events":\[.*spike.* at step 73', run.attention_page.read_text())
    page = render_report(read_run(run.path))
    assert "<h2>What happened</h2>" in page
    assert "Head 0.1 adds nothing to the residual stream" in page


@pytest.mark.parametrize("optimizer", [{}, ADAMW | {"learning_rate": 4e-2}])
def test_ten_times_the_learning_rate_is_named_after_a_few_steps(optimizer: dict[str, Any], tmp_path: Path) -> None:
    optimizer = optimizer or {"learning_rate": 8e-2}
    run = train(settings(tmp_path, 12, optimizer=optimizer, attention={"enabled": False}))
    assert warnings_in(run) == {"large_updates"}
    assert "a tenth of optimizer.learning_rate" in diagnosis_of(run)["try"][0]


def test_a_healthy_run_has_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(settings(tmp_path, 40))
    found = diagnosis_of(run)
    assert found["warnings"] == 0
    assert found["summary"][-1] == "No sign of trouble."
    assert "On the beginning of the held-out text, the loss at tokens 29 to 32" in found["summary"][-2]
    assert [part["from"] for part in found["loss_by_position"]] == [*range(1, 33, 4)]
    assert "No sign of trouble." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_of_all_kinds_have_no_warning(name: str, tmp_path: Path) -> None:
    assert warnings_in(train(settings(tmp_path, **HEALTHY[name]))) == set()


@pytest.mark.slow
@pytest.mark.parametrize("family", [{}, {"model": TIED_GPT2, "optimizer": ADAMW}])
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_alone_is_named(name: str, family: dict[str, Any], tmp_path: Path) -> None:
    callbacks, wanted = FAULTS[name]
    assert warnings_in(train(settings(tmp_path, 160, callbacks, **family))) >= wanted


def test_a_resumed_run_ends_with_the_same_diagnosis(tmp_path: Path) -> None:
    callbacks = [*FAULTS["frozen layer"][0], ("BadBatch", {"steps": [72]})]
    sections = {"model": {"context_length": 16, "n_embd": 16}, "attention": {"max_tokens": 8}}
    config = dataclasses.replace(settings(tmp_path, 80, callbacks, **sections), checkpoint_every_n_steps=74)
    straight = train(config)
    train_and_die(config, 76)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    assert not resumed.diagnosis.exists()
    train(config, resumed.path)
    assert "spike step 73" in warnings_in(resumed)
    assert resumed.diagnosis.read_bytes() == straight.diagnosis.read_bytes()


def test_a_run_that_ends_at_a_loss_that_is_not_finite_is_diagnosed_too(tmp_path: Path) -> None:
    callbacks = [{"class_path": "injection.Injection", "init_args": {"at": {9: [float("inf"), "loss"]}}}]
    config = small_settings(tmp_path, trainer={"callbacks": callbacks}, attention={"enabled": False})
    with pytest.raises(UserError, match="step 10 is not finite"):
        train(config)
    run = RunFolder(tmp_path / "runs" / "small")
    assert diagnosis_of(run)["step"] == 9
    skipping = train(dataclasses.replace(config, on_non_finite="skip"))
    assert warnings_in(skipping) == {"not_finite"}


# The detectors, on evidence made by hand


def evidence(**fields: Any) -> Evidence:
    return Evidence(Config(), **fields)


def kinds(found: Evidence) -> list[str]:
    return [event.kind for event in find_events(found)]


def test_a_plateau_that_ends_in_a_drop_is_an_event_and_a_smooth_curve_is_none() -> None:
    steps = range(10, 610, 10)
    noise = np.random.default_rng(0).normal(0, 0.005, 600)
    plateau = {s: 4.1 + noise[s % 600] - 1.8 / (1 + np.exp(-(s - 300) / 20)) for s in steps}
    (event,) = find_events(evidence(losses=plateau))
    assert event.kind == "drop"
    assert 150 <= event.step <= 300
    assert event.details["after"] < 2.5
    assert kinds(evidence(losses={s: 2 + 4 * s**-0.5 + noise[s % 600] for s in steps})) == []


def test_a_loss_that_rises_and_stays_is_divergence_and_one_that_comes_back_is_not() -> None:
    steps = range(1, 121)
    assert kinds(evidence(losses={s: 3.0 - s / 60 if s < 60 else 3.5 for s in steps})) == ["divergence"]
    assert kinds(evidence(losses={s: 3.0 if 60 < s < 70 else 2.0 for s in steps})) == []


def snapshot(step: int, induction: float, largest: float = 1.0, entropy: float = 0.5) -> ScoresAtStep:
    scores = {"induction": induction, "largest_score": largest, "entropy": entropy, "ablation": 0.25}
    return ScoresAtStep(step, {name: np.full((1, 1), value, np.float32) for name, value in scores.items()}, {})


def test_a_head_that_formed_is_an_event_with_its_step_score_and_effect_on_the_loss() -> None:
    scores = {0: 0.0, 64: 0.4, 128: 0.1, 200: 0.5, 400: 0.8}  # not yet at 64: it fell again
    (event,) = find_events(evidence(snapshots=[snapshot(step, score) for step, score in scores.items()]))
    (head,) = event.details["heads"]
    assert (event.kind, event.where, event.step) == ("heads", "induction", 200)
    assert head == {
        "head": "0.0",
        "step": 200,
        "after_step": 128,
        "score": pytest.approx(0.8),
        "ablation": pytest.approx(0.25),
    }
    assert event.text.endswith(": 0.0 (0.80); without it the loss is 0.25 nats higher")
    assert kinds(evidence(snapshots=[snapshot(0, 0.9), snapshot(10, 0.9)])) == [], "it was there from the start"


def test_scores_that_grow_and_heads_that_collapse_are_warned_about() -> None:
    growing = evidence(snapshots=[snapshot(0, 0.0), snapshot(100, 0.0, 60.0), snapshot(200, 0.0, 140.0)])
    (event,) = find_events(growing)
    assert (event.kind, event.step, event.is_warning) == ("growing_scores", 200, True)
    without = dataclasses.replace(growing.config, model=GPTConfig(qk_norm=False))
    assert "optimizer.qk_clip=100" in find_events(dataclasses.replace(growing, config=without))[0].advice
    collapsed = evidence(
        snapshots=[snapshot(0, 0.0), snapshot(100, 0.0, entropy=0.0), snapshot(200, 0.0, entropy=0.001)]
    )
    assert [(each.kind, each.where) for each in find_events(collapsed)] == [("collapsed_head", "0.0")]


def test_a_spike_that_does_not_recover_is_blamed_on_the_update_and_the_layer_that_moved_first_is_named() -> None:
    usual = {"blocks.0.attn": 0.01, "blocks.1.mlp": 0.01}
    updates = [Update(step, dict(usual), dict(usual)) for step in range(30, 100, 10)]
    updates[-1].ratios["blocks.1.mlp"] = 0.025  # less than JUMP in the median of all parts
    updates[-1].gradients["blocks.1.mlp"] = 0.2
    spike = Spike(95, 9.0, 2.0, 0.1, "94", {}, {}, [8.0, 8.5, 8.0])
    (event,) = find_events(evidence(updates=updates, spikes=[spike]))
    assert event.details["cause"] == "the update"
    assert event.details["moved_first"] == ["blocks.1.mlp (x20)"]


def test_sinks_and_massive_activations_are_events_without_a_warning() -> None:
    snapshots = [ScoresAtStep(step, {}, {"sink_rate": rate}) for step, rate in {0: 0.0, 50: 0.4, 100: 0.5}.items()]
    found = Diagnostics([[1.0]], [500.0], [0.2], 1.0, [])
    events = find_events(evidence(snapshots=snapshots, diagnostics={100: found}))
    assert [(event.kind, event.step, event.is_warning) for event in events] == [
        ("sinks", 50, False),
        ("massive_activations", 100, False),
    ]


# What is measured


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal", "alibi"])
@pytest.mark.parametrize("similarity", ["scaled_dot", "gaussian", "cosine"])
def test_positions_have_an_effect_until_they_are_switched_off(position: Any, similarity: Any) -> None:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=30, context_length=24, n_layer=2, n_head=2, n_embd=32, position=position, similarity=similarity
    )
    model = GPT(config)
    assert (position_effect(model, 3) or 0.0) > 1e-3
    if position == "rotary":
        assert model.rotary is not None
        model.rotary[0], model.rotary[1] = 1.0, 0.0
    elif position == "alibi":
        assert model.slopes is not None
        model.slopes.zero_()
    elif position == "learned":
        model.position_embedding.weight.data.zero_()
    else:
        assert model.sinusoidal is not None
        model.sinusoidal.zero_()
    assert position_effect(model, 3) == pytest.approx(0.0, abs=1e-6)


def test_a_model_without_positions_by_its_config_is_not_measured_for_them() -> None:
    model = GPT(GPTConfig(vocab_size=30, context_length=8, n_layer=1, n_head=2, n_embd=8, position="none"))
    assert position_effect(model, 3) is None


def test_head_outputs_are_the_lengths_of_what_each_head_adds() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=30, context_length=8, n_layer=2, n_head=2, n_embd=16, n_kv_head=1, bias=True))
    tokens = torch.randint(30, (2, 9))
    inputs: list[torch.Tensor] = []
    projection: Any = model.blocks[0].attn.proj  # type: ignore[union-attr]
    projection.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    found = diagnose_model(model, tokens)
    z = inputs[0][0].unflatten(-1, (2, 8))  # (T, H, D)
    for head in range(2):
        added = z[:, head] @ projection.weight[:, 8 * head : 8 * head + 8].T
        assert found.head_outputs[0][head] == pytest.approx(float(added.detach().norm(dim=-1).mean()), rel=1e-4)
    assert [part[:2] for part in found.losses] == [(n, n) for n in range(1, 9)]
    assert len(found.largest_activations) == 2


def test_update_ratios_are_those_of_the_whole_matrices_where_these_are_small_and_close_to_them_elsewhere() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=64, context_length=8, n_layer=1, n_head=2, n_embd=96))
    old = {name: value.clone() for name, value in model.state_dict().items()}
    updates = UpdateRatios(model)
    before = updates.sample()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    ratios, _ = updates.ratios_and_gradients(before)
    assert list(ratios) == ["token_embedding", "blocks.0.attn", "blocks.0.mlp", "lm_head"]
    new = model.state_dict()
    for part, ratio in ratios.items():
        names = [name for name in new if part_of(name) == part and new[name].ndim == 2]
        change = sum(float((new[name] - old[name]).square().sum()) for name in names) ** 0.5
        size = sum(float(old[name].square().sum()) for name in names) ** 0.5
        assert ratio == pytest.approx(change / size, rel=0.1)


def test_what_is_kept_of_a_long_run_is_bounded(tmp_path: Path) -> None:
    follower = Diagnosis(RunFolder(tmp_path), Config(), SimpleNamespace(newest_spike=None), SimpleNamespace(), None)  # type: ignore[arg-type]
    follower.updates = UpdateRatios(GPT(GPTConfig(vocab_size=8, context_length=4, n_layer=1, n_head=1, n_embd=4)))
    module: Any = SimpleNamespace(grad_norm=1.0, step_loss=1.0)
    for step in range(10, 8000, 10):
        follower._before = follower.updates.sample()
        follower._follow(None, module, step)  # type: ignore[arg-type]
    steps = [update.step for update in follower.evidence.updates]
    assert len(steps) <= MOST_UPDATES
    assert steps[-100:] == [*range(7000, 8000, 10)]
    assert steps[0] == 10


def test_an_alert_that_wandb_refuses_ends_nothing() -> None:
    class Broken(WandbLogger):
        def __init__(self) -> None:
            pass

        @property
        def experiment(self) -> Any:
            raise RuntimeError("nobody answers")

    sent: list[dict[str, str]] = []

    class Working(Broken):
        @property
        def experiment(self) -> Any:
            return SimpleNamespace(alert=lambda **given: sent.append(given))

    with pytest.warns(UserWarning, match="nobody answers"):
        alert([Broken(), Working()], "x" * 100, "text", warn=True)
    assert sent == [{"title": "x" * 64, "text": "text", "level": "WARN"}]


def test_a_run_resumes_beside_damaged_and_foreign_snapshots(tmp_path: Path) -> None:
    config = small_settings(tmp_path, attention={})
    run = train(config)
    for step in (1, 2):
        run.snapshot(step).write_bytes(b"damaged")
    np.savez(run.snapshot(4), step=4, score_names=np.frombuffer(b'["induction"]', np.uint8), scores=np.zeros((1, 3, 3)))
    (run.path / "attention" / "step_mine.npz").write_bytes(b"mine")
    longer = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_steps=18))
    assert diagnosis_of(train(longer, run.path))["step"] == 18
