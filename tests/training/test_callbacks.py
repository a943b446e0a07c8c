"""What happens beside training, in this process."""

import csv
import functools
import itertools
import json
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small_runs import PowerCutError, small_settings, with_trainer

from minigpt.cli.parsing import parse_options
from minigpt.command_line import command
from minigpt.config import Config, InspectConfig, SampleConfig
from minigpt.data.batches import n_val_targets
from minigpt.data.open import open_data
from minigpt.data.relations import Relation, to_json_line
from minigpt.data.tokenizers.base import Tokenizer
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.inspection.probes import Probe
from minigpt.inspection.relations import Link, RelationTally
from minigpt.inspection.snapshot import Snapshot, step_of, thinned
from minigpt.model.compiling import CompiledWithFallback
from minigpt.pages.model_report import inspect_runs
from minigpt.pages.run_record import curves_of, metric_rows
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model, read_checkpoint
from minigpt.training.arithmetic import flops_per_token
from minigpt.training.callbacks import Metrics
from minigpt.training.console import _prompt_arguments
from minigpt.training.module import TrainingModule
from minigpt.training.run import filled_in, train


def test_looking_changes_nothing_final_weights_are_bit_identical(tmp_path: Path) -> None:
    seen = train(small_settings(tmp_path, model={"dropout": 0.2}, trainer={"val_check_interval": 2}, attention={}))
    blind = train(
        small_settings(
            tmp_path,
            model={"dropout": 0.2},
            trainer={"val_check_interval": 12},
            attention={"enabled": False},
            sampling={"prompts": []},
        )
    )
    one, two = read_checkpoint(seen.last)["state_dict"], read_checkpoint(blind.last)["state_dict"]
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not blind.attention_page.exists()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_looking_every_so_many_steps_changes_nothing_either(accumulated: int, tmp_path: Path) -> None:
    runs = [
        train(
            small_settings(
                tmp_path,
                model={"dropout": 0.2},
                trainer={"val_check_interval": 8, "accumulate_grad_batches": accumulated},
                attention=attention,
            )
        )
        for attention in ({"every_n_steps": 5}, {"enabled": False})
    ]
    assert [step_of(path) for path in runs[0].snapshots] == [0, 1, 2, 4, 5, 10, 12]
    one, two = (read_checkpoint(run.last)["state_dict"] for run in runs)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_texts_with_ground_truth_are_looked_at_with_their_own_relations(tmp_path: Path) -> None:
    data = {"source": "references", "max_documents": 300, "tokenizer": "chars"}
    sections = {"model": {"context_length": 200}, "attention": {"max_tokens": 200}, "sampling": {"prompts": []}}
    run = train(small_settings(tmp_path, data=data, **sections))
    snapshot = Snapshot.load(run.snapshot(12))
    assert snapshot.tokens[0] == "<|endoftext|>"
    assert {name for name in snapshot.scores if name.startswith("relation: ")} >= {"relation: nearest"}
    assert "nearest" in run.attention_page.read_text()
    seen = inspect_runs(InspectConfig(run=str(run.path)))
    assert {"nearest", "pronoun"} <= seen.relations.keys(), "inspected again with the same relations"
    name = "relation: nearest"
    np.testing.assert_allclose(seen.snapshot.scores[name], snapshot.scores[name], atol=1e-5)


def test_repeats_show_whether_a_head_copies_and_distance_does_not_explain_it(tmp_path: Path) -> None:
    data = {"source": "repeats", "max_documents": 300, "tokenizer": "chars", "mode": "examples"}
    run = train(
        small_settings(tmp_path, data=data, model={"context_length": 128}, sampling={"prompts": []}, attention={})
    )
    probe, snapshot = json.loads(run.probe.read_text()), Snapshot.load(run.snapshot(12))
    assert "relation: copy" in snapshot.scores
    (copies,) = {link[0] for link in probe["links"]}
    assert copies == "copy"
    # A perfect induction head on the measured windows: the score it would have.
    model = load_model(run.path)
    tally = RelationTally()
    for window, links in zip(*windows_of(model.tokenizer, probe), strict=True):
        weights = np.zeros((len(window), len(window)), dtype=np.float32)
        for query in range(window.index(-1) if -1 in window else len(window)):
            earlier = [key for key in range(1, query + 1) if window[key - 1] == window[query]]
            weights[query] = np.eye(len(window))[earlier[-1] if earlier else 0]
        tally.add(weights[None, None], links)
    assert tally.scores()["copy"].n_links > 10
    assert tally.scores()["copy"].lift > 0.4


