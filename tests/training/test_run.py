"""What one run of configs/tiny.yaml leaves behind, by a user without W&B account, network or writable home."""

import csv
import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from scripts import run_script
from small_runs import wandb_history

from minigpt.config import Config
from minigpt.data.batches import IGNORED, ValBatches
from minigpt.data.prepare import prepare
from minigpt.data.shards import Tokens
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model
from minigpt.training.loss import next_token_loss


def test_the_run_folder_is_complete(tiny_run: Path) -> None:
    run = RunFolder(tiny_run)
    for path in (run.config, run.tokenizer, run.metrics, run.last, run.best, run.weights):
        assert path.is_file(), path
    for path in (run.attention_page, run.attention_grid, run.samples(30), run.samples(60), run.snapshot(60)):
        assert path.is_file(), path
    assert not list(tiny_run.rglob("*.tmp"))


def test_the_tokenizer_of_a_run_from_before_is_found_under_its_old_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.tokenizer.name == "minigpt_tokenizer.json"  # Hugging Face's tools take any tokenizer.json for theirs
    (tmp_path / "tokenizer.json").touch()
    assert run.tokenizer.name == "tokenizer.json"
    (tmp_path / "minigpt_tokenizer.json").touch()
    assert run.tokenizer.name == "minigpt_tokenizer.json"


def test_the_saved_config_is_resolved_and_is_the_checkpoints(tiny_run: Path) -> None:
    config = Config.from_dict(yaml.safe_load(RunFolder(tiny_run).config.read_text()))
    assert config.model.vocab_size == 257
    assert config == load_model(RunFolder(tiny_run).best).config


def test_the_output_says_where_everything_is_and_what_to_type_next(tiny_run: Path) -> None:
    output = (tiny_run.parent.parent / "output.txt").read_text()
    for words in ("attention.html", "best.ckpt", "wandb sync", "sample.py", "--resume", "bits per byte"):
        assert words in output
    assert "step 60" in output
    assert "Traceback" not in output


def test_metrics_are_on_disk_at_their_steps(tiny_run: Path) -> None:
    with RunFolder(tiny_run).metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["10", "20", "30", "40", "50", "60"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["30", "60"]
    assert float(rows[-1]["val/loss"]) < float(rows[0]["train/loss"])
    assert rows[-1]["tokens"] == str(60 * 8 * 64)


def test_val_loss_is_that_of_the_whole_split_token_by_token(tiny_run: Path) -> None:
    loaded = load_model(RunFolder(tiny_run).last)
    tokens = prepare(loaded.config.data).val.tokens
    nats, count = 0.0, 0
    T = loaded.config.model.context_length
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, T):
            window = torch.from_numpy(tokens.read(start, min(start + T + 1, len(tokens))).astype("int64"))[None]
            logits = loaded.model(window[:, :-1]).log_softmax(-1)
            nats -= float(logits.gather(2, window[:, 1:, None]).double().sum())
            count += window.shape[1] - 1
    assert count == len(tokens) - 1
    with RunFolder(tiny_run).metrics.open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["val/loss"]) == pytest.approx(nats / count, rel=1e-5)
    n_bytes = prepare(loaded.config.data).val.n_bytes
    assert float(last["val/bits_per_byte"]) == pytest.approx(nats / 0.6931471805599453 / n_bytes, rel=1e-5)


def test_val_loss_does_not_depend_on_the_batch_size(tiny_run: Path) -> None:
    loaded = load_model(tiny_run)
    val = prepare(loaded.config.data).val
    val = dataclasses.replace(val, tokens=Tokens([val.tokens.read(0, 5000)]))
    sums = []
    for batch_size in (1, 7):
        batches = ValBatches(val, context_length=64, batch_size=batch_size, end_of_text=loaded.tokenizer.end_of_text)
        with torch.no_grad():
            pairs = [batches[i] for i in range(len(batches))]
            nats = sum(float(next_token_loss(loaded.model(x), y, "sum")) for x, y in pairs)
        sums.append((nats, sum(int((y != IGNORED).sum()) for _, y in pairs)))
    assert sums[0][1] == sums[1][1] == 4999
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)


def test_checkpoints_open_without_unpickling_code_and_carry_all_that_sampling_needs(tiny_run: Path) -> None:
    run = RunFolder(tiny_run)
    for path in (run.last, run.best):
        content = torch.load(path, weights_only=True)
        assert {"state_dict", "optimizer_states", "loops", "minigpt"} <= set(content)
    for path in (tiny_run, run.last, run.best, run.weights):
        loaded = load_model(path)
        assert loaded.tokenizer.vocab_size == 257
        assert not loaded.model.training


def test_best_weights_are_those_of_the_best_checkpoint(tiny_run: Path) -> None:
    run = RunFolder(tiny_run)
    best = torch.load(run.best, weights_only=True)["state_dict"]
    with safe_open(run.weights, framework="pt") as file:
        assert {f"model.{name}" for name in file.keys()} == set(best)  # noqa: SIM118 (it is no dict)
        assert all(torch.equal(file.get_tensor(name), best[f"model.{name}"]) for name in file.keys())  # noqa: SIM118


