"""minigpt from Python: settings as keyword arguments, the run that comes back, threads, and interrupted cells."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

import minigpt
from minigpt import api
from minigpt.cli.keywords import words_of
from minigpt.cli.parsing import parse_training
from minigpt.training import progress
from minigpt.training.module import TrainingModule

TINY: dict[str, Any] = {
    "tokenizer": "bytes",
    "model": {"context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 16},
    "batch_size": 4,
    "logger": False,
    "accelerator": "cpu",
    "max_steps": 6,
    "val_check_interval": 3,
    "log_every_n_steps": 1,
    "attention": {"enabled": False},
    "optimizer.warmup_steps": 3,
}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "story.txt"
    path.write_text("".join(f"{i} plus {i * 3 % 50} is {i + i * 3 % 50};\n" for i in range(300)))
    return path


def test_settings_are_given_by_full_name_by_short_name_or_as_a_section() -> None:
    given = {"n_layer": 3, "optimizer.learning_rate": 1e-5, "sampling": {"prompts": ["a\nb"]}, "max_time": None}
    config, _ = parse_training(words_of(given))
    assert (config.model.n_layer, config.optimizer.learning_rate) == (3, 1e-5)
    assert (config.sampling.prompts, config.trainer.max_time) == (["a\nb"], None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_layers": 3}, "unknown setting n_layers: did you mean n_layer?"),
        ({"model": {"n_lay": 3}}, "unknown setting model.n_lay: did you mean model.n_layer?"),
        ({"model": 3}, "model=3: is a group of settings"),
        ({"n_layer": 1, "model": {"n_layer": 2}}, "model.n_layer is given twice"),
        ({"n_layer": print}, "model.n_layer=.*: expected a plain value"),
        ({"n_layer": "x"}, "model.n_layer=x: expected int"),
        ({"source": "other.txt"}, "data.source is given twice"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_a_remedy(settings: dict[str, Any], words: str) -> None:
    arguments = {**settings}
    with pytest.raises(minigpt.UserError, match=words):
        api.train("story.txt", None, None, arguments)


def test_a_short_name_that_two_settings_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.cli.keywords.option_names", lambda: {"a.size", "b.size"})
    with pytest.raises(minigpt.UserError, match="size: could be a.size or b.size: write it in full"):
        words_of({"size": 1})


def test_training_returns_a_run_with_metrics_samples_and_a_model(text: Path) -> None:
    run = minigpt.train(text, **TINY)
    assert run.path == Path("runs/demo")
    assert run.config.model.n_layer == 1
    assert list(run.metrics["step"]) == [1, 2, 3, 4, 5, 6]
    assert list(run.metrics.dropna()["step"]) == [3, 6]
    assert len(run.plot().axes[0].lines) == 2
    assert run.plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert [sample.step for sample in run.samples][-1] == 6
    assert len(run.generate("1 plus", max_new_tokens=3, min_new_tokens=3).tokens) == 3
    assert "srcdoc" in run._repr_html_()
    assert "<iframe" in run.inspect("1 plus 2 is 3;")._repr_html_()
    with pytest.raises(minigpt.UserError, match="unknown setting max_token: did you mean max_tokens"):
        run.inspect(max_token=3)
    assert minigpt.open_run("runs/demo").metrics.equals(run.metrics)
    with pytest.raises(minigpt.UserError, match="there is no runs/other/config.yaml"):
        minigpt.open_run("runs/other")


def test_hooks_on_a_run_change_what_it_writes_and_its_cache_has_each_activation(text: Path) -> None:
    run = minigpt.train(text, **TINY)
    before = run.generate("1 plus", max_new_tokens=4, temperature=0).tokens
    shapes = []

    def favour(logits: Any, name: str) -> Any:
        return logits.index_fill(-1, logits.new_tensor([ord("z")]).long(), 1e4)

    with run.hooks({"logits": favour, "blocks.0.attn.pattern": lambda x, _: shapes.append(tuple(x.shape))}):
        assert run.generate("1 plus", max_new_tokens=4, temperature=0).text == "zzzz"
    assert shapes == [(1, 2, 6, 6), (1, 2, 1, 7), (1, 2, 1, 8), (1, 2, 1, 9)]
    assert run.generate("1 plus", max_new_tokens=4, temperature=0).tokens == before
    logits, cache, tokens = run.cache("1 plus")
    assert tokens.tolist() == [list(b"1 plus")]
    assert logits[0, -1].argmax() == before[0]
    assert cache["pattern", -1].shape == (1, 2, 6, 6)
    assert run.cache("1 plus", "*.z")[1].names == ["blocks.0.attn.z"]
    with pytest.raises(minigpt.UserError, match="the model reads at most 16"):
        run.cache("1 plus " * 3)


def test_a_run_gives_what_was_captured_at_a_step_as_arrays(text: Path) -> None:
    run = minigpt.train(text, **TINY | {"attention": {"max_tokens": 12}})
    last, first = run.attention(), run.attention(3)
    assert (last.step, first.step) == (6, 3)
    assert first.weights.shape == (1, 2, 12, 12)
    assert len(first.tokens) == 12
    assert "ablation" in last.scores
    assert "ablation" not in first.scores
    frame = run.inspect().to_frame()
    assert frame["ablation"].tolist() == pytest.approx(last.scores["ablation"].ravel().tolist(), abs=1e-5)
    with pytest.raises(minigpt.UserError, match=r"step=4: there is no attention snapshot; there are steps \[.*3, 6\]"):
        run.attention(4)
    for file in (run.path / "attention").glob("*.npz"):
        file.write_bytes(b"damaged")
    with pytest.raises(minigpt.UserError, match="is not a snapshot that can be read"):
        run.attention()
    blind = minigpt.train(text, **TINY)
    with pytest.raises(minigpt.UserError, match="has no attention snapshots; train with --attention.enabled true"):
        blind.attention()


def test_a_run_in_a_thread_is_the_same_and_a_config_does_as_well(text: Path) -> None:
    runs: list[minigpt.Run] = []
    thread = threading.Thread(target=lambda: runs.append(minigpt.train(text, **TINY)))
    thread.start()
    thread.join()
    runs.append(minigpt.train(runs[0].config))
    one, other = (run.metrics["train/loss"] for run in runs)
    assert len(one) == 6
    assert one.equals(other)
    assert [str(run.path) for run in runs] == ["runs/demo", "runs/demo-2"]
    with pytest.raises(minigpt.UserError, match="a Config has all settings"):
        minigpt.train(runs[0].config, n_layer=2)


def test_an_interrupted_run_is_saved_and_goes_on_in_the_same_process(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = TrainingModule.training_step, signal.getsignal(signal.SIGINT)

    def step(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TrainingModule, "training_step", step)
        minigpt.train(text, **TINY)
    assert signal.getsignal(signal.SIGINT) == before
    assert list(minigpt.open_run("runs/demo").metrics["step"]) == [1, 2, 3, 4]
    resumed = minigpt.train(resume="runs/demo")
    assert list(resumed.metrics["step"]) == [1, 2, 3, 4, 5, 6]


def finished_run(folder: Path, seed: int, bits: float | None, source: str = "story.txt") -> minigpt.Run:
    """The files of a run that `compare` reads."""
    folder.mkdir(parents=True)
    config = minigpt.Config.from_dict({"seed": seed, "data": {"source": source}})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    rows = [] if bits is None else [f"1,{bits}", f"2,{bits + 0.5}"]
    (folder / "metrics.csv").write_text("\n".join(["step,val/bits_per_byte", *rows]) + "\n")
    return minigpt.open_run(folder)


def test_settings_are_compared_by_their_best_losses_paired_by_seed(tmp_path: Path) -> None:
    plain = [finished_run(tmp_path / f"plain{seed}", seed, bits) for seed, bits in ((1, 2.0), (2, 3.0), (3, 4.0))]
    other = [finished_run(tmp_path / f"other{seed}", seed, bits) for seed, bits in ((3, 3.7), (2, 2.8), (1, 1.9))]
    table = minigpt.compare({"plain": plain, "other": other})
    assert list(table.index) == ["plain", "other"]
    assert list(table["bits per byte"]) == pytest.approx([3.0, 2.8])
    assert table.loc["plain", ["difference", "interval"]].isna().all()
    # The differences -0.1, -0.2, -0.3: their standard error is 0.1 / sqrt(3), times 4.3027.
    assert list(table.loc["other", ["difference", "interval"]]) == pytest.approx([-0.2, 0.24842], abs=1e-4)


def test_what_would_be_no_fair_comparison_is_refused(tmp_path: Path) -> None:
    one, two = (finished_run(tmp_path / f"run{seed}", seed, 2.0) for seed in (1, 2))
    other_text = finished_run(tmp_path / "text", 1, 2.0, "other.txt")
    unfinished = finished_run(tmp_path / "unfinished", 1, None)
    for variants, words in (
        ({"a": [one], "b": [two]}, r"b: has seeds \[2\], and a has \[1\]: train each with the same seeds"),
        ({"a": [one, one]}, r"a: has runs with seeds \[1, 1\]: give one or more runs, each with its own seed"),
        ({"a": [one], "b": []}, r"b: has runs with seeds \[\]"),
        ({"a": [one], "b": [other_text]}, "b: has another held-out text than a"),
        ({"a": [unfinished]}, "unfinished has no validation yet"),
        ({}, "compare: there are no runs"),
    ):
        with pytest.raises(minigpt.UserError, match=words):
            minigpt.compare(variants)


def test_a_second_run_at_the_same_time_is_refused(text: Path) -> None:
    with api._TRAINING, pytest.raises(minigpt.UserError, match="another run trains in this process"):
        minigpt.train(text, **TINY)


def test_a_bar_is_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("OutStream", (), {"__module__": "ipykernel.iostream", "isatty": lambda self: False})()
    assert progress.can_show(stream)
    assert not progress.can_show(type("Pipe", (), {"isatty": lambda self: False})())