def windows_of(tokenizer: Tokenizer, saved: dict[str, Any]) -> tuple[list[list[int]], Sequence[Sequence[Link]]]:
    """The measured windows of a saved probe, and their links."""
    links = [Link(name, query, tuple(keys)) for name, query, *keys in saved["links"]]
    probe = Probe.of(tokenizer, saved["tokens"], 128, 96, known=links, one_by_one=True)
    return probe.windows[:, :-1].tolist(), probe.window_links


def test_relations_of_ones_own_are_looked_at_while_training(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(to_json_line("1 plus 2 is 3;", [Relation("sum", (12, 13), (0, 1))]) + "\n")
    run = train(small_settings(tmp_path, attention={"relations": str(file)}))
    assert Snapshot.load(run.snapshot(12)).tokens == ("<|endoftext|>", *"1 plus 2 is")
    file.write_text("\n")
    with pytest.raises(UserError, match=r"attention.relations=.*mine.jsonl: has no text"):
        train(small_settings(tmp_path, attention={"relations": str(file)}))


@pytest.mark.parametrize(("interval", "accumulated"), [(3, 1), (6, 2), (0.25, 1)])
def test_the_attention_history_begins_at_step_0_and_has_a_snapshot_for_each_validation(
    interval: float, accumulated: int, tmp_path: Path
) -> None:
    trainer = {"val_check_interval": interval, "accumulate_grad_batches": accumulated}
    run = train(small_settings(tmp_path, trainer=trainer, attention={}))
    assert [step_of(path) for path in run.snapshots] == [0, 1, 2, 3, 6, 9, 12]
    snapshots = [Snapshot.load(run.snapshot(step)) for step in (0, 3, 6, 9, 12)]
    assert {snapshot.weights.shape for snapshot in snapshots} == {(2, 2, 12, 12)}
    assert snapshots[0].tokens == snapshots[3].tokens
    assert all((one.weights != two.weights).any() for one, two in itertools.pairwise(snapshots))


def test_snapshots_are_closer_at_the_start_of_a_run_and_so_are_those_that_are_shown() -> None:
    steps = [0, *(2**i for i in range(8)), *range(250, 5001, 250)]
    assert [steps[i] for i in thinned(steps, 12)] == [0, 4, 16, 64, 250, 750, 1250, 2000, 2750, 3500, 4250, 5000]
    assert thinned([0], 2) == [0]
    assert thinned([0, 1, 2], 12) == [0, 1, 2]


def test_a_long_history_is_thinned_with_the_first_and_the_newest_kept(tmp_path: Path, monkeypatch: Any) -> None:
    shown: list[list[int]] = []

    def render(snapshots: list[Snapshot], **_: object) -> str:
        shown.append([snapshot.step for snapshot in snapshots])
        return ""

    monkeypatch.setattr("minigpt.training.attention_maps.render_page", render)
    train(small_settings(tmp_path, trainer={"val_check_interval": 1}, attention={"max_snapshots": 4}))
    assert shown[2] == [0, 1, 2, 3]
    assert len(shown[-1]) == 4
    assert shown[-1][0] == 0
    assert shown[-1][-1] == 12


def test_the_last_step_is_validated_whatever_the_interval(tmp_path: Path) -> None:
    run = train(small_settings(tmp_path, trainer={"val_check_interval": 5}))
    with run.metrics.open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == ["5", "10", "12"]


def rows_of(run: RunFolder) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def test_train_and_validation_of_a_step_share_a_row(tmp_path: Path) -> None:
    rows = rows_of(train(small_settings(tmp_path, trainer={"val_check_interval": 6, "log_every_n_steps": 2})))
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "10", "12"]
    assert [row["step"] for row in rows if row["val/loss"] and row["train/loss"] and row["learning_rate"]] == [
        "6",
        "12",
    ]


