"""Training, generation and inspection give the CPU's results on a device, and wait for it as seldom as is said here.

The devices are pretended, an NVIDIA GPU and an Apple GPU: `pretended.py`. All cases run in one process, as its start
takes longer than they do. `make test-gpu` runs them on the GPU of this machine instead.
"""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import guards
import pytest
import torch
from grids import covering
from scripts import ROOT

from minigpt.config import GPTConfig
from minigpt.errors import UserError

HERE = Path(__file__).parent
Results = Callable[[str, str], dict[str, Any]]


class Case(NamedTuple):
    """A function of cases.py and its settings."""

    function: str
    settings: dict[str, Any]
    quick: tuple[str, ...] = ()
    """Kinds of device on which it is in the quick suite. MPS also shows what is float64."""


def model_cases() -> dict[str, Case]:
    """Every variant of attention with every position, window and document mask; a covering sample is quick."""
    axes: dict[str, tuple[Any, ...]] = {
        "similarity": ("scaled_dot", "cosine", "gaussian", "hopfield", "symmetric", "uniform", "linear", "hard"),
        "position": ("rotary", "learned", "sinusoidal", "alibi", "none"),
        "window": (None, 4, [4, None]),
        "document_mask": (False, True),
    }
    grid = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        try:
            GPTConfig(vocab_size=257, end_of_text=256, **settings)
        except UserError:
            continue  # not every similarity has every position
        grid.append(settings)
    quick = covering([tuple(map(repr, settings.values())) for settings in grid], strength=1)
    named = {
        " ".join(f"{name}={value}" for name, value in settings.items()): Case(
            "model", settings, (guards.KINDS[quick.index(i) % 2],) if i in quick else ()
        )
        for i, settings in enumerate(grid)
    }
    others: list[dict[str, Any]] = [
        {"n_kv_head": 1, "logit_softcap": 20.0},
        {"n_kv_head": 1, "position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True},
    ]
    return named | {" ".join(f"{n}={v}" for n, v in each.items()): Case("model", each, ("cuda",)) for each in others}


MAPS = {"max_tokens": 12}
CASES: dict[str, Case] = {
    **model_cases(),
    "writing": Case("writing", {}, ("cuda",)),
    "writing with a window and a document mask": Case("writing", {"window": 9, "document_mask": True, "n_kv_head": 1}),
    "the loss in chunks": Case("chunks", {}, guards.KINDS),
    "inspection": Case("inspection", {}, ("mps",)),
    "inspection of GPT-2's kind": Case("inspection", {"position": "learned", "norm": "layernorm", "mlp": "gelu"}),
    "commands": Case("commands", {}, ("mps",)),
    "a run with attention maps": Case("run", {"attention": MAPS}, ("mps",)),
    "a run of examples, averaged and accumulated": Case(
        "run",
        {
            "data": {"mode": "examples"},
            "optimizer": {"name": "adamw", "average_decay": 0.9},
            "trainer": {"accumulate_grad_batches": 2},
        },
        ("cuda",),
    ),
    "a run with a document mask, QK-clip and a bad step": Case(
        "run",
        {
            "model": {"document_mask": True, "qk_norm": False},
            "optimizer": {"qk_clip": 0.01},
            "on_non_finite": "skip",
            "trainer": {
                "callbacks": [{"class_path": "injection.Injection", "init_args": {"at": {"1": ["nan", "loss"]}}}]
            },
        },
    ),
    "a run with averages, rolled back": Case(
        "run",
        {
            "optimizer": {"average_decay": 0.9},
            "on_non_finite": "rollback",
            "checkpoint_every_n_steps": 1,
            "trainer": {
                "callbacks": [{"class_path": "injection.Injection", "init_args": {"at": {"1": ["inf", "loss"]}}}]
            },
        },
    ),
    "a deterministic run with attention maps": Case(
        "run", {"resumed": False, "trainer": {"deterministic": True}, "attention": MAPS}, ("cuda",)
    ),
    "a deterministic run of linear attention": Case(
        "run",
        {
            "resumed": False,
            "trainer": {"deterministic": True},
            "model": {"similarity": "linear", "context_length": 192},
        },
        ("cuda",),
    ),
    "padded prompts where Triton is installed": Case("model", {"machine": {"triton": True}}, ("cuda",)),
    "a long text, for which FlexAttention is tried and fails": Case(
        "long_text", {"machine": {"triton": True}}, ("cuda",)
    ),
    "oracles": Case("oracles", {}, ("mps",)),
    "refusals": Case("refusals", {}, guards.KINDS),
}

ONE_A_STEP = "training/module.py on_before_optimizer_step"  # norm, loss and skipping: the step depends on them
SELDOM = {"training/update_ratios.py ratios_and_gradients": 1}
"""After steps 1, 2, 5 and every tenth."""
PLAIN = {"max_steps": 5, "log_every_n_steps": 1000}

WAITS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "packed": ({"trainer": PLAIN}, {ONE_A_STEP: 1}),
    "logged": ({"trainer": {**PLAIN, "log_every_n_steps": 1}}, {ONE_A_STEP: 1}),
    "accumulated": ({"trainer": {**PLAIN, "accumulate_grad_batches": 2}}, {ONE_A_STEP: 1}),
    "examples, accumulated": (
        {"data": {"mode": "examples"}, "trainer": {**PLAIN, "accumulate_grad_batches": 2}},
        {ONE_A_STEP: 1},
    ),
    "averaged, adamw": ({"optimizer": {"name": "adamw", "average_decay": 0.9}, "trainer": PLAIN}, {ONE_A_STEP: 1}),
    "clipped by value": ({"trainer": {**PLAIN, "gradient_clip_algorithm": "value"}}, {ONE_A_STEP: 1}),
}
"""Settings -> what an optimizer step waits for, and how often. A new wait needs a reason here."""