def test_the_offline_wandb_run_holds_losses_table_image_and_page(tiny_run: Path) -> None:
    rows, media = wandb_history(tiny_run)
    assert media.parent.name.startswith("offline-run-")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    with RunFolder(tiny_run).metrics.open() as file:
        on_disk = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses == pytest.approx(on_disk)
    assert [row["trainer/global_step"] for row in rows if "val/loss" in row] == [30, 60]
    assert all("val/bits_per_byte" in row for row in rows if "val/loss" in row)

    (page,) = [row for row in rows if row.get("trainer/global_step") == 60 and "attn/page._type" in row]
    assert page["attn/page._type"] == "html-file"
    html = (media / page["attn/page.path"]).read_text()
    assert html == RunFolder(tiny_run).attention_page.read_text()
    assert "normalize.css" not in html

    (image,) = [row for row in rows if row.get("trainer/global_step") == 60 and "attn/grid._type" in row]
    assert image["attn/grid._type"] == "image-file"
    assert (media / image["attn/grid.path"]).is_file()

    (scores,) = [row for row in rows if row.get("trainer/global_step") == 60 and "attn/scores._type" in row]
    assert (media / scores["attn/scores.path"]).is_file()
    curves = [{key for key in row if key.startswith("attn/")} for row in rows if "attn/probe_seconds" in row]
    wanted = {"icl_score", "second_copy_loss", "max/induction", "entropy_mean", "largest_score", "sink_rate"}
    assert len(curves) == 2 + 6  # two validations; steps 0, 1, 2, 4, 8 and 16
    assert all(keys >= {f"attn/{name}" for name in wanted} and len(keys) <= 22 for keys in curves)
    (heads,) = [row for row in rows if "attn/heads._type" in row]
    content = json.loads((media / heads["attn/heads.path"]).read_text())
    with RunFolder(tiny_run).heads.open() as file:
        columns, *kept = csv.reader(file)
    assert content["columns"] == columns
    assert {"layer", "head", "label", "induction", "ablation"} <= set(columns)
    assert len(content["data"]) == len(kept) == 2 * 2

    (table,) = [row for row in rows if row.get("trainer/global_step") == 60 and "samples._type" in row]
    content = json.loads((media / table["samples.path"]).read_text())
    assert content["columns"] == ["step", "prompt", "text"]
    assert content["data"][0][:2] == [60, load_model(tiny_run).config.sampling.prompts[0]]
    assert content["data"][0][2] in RunFolder(tiny_run).samples(60).read_text()


def test_sampling_works_for_the_same_user_and_repeats_with_its_seed(
    tiny_run: Path, bare_environment: dict[str, str]
) -> None:
    command = ("sample.py", tiny_run, "--prompt", "def ", "--max_new_tokens", 40, "--num_samples", 2, "--seed", 5)
    first, second = (run_script(*command, env=bare_environment) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stdout.count("def ") >= 2
    other = run_script(*command[:-1], 6, env=bare_environment)
    assert other.stdout != first.stdout


def test_a_second_run_of_the_same_name_leaves_the_first_alone(tiny_run: Path, bare_environment: dict[str, str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.is_file()}
    folder = tiny_run.parent.parent
    arguments = ("--config", "configs/tiny.yaml", "--runs_dir", folder / "runs", "--data.dir", folder / "data")
    result = run_script("train.py", *arguments, "--trainer.max_steps", 3, env=bare_environment)
    assert result.returncode == 0, result.stderr
    assert (folder / "runs" / "tiny-2" / "model.safetensors").is_file()
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.is_file()} == before


def test_a_prompt_longer_than_the_context_is_one_clear_line(tiny_run: Path) -> None:
    result = run_script("sample.py", tiny_run, "--prompt", "x" * 65)
    assert result.returncode == 2
    assert result.stderr == (
        "error: the prompt has 65 tokens, but the model reads at most 64: "
        "shorten it, or train with a longer model.context_length\n"
    )


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "pickle"])
def test_a_damaged_or_foreign_checkpoint_is_one_clear_line(damage: str, tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    content = RunFolder(tiny_run).last.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            torch.save({"state_dict": {}}, path)
        case "pickle":
            torch.save({"minigpt": subprocess.Popen}, path)
    result = run_script("sample.py", path, env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"})
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {path}: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_safetensors_file_is_one_clear_line(damage: str, tiny_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    content = RunFolder(tiny_run).weights.read_bytes()
    if damage == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    result = run_script("sample.py", path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {path}: ")
    assert result.stderr.count("\n") == 1


def test_a_prompt_comes_from_a_file_or_from_standard_input(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("class Ünïcode:\n")
    settings = ("--max_new_tokens", 5)
    from_file = run_script("sample.py", tiny_run, "--prompt_file", tmp_path / "prompt.txt", *settings)
    from_input = run_script("sample.py", tiny_run, "--prompt_file", "-", *settings, input="class Ünïcode:\n")
    assert from_file.returncode == 0, from_file.stderr
    assert from_file.stdout.startswith("class Ünïcode:\n")
    assert from_file.stdout == from_input.stdout
