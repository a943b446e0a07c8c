"""A run folder is read whatever part of it is there: while it trains, stopped, damaged, or of another version."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from attention_pages import history

from minigpt.errors import UserError
from minigpt.pages.attention import render_page
from minigpt.pages.run_record import Sample, duration, read_run_folder
from minigpt.runs.folder import RunFolder

HEADER = "step,tokens,seconds,train/loss,val/loss\n"


def run_with(folder: Path, metrics: str = HEADER) -> Path:
    (folder / "metrics.csv").write_text(metrics)
    return folder


def test_metrics_alone_are_enough(tmp_path: Path) -> None:
    record = read_run_folder(run_with(tmp_path, HEADER + "10,80,1.5,3.5,\n20,160,200.2,3.25,\n20,160,200.2,,3.0\n"))
    assert record.curves == {"train/loss": {10: 3.5, 20: 3.25}, "val/loss": {20: 3.0}}
    assert record.facts == {"time": "3 min 20 s of training, 160 tokens"}
    assert (record.settings, record.samples, record.page, record.missing) == ({}, [], None, [])


def test_a_run_with_weights_says_how_it_opens_in_other_programs(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    said = read_run_folder(run_with(tmp_path)).facts["in other programs"]
    assert said.startswith(f"minigpt export {tmp_path} (transformers")


def test_numbers_of_the_attention_are_curves_too(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    for step in (5, 10):
        dataclasses.replace(history()[0], step=step, numbers={"icl_score": step / 10}).save(
            RunFolder(run).snapshot(step)
        )
    RunFolder(run).snapshot(15).write_bytes(b"damaged")
    assert read_run_folder(run).curves == {"attn/icl_score": {5: 0.5, 10: 1.0}}


def test_a_run_that_has_only_begun_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {n_layer: 4}\n")
    record = read_run_folder(tmp_path)
    assert record.settings == {"model": {"n_layer": 4}}
    assert record.curves == {}


def test_a_line_that_is_half_written_waits(tmp_path: Path) -> None:
    record = read_run_folder(run_with(tmp_path, HEADER + "10,80,1.5,3.5,\n20,16"))
    assert record.curves == {"train/loss": {10: 3.5}}
    assert "80 tokens" in record.facts["time"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e301", "much", ""])
def test_a_value_that_cannot_be_drawn_is_left_out(value: str, tmp_path: Path) -> None:
    assert read_run_folder(run_with(tmp_path, f"{HEADER}10,80,1.5,{value},2.0\n")).curves == {"val/loss": {10: 2.0}}


@pytest.mark.parametrize("content", [b"\x00\xff\n\x00\n", b"a,b\n1,2\n", b"step\nx\n", b'step,"\n1,2\n'])
def test_metrics_that_are_none_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    record = read_run_folder(tmp_path)
    assert record.curves == {}
    assert "metrics.csv has no line with a step in it." in record.missing


@pytest.mark.parametrize(
    "content", [b"model: {", b"- 1\n", b"", b"\xff\xfe\x00", b"a: 2026-99-99", b"a: " + b"[" * 5000]
)
def test_settings_that_cannot_be_read_are_named_and_the_rest_is_shown(content: bytes, tmp_path: Path) -> None:
    run_with(tmp_path, HEADER + "10,80,1.5,3.5,\n")
    (tmp_path / "config.yaml").write_bytes(content)
    record = read_run_folder(tmp_path)
    assert record.curves == {"train/loss": {10: 3.5}}
    assert record.missing == ["config.yaml holds no settings that can be read."]


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = [
        Sample(30, "def ", "def a:\n\n\n"),
        Sample(30, "it's \"\n\u2028", "it's \"\n\u2028\r\n"),
        Sample(30, "", ""),
    ]
    content = "".join(f"──── step {step}, prompt {prompt!r}\n{text}\n\n" for step, prompt, text in samples)
    (run_with(tmp_path) / "samples").mkdir()
    (tmp_path / "samples" / "step_000030.txt").write_bytes(content.encode())
    assert read_run_folder(tmp_path).samples == samples


@pytest.mark.parametrize("content", [b"", b"nothing of ours", b"\xff\xfe", "──── step 30, prompt 'open\n".encode()])
def test_other_files_among_the_samples_break_nothing(content: bytes, tmp_path: Path) -> None:
    (run_with(tmp_path) / "samples").mkdir()
    (tmp_path / "samples" / "step_000030.txt").write_bytes(content)
    assert read_run_folder(tmp_path).samples in ([], [Sample(30, "'open", "")])


def test_the_page_that_is_there_is_taken(tmp_path: Path) -> None:
    page = render_page(history(), title="x")
    (run_with(tmp_path) / "attention.html").write_text(page)
    assert read_run_folder(tmp_path).page == page


def test_a_page_of_another_version_is_made_anew_from_its_snapshots(tmp_path: Path) -> None:
    scores = {"previous_token": np.array([[0, 0.9, 0], [0, 0, 0]])}
    for snapshot in history():
        labelled = dataclasses.replace(snapshot, scores=scores)
        labelled.save(tmp_path / "attention" / f"step_{snapshot.step:06d}.npz")
    (run_with(tmp_path) / "attention.html").write_text("<script>another()</script>")
    (tmp_path / "config.yaml").write_text("attention: {max_snapshots: 2}")
    record = read_run_folder(tmp_path)
    assert record.page is not None
    assert '"steps":[100,300]' in record.page
    labels = [None, "previous token", None, None, None, None]
    assert f'"labels":{json.dumps([labels, labels], separators=(",", ":"))}' in record.page, "the page opens with these"
    assert "another()" not in record.page
    assert record.missing == []


def test_a_page_of_another_version_without_snapshots_is_named(tmp_path: Path) -> None:
    (run_with(tmp_path) / "attention.html").write_text("<script>another()</script>")
    (tmp_path / "attention.png").write_bytes(b"\x89PNG")
    record = read_run_folder(tmp_path)
    assert record.page is None
    assert record.missing == ["attention.html was made by another version of minigpt: open that file by itself."]
    assert [picture.content for picture in record.pictures] == [b"\x89PNG"]


def test_damaged_snapshots_are_named(tmp_path: Path) -> None:
    (run_with(tmp_path) / "attention").mkdir()
    (tmp_path / "attention" / "step_000010.npz").write_bytes(b"PK\x03\x04")
    (sentence,) = read_run_folder(tmp_path).missing
    assert "step_000010.npz is not a snapshot that can be read" in sentence


def test_a_damaged_snapshot_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    run = RunFolder(run_with(tmp_path))
    for step in (0, 5, 10):
        dataclasses.replace(history()[0], step=step).save(run.snapshot(step))
    run.snapshot(5).write_bytes(b"damaged")
    (run.path / "attention" / "step_mine.npz").write_bytes(b"")
    record = read_run_folder(run.path)
    assert record.page is not None
    (sentence,) = record.missing
    assert sentence.startswith("The attention at step 5 is missing: ")


def test_snapshots_are_in_the_order_of_their_steps_beyond_a_million(tmp_path: Path) -> None:
    run = RunFolder(run_with(tmp_path))
    run.snapshot(0).parent.mkdir()
    for step in (1_000_000, 999_999, 0):
        run.snapshot(step).touch()
    assert run.snapshots == [run.snapshot(step) for step in (0, 999_999, 1_000_000)]


@pytest.mark.parametrize(
    "content", ['{"summary": "abc"}', '{"summary": {"a": 1}}', '{"summary": [1]}', "[1]", "[" * 9999]
)
def test_a_diagnosis_without_sentences_is_named(content: str, tmp_path: Path) -> None:
    (run_with(tmp_path) / "diagnosis.json").write_text(content)
    record = read_run_folder(tmp_path)
    assert record.happened == []
    assert record.missing == ["diagnosis.json holds no summary that can be read."]


def test_a_folder_that_holds_runs_names_them(tmp_path: Path) -> None:
    (tmp_path / "offline-run-20260101_000000-abc").mkdir()
    with pytest.raises(UserError, match="nor a W&B run .* there are .*offline-run-20260101_000000-abc"):
        read_run_folder(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (5, "5 s"), (156.9, "157 s"), (725, "12 min 5 s"), (11_220, "3 h 7 min"), (439_200, "5 days 2 h")],
)
def test_a_duration_is_told_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