CASES |= {f"waits: {name}": Case("steps", settings, ("cuda",)) for name, (settings, _) in WAITS.items()}
CASES["waits of a validation"] = Case("validation", {}, ("cuda",))
CASES["doctor's clock"] = Case("waits_of_doctor", {})


def run_cases(folder: Path, chosen: dict[str, list[str]], *, real: bool) -> dict[str, Any]:
    """Name -> place -> what cases.py found there; chosen: name -> kinds of device."""
    job = folder / "job.json"
    cases = [[CASES[name].function, CASES[name].settings, kinds] for name, kinds in chosen.items()]
    job.write_text(json.dumps({"real": real, "folder": str(folder), "cases": cases}))
    paths = ":".join(map(str, (ROOT / "src", ROOT / "tests", ROOT / "tests" / "training", HERE)))
    done = subprocess.run(
        [sys.executable, str(HERE / "cases.py"), str(job)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(chosen, json.loads(job.read_text())["results"], strict=True))


def environment() -> dict[str, str]:
    """The environment, without a choice of GPUs."""
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}


@pytest.fixture(scope="session")
def results(made_once: Callable[..., Path]) -> Results:
    """The results of a case on a pretended device, and on the CPU; run once, whichever worker comes first."""
    if (why := guards.why_not()) is not None:
        pytest.skip(f"no pretended device: {why}")

    def found(name: str, kind: str) -> dict[str, Any]:
        slow = kind not in CASES[name].quick
        kinds = {each: [k for k in guards.KINDS if (k not in case.quick) == slow] for each, case in CASES.items()}
        chosen = {each: of_case for each, of_case in kinds.items() if of_case}

        def make(folder: Path) -> None:
            (folder / "results.json").write_text(json.dumps(run_cases(folder, chosen, real=False)))

        folder = made_once("device-slow" if slow else "device", make)
        every: dict[str, Any] = json.loads((folder / "results.json").read_text())
        return {"cpu": value(every[name]["cpu"]), kind: value(every[name][kind])}

    return found