def test_a_step_without_a_train_loss_has_a_row_of_its_validation_alone(tmp_path: Path) -> None:
    rows = rows_of(train(small_settings(tmp_path, trainer={"val_check_interval": 5, "log_every_n_steps": 4})))
    assert [(row["step"], bool(row["train/loss"]), bool(row["val/loss"])) for row in rows] == [
        ("4", True, False),
        ("5", False, True),
        ("8", True, False),
        ("10", False, True),
        ("12", True, True),
    ]


def test_a_train_loss_is_on_disk_before_the_validation_of_its_step_and_is_not_lost_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise PowerCutError

    config = small_settings(tmp_path, trainer={"val_check_interval": 6})
    with monkeypatch.context() as patched, pytest.raises(PowerCutError):
        patched.setattr(Metrics, "on_validation_start", die)
        train(config)
    run = RunFolder(tmp_path / "runs" / "small")
    assert [(row["step"], row["val/loss"]) for row in rows_of(run)] == [(str(step), "") for step in range(1, 7)]
    with monkeypatch.context() as patched, pytest.raises(PowerCutError):
        patched.setattr("minigpt.training.rows.write_atomically", die)  # in the middle of adding the validation
        train(config)
    assert rows_of(RunFolder(tmp_path / "runs" / "small-2"))[-1]["train/loss"]


def test_the_mfu_is_logged_where_the_devices_peak_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {row["perf/mfu"] for row in rows_of(train(small_settings(tmp_path)))} == {""}, "a CPU's peak is not known"
    monkeypatch.setattr("minigpt.training.callbacks.peak_flops", lambda *_: 1e12)
    run = train(small_settings(tmp_path, name="known"))
    config, rows = load_model(run.path).model.config, rows_of(run)
    assert rows
    for row in rows:
        flops = float(row["perf/tokens_per_second"]) * flops_per_token(config)
        assert float(row["perf/mfu"]) == pytest.approx(flops / 1e12, rel=1e-3)


def test_a_run_of_an_earlier_version_goes_on_and_keeps_its_two_rows_of_a_step(tmp_path: Path) -> None:
    config = small_settings(tmp_path, trainer={"max_steps": 6, "val_check_interval": 6})
    run = train(config)
    header, *lines = (",".join(line.split(",")[:9]) for line in run.metrics.read_text().splitlines())
    assert header.endswith("perf/tokens_per_second"), "how much of the samples is copied was not measured"
    step, tokens, seconds, loss, val, bits, *rest = lines[-1].split(",")
    lines[-1:] = [",".join([step, tokens, seconds, loss, "", "", *rest]), f"{step},{tokens},{seconds},,{val},{bits},,,"]
    run.metrics.write_text("\r\n".join([header, *lines, ""]))
    train(with_trainer(config, max_steps=8), run.path)
    rows = rows_of(run)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6", "6", "7", "8"]
    assert [bool(row["samples/longest_copied_tokens"]) for row in rows] == [False] * 8 + [True]
    assert curves_of((int(row["step"]), row) for row in metric_rows(run.metrics, []))["val/loss"][6] == float(val)


def test_a_capped_validation_says_beside_its_loss_of_how_many_tokens_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = small_settings(tmp_path, data={"max_val_tokens": 100}, trainer={"max_steps": 2})
    run = train(config)
    (row,) = (row for row in rows_of(run) if row["val/loss"])
    assert row["val/tokens"] == "96"
    n_tokens = n_val_targets(open_data(config.data).val, "packed")
    assert n_tokens > 300
    out = capsys.readouterr().out
    assert len(re.findall(rf"val/bits_per_byte \d\.\d+ \(on 96 of {n_tokens} tokens\)", out)) == 1
    assert len(re.findall(rf"bits per byte \(on 96 of {n_tokens} tokens\)", out)) == 1


