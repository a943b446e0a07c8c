"""A loss or gradient that is not finite never reaches the optimizer; what then happens is what plain torch would do."""

import copy
import csv
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, FSDPPrecision, MixedPrecision, Precision
from scripts import ROOT, run_script
from small_runs import small_settings, small_text, train_and_die
from test_resume import assert_same_run, metrics

from minigpt.config import Config
from minigpt.data.batches import train_batches
from minigpt.data.open import open_data
from minigpt.data.tokenizers.base import decode
from minigpt.errors import UserError
from minigpt.inspection.capture import attention_hooks
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import attention_scores
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import read_checkpoint, tensors_in
from minigpt.training.anomalies import _rows_again
from minigpt.training.loss import model_loss
from minigpt.training.module import TrainingModule
from minigpt.training.optimizer import follow_schedule, make_optimizer
from minigpt.training.run import filled_in, train

NAN, INF = "nan", "inf"
At = dict[int, tuple[Any, str]]


def settings(tmp_path: Path, at: At, policy: str, *, rank: int | None = None, **sections: Any) -> Config:
    """A run of 12 steps that saves and looks at little, with injections by micro-batch."""
    injection = {"class_path": "injection.Injection", "init_args": {"at": at, "rank": rank}}
    sections["trainer"] = {"callbacks": [injection], "val_check_interval": 1000} | sections.get("trainer", {})
    quiet = {"attention": {"enabled": False}, "sampling": {"prompts": []}, "on_non_finite": policy}
    return small_settings(tmp_path, **(quiet | sections))


def plain_loop(config: Config, skipped: set[int], back_to: dict[int, int] | None = None) -> dict[str, Any]:
    """The run in plain torch, without the steps that are left out; at the others in back_to, from the state of a step.

    Micro-batches of several devices are those of one that accumulates them.
    """
    data = open_data(config.data, quiet=True)
    config = filled_in(config, data)
    n_devices = config.trainer.devices if isinstance(config.trainer.devices, int) else 1
    accumulate, n_steps = config.trainer.accumulate_grad_batches * n_devices, config.trainer.max_steps
    torch.manual_seed(config.seed)
    model = GPT(config.model)
    optimizer = make_optimizer(model, config.optimizer)
    batches = train_batches(config, data, n_batches=accumulate * n_steps)
    average, decay, states = None, config.optimizer.average_decay, {}
    for step in range(1, n_steps + 1):
        follow_schedule(optimizer, config.optimizer, step - 1, (step - 1) / n_steps)
        optimizer.zero_grad()
        for index in range((step - 1) * accumulate, step * accumulate):
            torch.manual_seed((config.seed << 32) + index)
            (model_loss(model, *batches[index]) / accumulate).backward()
        if back_to and step in back_to:
            weights, optimizer_state, average = copy.deepcopy(states[back_to[step]])
            model.load_state_dict(weights)
            optimizer.load_state_dict(optimizer_state)
        elif step not in skipped:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, config.trainer.gradient_clip_val or math.inf)
            optimizer.step()
            if decay is not None:
                now = copy.deepcopy(model.state_dict())
                average = now if average is None else {k: decay * average[k] + (1 - decay) * v for k, v in now.items()}
        states[step] = copy.deepcopy((model.state_dict(), optimizer.state_dict(), average))
    weights, optimizer_state, average = states[n_steps]
    return {"weights": weights, "optimizer": optimizer_state["state"], "average": average}


def assert_is(run: RunFolder, expected: dict[str, Any]) -> None:
    content = read_checkpoint(run.last)
    weights = content["state_dict"]
    if expected["average"] is not None:
        weights = content["current_model_state"]
        assert_equal({k.removeprefix("model."): v for k, v in content["state_dict"].items()}, expected["average"])
    assert_equal({k.removeprefix("model."): v for k, v in weights.items()}, expected["weights"])
    now = content["optimizer_states"][0]["state"]
    assert list(now) == list(expected["optimizer"])
    for index, state in expected["optimizer"].items():
        assert_equal(now[index], state)


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert set(one) == set(two)
    for name, value in two.items():
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(value)), name


def assert_all_finite(run: RunFolder) -> None:
    """Whatever checkpoints there are."""
    for file in run.last.parent.glob("*.ckpt"):
        assert all(tensor.isfinite().all() for tensor in tensors_in(read_checkpoint(file))), file