def value(answer: dict[str, Any]) -> Any:
    """What a case found; fails with its error."""
    assert "error" not in answer, f"{answer['error']}\n{answer['trace'][-3000:]}"
    return answer["found"]


def check_equal(ours: Any, theirs: Any, where: str = "", rel: float = 1e-4, atol: float = 1e-5) -> None:
    """Texts are the same, and numbers but for rounding."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            check_equal(ours[key], theirs[key], f"{where} {key}", rel, atol)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            check_equal(*pair, f"{where}[{i}]", rel, atol)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=rel, abs=atol, nan_ok=True), where
    else:
        assert ours == theirs, where


def cases(*functions: str) -> list[str]:
    """The names of the cases of these functions."""
    return [name for name, case in CASES.items() if case.function in functions]


def on_kinds(names: Sequence[str]) -> list[Any]:
    """Parameters: each case on each kind of device."""
    return [
        pytest.param(name, kind, marks=[] if kind in CASES[name].quick else [pytest.mark.slow])
        for name in names
        for kind in guards.KINDS
    ]


COMPARED = cases("model", "long_text", "chunks", "inspection", "commands", "run", "oracles", "refusals")


@pytest.mark.parametrize(("name", "kind"), on_kinds(COMPARED))
def test_on_a_pretended_device_results_are_those_of_the_cpu(name: str, kind: str, results: Results) -> None:
    found = results(name, kind)
    check_equal(found[kind], found["cpu"])


WAITS_OF_TEXT = {"cuda": 1 + 40 // 8, "mps": 41}
"""For 41 tokens: one for the prompt, then one for 8 tokens or for each."""


@pytest.mark.parametrize(("name", "kind"), on_kinds(cases("writing")))
def test_texts_are_those_of_the_cpu_and_an_nvidia_gpu_is_waited_for_once_in_eight_tokens(
    name: str, kind: str, results: Results
) -> None:
    found = results(name, kind)
    assert found[kind].pop("waits") == WAITS_OF_TEXT[kind]
    check_equal(found[kind], found["cpu"])


@pytest.mark.parametrize(("name", "kind"), on_kinds(cases("steps")))
def test_an_optimizer_step_waits_for_the_device_as_often_as_the_table_says(
    name: str, kind: str, results: Results
) -> None:
    expected = Counter(WAITS[name.removeprefix("waits: ")][1])
    steps = results(name, kind)[kind]["waits"]
    assert len(steps) == PLAIN["max_steps"] - 1
    for step, waits in enumerate(steps, start=1):
        extra = Counter(SELDOM if step in {1, 2, 5} else {})
        assert Counter(waits) == expected + extra, f"step {step}"


@pytest.mark.parametrize(("name", "kind"), on_kinds(cases("validation")))
def test_a_validation_waits_for_the_device_once_however_many_batches_it_has(
    name: str, kind: str, results: Results
) -> None:
    found = results(name, kind)[kind]
    assert found["batches"] > 2
    assert found["waits"] == {"training/module.py on_validation_epoch_end": 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", guards.KINDS)
def test_doctor_stops_its_clock_when_the_device_is_done(kind: str, results: Results) -> None:
    assert results("doctor's clock", kind)[kind]["waits"] > 0


def real_kind() -> str | None:
    """The kind of GPU of this machine."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None


@pytest.mark.gpu
@pytest.mark.skipif(real_kind() is None, reason="torch finds no GPU on this machine")
def test_on_the_gpu_of_this_machine_results_are_those_of_the_cpu(tmp_path: Path) -> None:
    kind = str(real_kind())
    names = [name for name in (*COMPARED, *cases("writing")) if name != "refusals"]
    found, wrong = run_cases(tmp_path, {name: [kind] for name in names}, real=True), []
    for name in names:
        try:
            check_equal(value(found[name][kind]), value(found[name]["cpu"]), rel=1e-2, atol=1e-3)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    print(f"{len(names) - len(wrong)} of {len(names)} cases agree on {kind}")
    assert not wrong, "\n\n".join(wrong)
