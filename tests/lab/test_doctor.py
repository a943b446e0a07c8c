"""The doctor: what it says of a machine and of a config, and that it leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import ROOT, run_script

from minigpt.cli import parsing
from minigpt.cli.main import dispatch
from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.lab import doctor
from minigpt.training import budget, machine
from minigpt.training.compile_choice import Choice
from minigpt.training.step_times import StepTimes, measure

TEXT = "All happy families are alike; each unhappy family is unhappy in its own way.\n" * 200
FSDP = ["--optimizer.name=adamw", "--trainer.strategy=fsdp", "--trainer.gradient_clip_val=null"]
SMALL = ["--model.n_layer=1", "--model.n_head=1", "--model.n_embd=16", "--model.context_length=16"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A tiny config whose folders are not there yet."""
    (tmp_path / "text.txt").write_text(TEXT)
    return [
        *SMALL,
        f"--data.source={tmp_path / 'text.txt'}",
        "--data.tokenizer=bytes",
        f"--data.dir={tmp_path / 'data'}",
        f"--runs_dir={tmp_path / 'runs'}",
        "--trainer.max_steps=600",  # and so no budget
    ]


class Silent:
    """Nobody answers, and no compiler is tried."""

    host = "nobody.org"

    def __init__(self, *_: Any) -> None:
        pass

    def __bool__(self) -> bool:
        return False

    def result(self) -> str:
        return "not tried"

    def close(self) -> None:
        pass