def report(run: RunFolder, step: int) -> dict[str, Any]:
    def no_constant(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    return json.loads(run.anomaly(step).read_text(), parse_constant=no_constant)


@pytest.mark.parametrize(  # the first step, one in the middle, the last; each value in each place
    ("accumulate", "optimizer", "average", "at"),
    [
        (1, "muon", None, {0: (NAN, "loss"), 5: (INF, "gradient"), 11: (INF, "loss")}),
        (1, "adamw", 0.8, {0: (INF, "loss"), 6: (NAN, "gradient"), 11: (INF, "gradient")}),
        (2, "adamw", None, {0: (INF, "gradient"), 13: (NAN, "loss"), 22: (NAN, "gradient")}),
        (2, "muon", 0.8, {1: (NAN, "gradient"), 12: (INF, "loss"), 23: (NAN, "loss")}),
    ],
)
def test_a_skipped_step_leaves_weights_optimizer_and_average_as_if_it_had_never_been(
    accumulate: int, optimizer: str, average: float | None, at: At, tmp_path: Path
) -> None:
    config = settings(
        tmp_path,
        at,
        "skip",
        model={"dropout": 0.1},
        trainer={"accumulate_grad_batches": accumulate},
        optimizer={"name": optimizer, "average_decay": average},
        checkpoint_every_n_steps=1,
        keep_checkpoints=20,
    )
    run = train(config)
    skipped = {batch // accumulate + 1 for batch in at}
    assert_is(run, plain_loop(config, skipped))
    assert len(run.all_earlier) == 11
    assert_all_finite(run)
    assert {step for step in range(1, 13) if run.anomaly(step).exists()} == skipped
    rows = [row for row in metrics(run) if row["learning_rate"]]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    bad_losses = {batch // accumulate + 1 for batch, (_, where) in at.items() if where == "loss"}
    for row in rows:
        # A step's other micro-batch has a loss that counts.
        assert bool(row["train/loss"]) == (accumulate == 2 or int(row["step"]) not in bad_losses)
        assert not row["train/loss"] or math.isfinite(float(row["train/loss"]))


@pytest.mark.slow  # each step by itself; the quick suite has the first, some in the middle and the last
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_whichever_step_it_is_in_nothing_that_is_not_finite_is_saved(value: str, where: str, tmp_path: Path) -> None:
    for step in range(1, 13):
        at: At = {step - 1: (value, where)}
        config = settings(tmp_path, at, "skip", checkpoint_every_n_steps=1, keep_checkpoints=20)
        run = train(config)
        assert_is(run, plain_loop(config, {step}))
        assert len(run.all_earlier) == 11
        assert_all_finite(run)
        with pytest.raises(UserError, match=f"the {where} of step {step} is not finite"):
            train(settings(tmp_path, at, "stop", checkpoint_every_n_steps=1, keep_checkpoints=20, name=f"stop{step}"))
        stopped = RunFolder(tmp_path / "runs" / f"stop{step}")
        assert [file.exists() for file in (stopped.last, stopped.anomaly(step))] == [step > 1, True]
        assert_all_finite(stopped)


def test_a_logged_loss_is_the_mean_of_those_that_are_finite(tmp_path: Path) -> None:
    each = metrics(train(settings(tmp_path, {5: (NAN, "loss")}, "skip")))
    together = metrics(train(settings(tmp_path, {5: (NAN, "loss")}, "skip", trainer={"log_every_n_steps": 4})))
    losses = [float(row["train/loss"]) for row in each if row["step"] in {"5", "7", "8"} and row["train/loss"]]
    assert len(losses) == 3
    assert float(next(row for row in together if row["step"] == "8")["train/loss"]) == pytest.approx(
        sum(losses) / 3, rel=1e-6
    )


@pytest.mark.parametrize(
    ("at", "step", "what"),
    [
        ({0: (NAN, "loss")}, 1, "the loss of step 1 is not finite"),
        ({11: (INF, "gradient")}, 6, "the gradient of step 6 is not finite"),
        ({22: (INF, "loss"), 23: (NAN, "gradient")}, 12, "the loss and the gradient of step 12 are not finite"),
    ],
)
def test_the_run_stops_before_the_step_and_says_where_and_how_to_go_on(
    at: At, step: int, what: str, tmp_path: Path
) -> None:
    trainer = {"accumulate_grad_batches": 2}
    with pytest.raises(UserError) as caught:
        train(settings(tmp_path, at, "stop", trainer=trainer, checkpoint_every_n_steps=2))
    run = RunFolder(tmp_path / "runs" / "small")
    assert str(caught.value).startswith(f"{what}; the run stops before the step is taken; report: {run.anomaly(step)}")
    assert "--on_non_finite skip" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert report(run, step)["not_finite"] == what.split(" of ")[0]
    assert run.last.exists() == (step > 1)
    assert (f"{run.last} was saved before that" in str(caught.value)) == run.last.exists()
    assert_all_finite(run)
    if step == 6:
        assert read_checkpoint(run.last)["global_step"] == 4
        config = settings(tmp_path, at, "skip", trainer=trainer, checkpoint_every_n_steps=2)
        train(config, run.path)  # as the line says
        assert_is(run, plain_loop(config, {6}))


@pytest.mark.parametrize(
    ("policy", "every", "accumulate", "killed_at"),
    [
        ("skip", 5, 1, 9),  # the skipped step is done again
        ("skip", 7, 2, 9),  # the checkpoint is of the skipped step itself, in the midst of a logged mean
        ("rollback", 5, 1, 9),  # the way back is gone again
        ("rollback", 9, 1, 10),  # and behind it
    ],
)
def test_a_run_killed_around_a_step_that_was_left_out_goes_on_bit_for_bit(
    policy: str, every: int, accumulate: int, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: At = {7 * accumulate - 1: (NAN, "loss")}
    trainer = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 4, "val_check_interval": 6 * accumulate}
    optimizer = {"average_decay": 0.8}
    config = settings(tmp_path, at, policy, trainer=trainer, optimizer=optimizer, checkpoint_every_n_steps=every)
    straight = train(config)
    train_and_die(config, killed_at * accumulate)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    train(config, resumed.path)
    assert_same_run(straight, resumed)
    one, two = (read_checkpoint(run.last)["current_model_state"] for run in (straight, resumed))
    assert_equal(one, two)
    assert resumed.anomaly(7).exists()


@pytest.mark.parametrize(("optimizer", "average"), [("muon", 0.8), ("adamw", None)])
def test_a_run_goes_back_to_its_last_checkpoint_and_on_behind_the_bad_batch(
    optimizer: str, average: float | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    at: At = {7: (NAN, "gradient"), 8: (INF, "loss"), 10: (INF, "gradient")}
    config = settings(
        tmp_path,
        at,
        "rollback",
        optimizer={"name": optimizer, "average_decay": average},
        checkpoint_every_n_steps=5,
    )
    run = train(config)
    assert_is(run, plain_loop(config, set(), {8: 5, 9: 5, 11: 10}))
    assert_all_finite(run)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert said[0] == (
        "note: the gradient of step 8 is not finite; training continues after it with the weights and optimizer "
        f"state of step 5; report: {run.anomaly(8)}"
    )
    assert len(said) == 3
    assert [int(row["step"]) for row in metrics(run) if row["learning_rate"]] == list(range(1, 13))


@pytest.mark.parametrize(
    ("policy", "at", "n_taken", "why"),
    [
        ("rollback", {1: (NAN, "loss")}, 1, "because there is no checkpoint yet to roll back to"),
        (
            "rollback",
            dict.fromkeys(range(6, 12), (NAN, "loss")),
            9,
            "the run has already rolled back to step 5 3 times",
        ),
        (
            "skip",
            dict.fromkeys(range(1, 12), (INF, "gradient")),
            10,
            "because it would be the 10th skipped step in a row",
        ),
    ],
)
def test_what_does_not_help_is_not_done_for_ever(policy: str, at: At, n_taken: int, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why) as caught:
        train(settings(tmp_path, at, policy, checkpoint_every_n_steps=5))
    assert f"of step {n_taken + 1} " in str(caught.value)
    assert_all_finite(RunFolder(tmp_path / "runs" / "small"))


def two_sources(tmp_path: Path) -> list[str]:
    """Folders of small documents, the second's in capitals."""
    for name in ("small", "capital"):
        (tmp_path / name).mkdir()
        for i, line in enumerate(small_text(60).splitlines()):
            text = line * (1 + i % 3)
            (tmp_path / name / f"{i:03}.txt").write_text(text.upper() if name == "capital" else text)
    return [str(tmp_path / name) for name in ("small", "capital")]


def test_a_report_names_the_documents_the_layers_and_the_scores(tmp_path: Path) -> None:
    sources = two_sources(tmp_path)
    data = {"source": sources, "weights": [1.0, 1.0]}
    at: At = {4: (NAN, "loss"), 5: (INF, "gradient")}
    config = settings(tmp_path, at, "skip", data=data, trainer={"accumulate_grad_batches": 2})
    found = report(train(config), 3)
    assert {key: found[key] for key in ("step", "not_finite", "policy", "action")} == {
        "step": 3,
        "not_finite": "the loss and the gradient",
        "policy": "skip",
        "action": "the step is skipped",
    }
    (rank,) = found["ranks"]
    assert rank["gradient_norm"] == rank["gradient_norms"]["blocks.1"] == "inf"
    assert set(rank["gradient_norms"]) == {"token_embedding", "blocks.0", "blocks.1", "final_norm", "lm_head"}
    assert all(norm > 0 for name, norm in rank["gradient_norms"].items() if name != "blocks.1")
    assert rank["parameters_not_finite"] == ["blocks.1.mlp.proj.weight"]
    assert [batch["number"] for batch in rank["micro_batches"]] == [4, 5]
    assert rank["micro_batches"][0]["loss"] == "nan"
    assert rank["micro_batches"][1]["loss"] == pytest.approx(
        np.mean([row["loss_without_dropout"] for row in rank["micro_batches"][1]["rows"]]), rel=1e-5
    )
    assert np.shape(rank["micro_batches"][0]["largest_scores"]) == (2, 2)
    prepared = open_data(config.data, quiet=True)
    tokens, targets = train_batches(filled_in(config, prepared), prepared, n_batches=24)[4]
    for row, own, own_targets in zip(rank["micro_batches"][0]["rows"], tokens, targets, strict=True):
        assert row["text"] == decode(prepared.tokenizer, [*own.tolist(), int(own_targets[-1])])
        letters = row["text"].replace("<|endoftext|>", "")
        assert row["source"] == sources[letters == letters.upper()]


def test_the_largest_scores_of_a_batch_are_those_of_all_its_scores(tmp_path: Path) -> None:
    config = small_settings(tmp_path, model={"vocab_size": 50, "context_length": 300})
    torch.manual_seed(1)
    model = GPT(config.model)
    tokens = torch.randint(0, 50, (3, 300))
    expected: dict[int, list[float]] = {}

    def hook(layer: int, query: Any, key: Any, value: Any, how: Any) -> None:
        scores = attention_scores(query, key, how)
        expected[layer] = scores.masked_fill(scores.isneginf(), 0).abs().amax(dim=(0, 2, 3)).tolist()

    with torch.no_grad(), attention_hooks(model, hook):
        model(tokens)
    found, rows = _rows_again(model, tokens, tokens)
    np.testing.assert_allclose(found, [expected[0], expected[1]], rtol=1e-5)
    assert len(rows) == 3
    model.blocks[1].attn.qkv.weight.data[0] = math.inf
    assert _rows_again(model, tokens, tokens)[0][1][0] in {"nan", "inf"}


# Spikes


def spikes(run: RunFolder) -> list[dict[str, str]]:
    with run.spikes.open() as file:
        return list(csv.DictReader(file))


def test_a_spike_is_noted_changes_nothing_and_is_noted_again_by_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    at: At = {60: (20.0, "loss"), 160: (20.0, "loss"), 172: (60.0, "loss")}  # the first before there are enough
    trainer = {"max_steps": 90, "accumulate_grad_batches": 2, "log_every_n_steps": 10}
    config = settings(tmp_path, at, "stop", trainer=trainer, checkpoint_every_n_steps=40)
    straight = train(config)
    rows = spikes(straight)
    assert [(row["step"], row["micro_batches"]) for row in rows] == [("81", "160 161"), ("87", "172 173")]
    assert float(rows[0]["loss"]) > float(rows[0]["mean"]) + 6 * float(rows[0]["std"])
    assert capsys.readouterr().out.count("is a spike") == 2
    assert_is(straight, plain_loop(config, set()))
    train_and_die(config, 176)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    assert len(spikes(resumed)) == 2  # of which the checkpoint knows one
    train(config, resumed.path)
    assert spikes(resumed) == rows


# Several processes


def train_on_two(
    tmp_path: Path, at: At, policy: str, rank: int, strategy: str = "ddp", **sections: Any
) -> tuple[Config, Any]:
    trainer = {"devices": 2, "strategy": strategy}
    if strategy == "fsdp2":  # clipped by a norm of shares, it would be rounded otherwise
        trainer["gradient_clip_val"] = None
        sections |= {"optimizer": {"name": "adamw"}, "model": {"n_embd": 32}}
    config = settings(tmp_path, at, policy, rank=rank, trainer=trainer, data={"batch_size": 2}, **sections)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    here = os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)])
    return config, run_script("train.py", "--config", recipe, env=os.environ | {"PYTHONPATH": here})


@pytest.mark.parametrize(
    ("policy", "rank", "strategy"),
    [
        ("skip", 1, "ddp"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("rollback", 0, "ddp"), ("skip", 0, "fsdp2"), ("rollback", 1, "fsdp2")]
        ),
    ],
)
def test_what_one_of_two_processes_finds_is_left_out_by_both(
    policy: str, rank: int, strategy: str, tmp_path: Path
) -> None:
    # The gradient's behind the all-reduce: the other one's is finite.
    at: At = {3: (NAN, "loss")} | ({6: (INF, "gradient")} if strategy == "ddp" else {6: (NAN, "loss")})
    config, result = train_on_two(tmp_path, at, policy, rank, strategy, checkpoint_every_n_steps=3)
    assert result.returncode == 0, result.stderr
    run = RunFolder(tmp_path / "runs" / "small")
    if policy == "skip":
        assert_is(run, plain_loop(config, {4, 7}))
    else:
        assert_is(run, plain_loop(config, set(), {4: 3, 7: 6}))
    assert_all_finite(run)
    of_ranks = report(run, 4)["ranks"]
    assert [(each["rank"], [batch["number"] for batch in each["micro_batches"]]) for each in of_ranks] == [
        (0, [6]),
        (1, [7]),
    ]
    assert [each["micro_batches"][0]["loss"] == "nan" for each in of_ranks] == [rank == 0, rank == 1]
    rows = [row for row in metrics(run) if row["learning_rate"]]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert all(row["train/loss"] for row in rows)  # the other one's is finite


