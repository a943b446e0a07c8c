"""`minigpt doctor --for DEVICE`: what a run would take on a device that is not here."""

import re
from pathlib import Path

import pytest
from scripts import ROOT

from minigpt.cli.main import dispatch
from minigpt.config import Config, TrainerConfig
from minigpt.errors import UserError
from minigpt.lab.estimate import count_devices


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """What each line of the doctor says, by its label."""
    dispatch(["doctor", *words])
    lines = re.sub(r"\n +", " ", capsys.readouterr().out).splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def test_gpt2_small_on_an_h100_is_the_arithmetic_on_paper(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, str(ROOT / "configs" / "gpt2_124m.yaml"), "--for", "h100")
    assert lines["device"].startswith("1 x NVIDIA H100 SXM: 989 Tflop/s in bf16-mixed, 80 GB")
    assert lines["model"].startswith("124,439,808 parameters")
    assert lines["tokens"].startswith("524,288 a step")
    # 6 (124,439,808 - 1024 x 768 positions) + 12 x 12 x 768 x 1024 = 855,166,464 a token
    assert lines["operations"].startswith(f"{524288 * 855_166_464:.3g} a step")
    assert "40% of the peak: 1.14 s a step" in lines["time"]
    assert lines["verdict"] == "by arithmetic, it fits; nothing was measured"


def test_the_recipe_of_gpt2_small_says_what_the_doctor_says(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "configs" / "gpt2_124m.yaml"
    header = " ".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    (eight,) = re.findall(r"eight of them, in one process each: (--.*?) 24 GB", header)
    (small,) = re.findall(r"24 GB: (--.*?) Time:", header)
    on_one, on_eight = said(capsys, str(recipe), "--for=h100"), said(capsys, str(recipe), "--for=h100", *eight.split())
    on_small = said(capsys, str(recipe), "--for=rtx4090", *small.split())
    n_tokens = {lines["tokens"].partition(":")[0] for lines in (on_one, on_eight, on_small)}
    assert n_tokens == {"524,288 a step"}, "what is to be typed leaves the step as it is"
    step = r"([\d.]+) s a step"
    figures = [re.findall(step, on_one["time"])[0], re.findall(step, on_eight["time"])[0]]
    figures += [on_one["operations"].split()[0], on_one["memory"].partition(" of")[0], on_one["rows"].split()[0]]
    assert [figure for figure in figures if figure not in header] == []


def test_eight_devices_divide_the_time_and_fsdp_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [str(ROOT / "configs" / "gpt2_124m.yaml"), "--optimizer.name=adamw", "--for=h100"]
    one = said(capsys, *recipe, "--trainer.accumulate_grad_batches=8")
    eight = said(capsys, *recipe, "--trainer.accumulate_grad_batches=1", "--trainer.devices=8")
    sharded = said(
        capsys, *recipe, "--trainer.accumulate_grad_batches=1", "--trainer.devices=4", "--trainer.num_nodes=2",
        "--trainer.strategy=fsdp2",
    )  # fmt: skip
    assert one["tokens"].partition(":")[0] == eight["tokens"].partition(":")[0] == sharded["tokens"].partition(":")[0]

    def number(line: str, pattern: str) -> float:
        return float(re.search(pattern, line)[1])  # type: ignore[index]

    step, weights = r"peak: ([\d.]+) s a step", r"weights ([\d.]+),"
    assert number(one["time"], step) / number(eight["time"], step) == pytest.approx(8, rel=0.05)
    assert number(one["memory"], weights) == number(eight["memory"], weights) == pytest.approx(0.5, abs=0.01)
    assert number(sharded["memory"], weights) == pytest.approx(0.06, abs=0.01)


def test_activation_checkpointing_takes_less_memory_and_a_third_more_time(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [str(ROOT / "configs" / "gpt2_124m.yaml"), "--for=h100"]
    plain, again = said(capsys, *recipe), said(capsys, *recipe, "--activation_checkpointing=true")
    assert plain["memory"].startswith("28.6 GB")
    # 64 rows of 1024 tokens: 12 inputs of blocks, one block, and the final norm's and the head's input
    C, T = 768, 1024
    kept = 64 * T * (12 * 4 * C + (36 * C + 4 * 12 + 16) + (6 * C + 16))
    assert f"activations of 64 rows {kept / 1e9:.2f}," in again["memory"]
    assert "peak: 1.52 s a step" in again["time"]


@pytest.mark.parametrize(
    ("devices", "n"), [("auto", 1), (-1, 1), (8, 8), ("8", 8), ("0,1", 2), ("0,", 1), ([0, 2, 3], 3)], ids=repr
)
def test_the_devices_are_counted_as_lightning_reads_them(devices: int | str | list[int], n: int) -> None:
    assert count_devices(Config(trainer=TrainerConfig(devices=devices))) == n
    assert count_devices(Config(trainer=TrainerConfig(devices=devices, num_nodes=2))) == 2 * n


def test_what_does_not_fit_is_said_with_what_does(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["doctor", str(ROOT / "configs" / "gpt2_124m.yaml"), "--for", "t4", "--data.batch_size"]
    with pytest.raises(SystemExit, match="2"):
        dispatch([*recipe, "64"])
    words = " ".join(capsys.readouterr().out.split())
    most = re.search(r"NVIDIA T4 are usable: try data.batch_size=(\d+) or less", words)
    assert most is not None
    dispatch([*recipe, most[1]])
    with pytest.raises(SystemExit, match="2"):
        dispatch([*recipe, str(int(most[1]) + 1)])
    with pytest.raises(SystemExit, match="2"):
        dispatch([*recipe, "1", "--model.n_embd=12288", "--model.n_layer=96"])
    assert "try a smaller model" in " ".join(capsys.readouterr().out.split())


def test_a_device_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="for_device=h1000: expected h200, h100, a100"):
        dispatch(["doctor", "--for", "h1000"])


def test_neither_the_text_nor_a_folder_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = said(capsys, "--data.source=nowhere", "--data.tokenizer=bytes", "--for=m2")
    assert lines["model"].endswith("with a vocabulary of 257")
    assert lines["device"].startswith("1 x Apple M2, 16 GB: 3.6 Tflop/s in 32-true")
    assert not list(tmp_path.iterdir())