def test_an_interval_beyond_the_end_means_at_the_end(tmp_path: Path) -> None:
    run = train(small_settings(tmp_path, trainer={"val_check_interval": 1000}))
    assert run.samples(12).is_file()


def test_best_is_the_best_and_last_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse_later = iter([2.0, 1.0, 3.0])
    real_end = TrainingModule.on_validation_epoch_end

    def end(self: TrainingModule) -> None:
        real_end(self)
        self.val_loss = next(worse_later)

    monkeypatch.setattr(TrainingModule, "on_validation_epoch_end", end)
    run = train(small_settings(tmp_path, trainer={"val_check_interval": 4}))
    assert read_checkpoint(run.best)["global_step"] == 8
    assert read_checkpoint(run.last)["global_step"] == 12


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = TrainingModule.training_step

    def step(self: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = real_step(self, batch, batch_idx)
        if batch_idx == 7:
            loss = loss * float("nan")
            self.micro_batches[-1] = self.micro_batches[-1]._replace(loss=loss.detach())
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", step)
    with pytest.raises(UserError, match="the loss and the gradient of step 8 are not finite"):
        train(small_settings(tmp_path, trainer={"log_every_n_steps": 4}))
    run = tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(run)["global_step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in read_checkpoint(run)["state_dict"].values())


def test_weights_that_became_infinite_in_the_last_step_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of that step was finite still, and nothing was validated."""
    real_end = Metrics.on_train_batch_end

    def end(self: Metrics, trainer: Any, module: TrainingModule, *rest: Any) -> None:
        real_end(self, trainer, module, *rest)
        if trainer.global_step == 4:
            module.model.final_norm.weight.data[0] = float("inf")

    monkeypatch.setattr(Metrics, "on_train_batch_end", end)
    with pytest.raises(UserError, match="a weight is NaN or infinite at step 4"):
        train(small_settings(tmp_path, checkpoint_every_n_steps=2))
    assert read_checkpoint(tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_activations_that_overflow_between_two_losses_are_reported_as_the_loss_is(tmp_path: Path) -> None:
    """Weights are finite after the first step, and its attention is recorded: the next loss is not finite."""
    config = small_settings(
        tmp_path, optimizer={"learning_rate": 1e30, "warmup_steps": 0, "name": "adamw"}, attention={}
    )
    with pytest.raises(UserError, match="the loss and the gradient of step 2 are not finite"):
        train(config)
    assert (tmp_path / "runs" / "small" / "attention" / "step_000000.npz").is_file()


def test_a_validation_that_is_not_finite_stops_the_run_before_anything_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_start = TrainingModule.on_validation_epoch_start

    def start(self: TrainingModule) -> None:
        real_start(self)
        if self.global_step == 12:
            self.model.final_norm.weight.data[0] = float("inf")

    monkeypatch.setattr(TrainingModule, "on_validation_epoch_start", start)
    with pytest.raises(UserError, match="val/loss is NaN or infinite at step 12"):
        train(small_settings(tmp_path))
    assert read_checkpoint(tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt")["global_step"] == 6


def test_one_batch_is_overfitted_when_asked(tmp_path: Path) -> None:
    config = small_settings(
        tmp_path,
        model={"n_embd": 64},
        optimizer={"learning_rate": 1e-2, "schedule": "constant"},
        trainer={"overfit_batches": 1, "max_steps": 150, "val_check_interval": 150},
    )
    run = train(config)
    with run.metrics.open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["val/loss"]) < 0.05


def test_tensorboard_gets_scalars_image_and_samples(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(small_settings(tmp_path, trainer={"logger": "tensorboard"}, attention={}))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/loss", "val/bits_per_byte"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val/loss")] == [6, 12]
    assert {"attn/grid", "attn/scores"} <= set(events.Tags()["images"])
    assert {"attn/entropy_mean", "attn/probe_seconds", "attn/second_copy_loss"} <= set(events.Tags()["scalars"])
    texts = {name: events.Tensors(name) for name in events.Tags()["tensors"]}
    heads = next(text for name, text in texts.items() if name.startswith("attn/heads"))
    (text,) = heads[-1].tensor_proto.string_val
    assert [line.split("|")[1].strip() for line in text.decode().splitlines()[:3]] == ["layer", "-----", "0"]
    assert any("samples" in name for name in texts)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    config = small_settings(tmp_path, sampling={"prompts": ["much too long for a context of sixteen"]})
    with pytest.raises(UserError, match="sampling.prompts.*reads at most 16"):
        train(config)
    assert not (tmp_path / "runs" / "small").exists()


def test_prompts_that_the_user_leaves_out_are_beginnings_of_the_val_text_and_stay_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Однажды в студёную зимнюю пору\n" * 40)
    config = small_settings(
        tmp_path, data={"tokenizer": "chars"}, model={"context_length": 48}, sampling={"prompts": None}
    )
    run = train(config)
    saved = Config.from_dict(yaml.safe_load(run.config.read_text()))
    prompts = saved.sampling.prompts or []
    assert "Однажды в" in prompts
    assert filled_in(config, open_data(config.data)).sampling == saved.sampling, "the same where the run goes on"
    for step in (6, 12):
        assert [f"prompt {prompt!r}\n{prompt}" in run.samples(step).read_text() for prompt in prompts] == [True] * 3
    assert Writer.load(run.path).first_prompt == prompts[0]


@pytest.mark.parametrize(
    "prompt", ["def ", 'it\'s "quoted"', "$(echo no) `no` \\", "-x", "--seed 3", "null", "日本", " # a", "!!"]
)
def test_the_printed_prompt_is_what_a_shell_hands_to_sample_py(prompt: str, tmp_path: Path) -> None:
    config = small_settings(tmp_path, sampling={"prompts": [prompt]})
    line = command("sample", "runs/x", *_prompt_arguments(config)).partition("sample")[2].removeprefix(".py")
    assert parse_options(shlex.split(line), SampleConfig) == SampleConfig("runs/x", prompt=prompt)


@pytest.mark.parametrize("prompts", [[], [""], ["\n"], ["\x1b[2J"]])
def test_a_prompt_that_cannot_be_printed_is_left_to_the_default(prompts: list[str], tmp_path: Path) -> None:
    assert _prompt_arguments(small_settings(tmp_path, sampling={"prompts": prompts})) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"sampling": {"prompts": ["1", "日"]}},
            ["sampling.prompts[1]='日': character '日'", "remove sampling.prompts"],
        ),
        ({"attention": {"text": "日"}}, ["attention.text: character '日'", "data.tokenizer bytes"]),
    ],
)
def test_characters_that_only_the_user_asked_for_are_refused_by_the_settings_name(
    settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        train(small_settings(tmp_path, data={"tokenizer": "chars"}, **settings))
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_context_longer_than_the_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("short text\nof a few words\n")
    with pytest.raises(UserError, match="needs 129"):
        train(small_settings(tmp_path, model={"context_length": 128}))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.vocab_size=100: the tokenizer has 257 tokens"):
        train(small_settings(tmp_path, model={"vocab_size": 100}))


def test_a_padded_vocabulary_trains_and_its_padding_is_never_written(tmp_path: Path) -> None:
    run = train(small_settings(tmp_path, model={"vocab_size": 320}))
    assert load_model(run.path).model.token_embedding.weight.shape == (320, 16)
    assert run.samples(12).read_text()


def test_an_error_of_the_function_itself_is_raised_and_not_taken_for_the_compilers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def half(x: torch.Tensor, *, of: float) -> torch.Tensor:
        if of < 0:
            raise ValueError("of is negative")
        return x * of / 2

    monkeypatch.setattr(torch, "compile", lambda function, **_: functools.partial(function))
    run = CompiledWithFallback(half)
    assert run(torch.ones(()), of=4.0) == 2
    with pytest.warns(UserWarning, match="torch.compile failed"), pytest.raises(ValueError, match="of is negative"):
        run(torch.ones(()), of=-1.0)
    assert run(torch.ones(()), of=4.0) == 2


@pytest.mark.parametrize("wrapped", [False, True])
def test_too_little_memory_is_not_taken_for_the_compilers(wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compiled(function: Any, **_: Any) -> Any:
        def call(x: torch.Tensor) -> torch.Tensor:
            if not wrapped:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            try:
                raise RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)")
            except RuntimeError as error:
                raise ValueError("backend failed") from error

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    run = CompiledWithFallback(lambda x: calls.append("uncompiled") or x)
    with warnings.catch_warnings(), pytest.raises((torch.OutOfMemoryError, ValueError)):
        warnings.simplefilter("error")
        run(torch.ones(()))
    assert run.compiles
    assert not calls


def test_too_little_memory_is_one_line_that_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("minigpt.training.module.model_loss", full)
    with pytest.raises(
        UserError, match=r"cpu has too little memory for step 0: .* half of data.batch_size=4 and twice"
    ):
        train(small_settings(tmp_path))


def test_compiling_that_fails_goes_on_uncompiled_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: Any, **_: Any) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no compiler here")

        return call

    plain = train(small_settings(tmp_path))
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="torch.compile failed") as warned:
        run = train(small_settings(tmp_path, compile=True))
    assert len([w for w in warned if "torch.compile" in str(w.message)]) == 1
    one, two = read_checkpoint(plain.last)["state_dict"], read_checkpoint(run.last)["state_dict"]
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"accelerator": "tpu"}, "trainer.accelerator=tpu: "),
        ({"precision": "8-bit"}, "trainer.precision=8-bit: "),
        ({"callbacks": [{"class_path": "no.such.Thing"}]}, "class_path=no.such.Thing"),
        ({"strategy": "telepathy"}, "trainer.strategy=telepathy: "),
    ],
)
def test_what_lightning_refuses_is_one_clear_line(trainer: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        train(small_settings(tmp_path, trainer=trainer))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_callback_of_lightnings_can_be_named_in_the_recipe(tmp_path: Path) -> None:
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "stopping_threshold": 100.0},
    }
    run = train(small_settings(tmp_path, trainer={"callbacks": [stopping]}))
    assert read_checkpoint(run.last)["global_step"] == 6


def test_a_broken_wandb_is_warned_about_and_the_run_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    tried: list[str] = []

    def init(mode: str, **_: Any) -> Any:
        tried.append(mode)
        raise wandb.errors.CommError("nobody answers")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", init)
    with pytest.warns(UserWarning, match="W&B cannot log online .*nobody answers"):
        run = train(small_settings(tmp_path, trainer={"logger": "wandb"}))
    assert tried == ["online", "offline"]
    assert read_checkpoint(run.last)["global_step"] == 12


def test_a_wandb_that_cannot_even_be_set_up_is_warned_about_and_the_run_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def setup(**_: Any) -> None:
        raise ValueError("finish_timeout\n  is no number")

    monkeypatch.setattr(wandb, "setup", setup)
    with pytest.warns(UserWarning, match=r"W&B cannot log \(ValueError: finish_timeout is no number\)"):
        run = train(small_settings(tmp_path, trainer={"logger": "wandb"}))
    assert read_checkpoint(run.last)["global_step"] == 12


@pytest.mark.parametrize(("given", "expected"), [({}, (8, 30)), ({"WANDB_FINISH_TIMEOUT": "600"}, (8, 600))])
def test_waits_for_wandb_are_short_unless_the_users_environment_says_otherwise(
    given: dict[str, str], expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    waits: list[tuple[float, float]] = []

    def init(settings: Any, **_: Any) -> Any:
        merged = wandb.setup().settings.model_copy()
        merged.update_from_settings(settings)
        waits.append((merged.init_timeout, merged.finish_timeout))
        raise wandb.errors.CommError("nobody answers")

    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # so that it reads the environment again
    monkeypatch.setattr(wandb, "init", init)
    with pytest.warns(UserWarning, match="W&B cannot log offline"):
        train(small_settings(tmp_path, trainer={"logger": "wandb"}))
    assert waits == [expected]
    wandb.teardown()