def test_both_of_two_processes_stop_and_one_line_says_why(tmp_path: Path) -> None:
    _, result = train_on_two(tmp_path, {5: (NAN, "loss")}, "stop", 1, checkpoint_every_n_steps=3)
    assert result.returncode == 2
    assert result.stderr.count("the loss of step 6 is not finite") == 1
    assert "Traceback" not in result.stderr
    run = RunFolder(tmp_path / "runs" / "small")
    assert read_checkpoint(run.last)["global_step"] == 3
    assert_all_finite(run)


# A gradient scaler


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_scalers_overflow_is_its_own_affair_but_a_loss_that_is_not_finite_is_left_out(
    optimizer: str, tmp_path: Path
) -> None:
    """fp16 is for GPUs; Lightning's plugin runs on a CPU all the same."""
    plugin = {
        "class_path": "lightning.pytorch.plugins.precision.MixedPrecision",
        "init_args": {"precision": "16-mixed", "device": "cpu"},
    }
    at: At = {4: (INF, "gradient"), 7: (NAN, "loss")}
    trainer = {"plugins": [plugin], "precision": None, "gradient_clip_val": 0.5}
    config = settings(
        tmp_path,
        at,
        "skip",
        trainer=trainer,
        optimizer={"name": optimizer},
        checkpoint_every_n_steps=1,
        keep_checkpoints=20,
    )
    run = train(config)
    assert [step for step in range(1, 13) if run.anomaly(step).exists()] == [8]
    assert_all_finite(run)
    states = {step: read_checkpoint(file)["state_dict"] for step, file in run.all_earlier.items()}
    same = [all(torch.equal(v, states[n + 1][k]) for k, v in states[n].items()) for n in range(1, 11)]
    assert [n + 2 for n, each in enumerate(same) if each] == [5, 8]


@pytest.mark.parametrize(
    ("plugin", "is_ours"),
    [
        (Precision(), True),
        (MixedPrecision("bf16-mixed", "cpu"), True),
        (MixedPrecision("16-mixed", "cpu"), False),
        (FSDPPrecision("32-true"), False),
        (object.__new__(DeepSpeedPrecision), False),  # which is made only where DeepSpeed is installed
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_norm_that_is_there_clips_only_where_torchs_own_would_have(plugin: Precision, is_ours: bool) -> None:
    def hand_over(*_: Any) -> None:
        gradient.fill_(7.0)

    gradient = torch.tensor([3.0, 4.0])
    parameter = SimpleNamespace(grad=gradient)
    module = SimpleNamespace(
        trainer=SimpleNamespace(precision_plugin=plugin),
        clip_gradients=hand_over,
        skipped=False,
        grad_norm=5.0,
        _total_norm=torch.tensor(5.0),
        model=SimpleNamespace(parameters=lambda: [parameter]),
        run_config=Config(),
    )
    TrainingModule.configure_gradient_clipping(module, None, 1.0, None)  # type: ignore[arg-type]
    expected = torch.tensor([0.6, 0.8]) if is_ours else torch.tensor([7.0, 7.0])
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)