def screen(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and screen of the doctor, without network and compiler."""
    monkeypatch.setattr(machine, "Asking", Silent)
    monkeypatch.setattr(machine, "Compiling", Silent)
    code = 0
    try:
        dispatch(["doctor", *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().out


@pytest.mark.parametrize("compiler", ["false", pytest.param("g++", marks=pytest.mark.slow)])  # ten seconds of g++
def test_one_screen_says_what_a_run_would_be(
    compiler: str, arguments: list[str], tmp_path: Path, bare_environment: dict
) -> None:
    before = sorted(tmp_path.rglob("*"))
    temporary = tmp_path.parent / f"{tmp_path.name}-temporary"
    temporary.mkdir()
    env = bare_environment | {"TMPDIR": str(temporary), "CXX": compiler}
    result = run_script("-m", "minigpt", "doctor", *arguments, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) <= 35
    assert max(map(len, lines)) <= 100
    for label in (
        "machine",
        "disk",
        "precision",
        "versions",
        "compile",
        "W&B",
        "hub",
        "text",
        "model",
        "files",
        "tokens",
    ):
        assert any(line.startswith(f"{label} ") for line in lines), label
    for words in ("parameters", "for 600 steps", "epochs", "nothing known here would stop this run"):
        assert words in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--data.source=nowhere"], ["data.source=nowhere: no such file"]),
        (["--data.source=hf:nobody/nothing"], ["data.source=hf:nobody/nothing: no answer"]),
        (["--data.source=https://127.0.0.1:9/a.txt"], ["data.source=https://127.0.0.1:9/a.txt: no answer"]),
        (["--data.tokenizer=gpt2"], ["data.tokenizer=gpt2: tiktoken could not download its tables", "bpe:N"]),
        (["--data.tokenizer=nowhere.json"], ["data.tokenizer=nowhere.json: no such file"]),
        (["--runs_dir=/proc/here"], ["runs_dir=/proc/here", "cannot write in", "give another folder"]),
        (["--data.dir=/proc/here"], ["data.dir=/proc/here", "cannot write in", "give another folder"]),
        (["--model.context_length=100000"], ["needs 100001: give more text or a shorter context"]),
        (["--model.vocab_size=10"], ["model.vocab_size=10: the tokenizer has 257 tokens"]),
        (["--data.tokenizer=chars", "--sampling.prompts=[日]"], ["sampling.prompts[0]='日': "]),
        (["--trainer.accelerator=tpux"], ["trainer.accelerator=tpux"]),
        (
            [*FSDP, "--trainer.accelerator=cpu"],
            ["trainer.strategy=fsdp", "requires a GPU"],
        ),
        (["--trainer.precision=fp8"], ["trainer.precision=fp8", "bf16-mixed"]),
        (["--model.n_embd=200000", "--model.n_layer=10"], ["memory: about", "GB are needed", "smaller model"]),
        (["--keep_every_n_steps=1", "--trainer.max_steps=1000000000"], ["of checkpoints do not fit", "free space"]),
        (["--data.source=nowhere", "--trainer.precision=fp8"], ["data.source=nowhere", "trainer.precision=fp8"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_would_fail_is_said_before_hours_are_spent(
    changes: list[str],
    words: list[str],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-tables"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    before = sorted(tmp_path.rglob("*"))
    code, out = screen([*arguments, *changes], monkeypatch, capsys)
    assert code == 2
    verdict = " ".join(out[out.index("WOULD FAIL") :].split())
    for each in words:
        assert each in verdict
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "pays", "said"),
    [
        ([], True, "this run compiles: it pays"),
        ([], False, "this run does not compile: it does not"),
        (["--compile=false"], True, "this run does not compile"),
        (["--compile=true"], False, "this run compiles"),
    ],
)
def test_the_doctor_says_what_training_would_decide_on_compiling(
    changes: list[str],
    pays: bool,
    said: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    choice = Choice(pays, "it pays" if pays else "it does not")
    monkeypatch.setattr(doctor, "choose", lambda *_, **__: choice)
    lines = screen([*arguments, *changes], monkeypatch, capsys)[1].splitlines()
    (line,) = [line for line in lines if line.startswith("compile ")]
    assert line.endswith(f"; {said}")


@pytest.mark.parametrize("is_short", [True, False])
def test_a_budgets_run_is_the_one_that_training_would_make(
    is_short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A text of one's own has a budget by default; of a long text that is not prepared, its size is what is known."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT * 5)
    if not is_short:
        monkeypatch.setattr(doctor, "SHORT_BYTES", 0)
    monkeypatch.setattr(budget, "measure", lambda *_: StepTimes(0.1, 0.0, 0, 1.0))
    code, out = screen(["--data.source=text.txt"], monkeypatch, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    said = " ".join(out.split())
    assert code == 0, out
    assert "budget 5m. text: 77 kB, so tokenizer bpe:512" in said
    assert "model: 2 layers, 64 wide, context 128: a step of 4 x 128 tokens takes 0.1 s here" in said
    assert "tokens 512 a step" in said
    assert ("not prepared yet: 1 document" in said) == is_short


def test_a_budget_of_a_text_that_is_fetched_later_is_said_to_choose_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, out = screen(["--data.source=-", "--budget=2m"], monkeypatch, capsys)
    assert "budget 2m: chooses when the text is read" in " ".join(out.split())
    _, out = screen(["--data.source=x.txt", "--for=h100"], monkeypatch, capsys)
    assert "budget 5m: chooses model and length there" in " ".join(out.split())


def test_memory_that_runs_out_in_the_trial_step_is_said_and_the_screen_still_printed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(doctor, "measure", full)
    code, out = screen(arguments, monkeypatch, capsys)
    assert code == 2
    assert "memory: cpu has too little for a trial step: try a smaller data.batch_size" in " ".join(out.split())
    assert "parameters" in out


def test_withdrawn_releases_are_refused_before_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.6.3")
    with pytest.raises(UserError, match=r"lightning 2\.6\.3: a compromised release"):
        machine.refuse_withdrawn()
    program = "import sys, minigpt.training.machine; print('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_a_step_that_would_take_long_is_measured_in_part(arguments: list[str]) -> None:
    from minigpt.training.run import check_before_text

    config, _ = parsing.parse_training([*arguments, "--model.vocab_size=64", "--trainer.accelerator=cpu"])
    trainer = check_before_text(config)
    state = torch.get_rng_state()
    whole = measure(config, trainer, flops=1e12)
    part = measure(config, trainer, flops=1e6)
    assert whole.share == 1
    assert part.share < 0.1
    assert part.activation_bytes == pytest.approx(whole.activation_bytes, rel=0.3)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_answer_of_any_kind_is_an_answer_and_none_is_waited_for_long() -> None:
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501 to all
    threading.Thread(target=server.handle_request, daemon=True).start()
    environment = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        assert machine.Asking(lambda: f"http://127.0.0.1:{server.server_port}/")
        assert not machine.Asking(lambda: "http://127.0.0.1:9/")
    finally:
        os.environ.update(environment)
        server.server_close()


def test_the_defaults_are_a_config_that_the_doctor_takes() -> None:
    assert parsing.parse_training([], "minigpt doctor", "what") == (Config(), None)
