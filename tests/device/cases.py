"""What the device contract runs: each case on the CPU and on a device, in one process; as a program, with its results.

    python tests/device/cases.py JOB.json

where JOB.json has "folder", "real" (whether the devices are) and "cases": each [function, settings, kinds of device].
It adds "results": for each case, what was found on the CPU and on each device, or the error there.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# ruff: noqa: E402
JOB = json.loads(Path(sys.argv[1]).read_text()) if __name__ == "__main__" else {"real": True}
if not JOB["real"]:
    import pretended  # before torch

import numpy as np
import torch
from reference import attend_slowly
from small_runs import small_settings
from study_files import study_file
from torch import Tensor

from minigpt.config import Config, GenerationConfig, GPTConfig, InspectConfig, PatchConfig
from minigpt.data.batches import IGNORED
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.inspection.ablation import ablation
from minigpt.inspection.capture import capture_attention
from minigpt.inspection.composition import composition_scores
from minigpt.inspection.diagnostics import diagnose_model
from minigpt.inspection.heads import score_heads
from minigpt.inspection.hooks import hooks, run_with_cache
from minigpt.inspection.lens import logit_lens
from minigpt.inspection.probes import Probe
from minigpt.inspection.qk_attribution import qk_attribution
from minigpt.model.gpt import GPT
from minigpt.model.variants.graphs import Causal
from minigpt.model.variants.similarities import Cosine
from minigpt.training.loss import chunked_loss, model_loss
from minigpt.training.module import TrainingModule

TEXT = "1 plus 2 is 3; 1 plus 2 is 3; 7 plus 13 is 20;"


class Place(NamedTuple):
    """Where a case runs."""

    kind: str
    """cpu, cuda or mps."""
    folder: Path
    """For its runs; with the text and the CPU's runs."""

    @property
    def device(self) -> str:
        """As `--device` names it."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:0"

    @property
    def accelerator(self) -> str:
        """As `trainer.accelerator` names it."""
        return {"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[self.kind]


def small_model(settings: dict[str, Any]) -> GPT:
    """Two layers with random weights, larger than initial ones: attention differs between tokens."""
    given = {"vocab_size": 257, "context_length": 16, "n_layer": 2, "n_head": 2, "n_embd": 16} | settings
    if given.get("document_mask"):
        given["end_of_text"] = 256
    torch.manual_seed(1)
    model = GPT(GPTConfig(**given))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


def model(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """A model's loss, gradients and validation loss, its attention weights and head scores, and what it writes."""
    made = small_model(settings).to(place.device)
    data = torch.frombuffer(bytearray(TEXT.encode()[:34]), dtype=torch.uint8).long().view(2, 17).to(place.device)
    tokens, targets = data[:, :-1].clone(), data[:, 1:].clone()
    tokens[0, 5] = 256
    targets[1, 9:] = IGNORED
    loss = model_loss(made, tokens, targets)
    loss.backward()
    found = {"loss": float(loss), "norm": float(torch.nn.utils.get_total_norm([p.grad for p in made.parameters()]))}
    made.eval()
    with torch.no_grad():
        found["sum"] = float(model_loss(made, tokens, targets, reduction="sum"))
        with capture_attention(made) as maps:
            made(tokens)
        found["weights"] = [float(each.float().square().sum()) for each in maps]
    writer = Writer(made, BytesTokenizer())
    # Prompts of several lengths are padded; the first reaches the end of the context, so it slides.
    config = GenerationConfig(max_new_tokens=4, temperature=0)
    found["texts"] = [each.tokens for each in writer.generate_many([TEXT[:14], TEXT[:4], TEXT[:4]], config)]
    found["draft"] = writer.generate("ababab", config, draft_tokens=3).tokens
    found["score"] = writer.score(TEXT[:20]).loss
    return found


def long_text(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """The loss and gradients of a text longer than a block; a pretended GPU has no FlexAttention, and warns of that."""
    made = small_model({"context_length": 150, "n_embd": 32, "n_kv_head": 1, "window": [9, None]}).to(place.device)
    data = (torch.arange(302) % 97).view(2, 151).to(place.device)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        loss = model_loss(made, data[:, :-1], data[:, 1:])
        loss.backward()
    told = sum("FlexAttention failed" in str(warning.message) for warning in given)
    assert told == (place.kind == "cuda" and not JOB["real"]), f"{told} warnings"
    norm = torch.nn.utils.get_total_norm([p.grad for p in made.parameters()])
    return {"loss": float(loss), "norm": float(norm)}


def inspection(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Probes, statistics, ablation, attribution and hooks of a model."""
    made, tokenizer = small_model(settings).to(place.device).eval(), BytesTokenizer()
    probe = Probe.of(tokenizer, tokenizer.encode(TEXT), 16, 12, 32)
    scores = score_heads(made, tokenizer, probe, 0, everything=True)
    tokens = torch.tensor([tokenizer.encode(TEXT)[:13]], device=place.device)
    found: dict[str, Any] = {name: values.tolist() for name, values in scores.snapshot.scores.items()}
    found["numbers"] = dict(scores.snapshot.numbers)
    with torch.no_grad():
        logits, cache = run_with_cache(made, tokens)
        stored = cache.to("cpu")
        replaced: dict[str, Callable[[Tensor, str], Tensor]] = {
            "*.pattern": lambda _, name: stored[name],
            "*.resid_mid": lambda _, name: stored[name],
        }
        with hooks(made, replaced):
            found["hooked"] = float((made(tokens) - logits).abs().max())
    for kind in ("zero", "mean"):
        found[kind] = numbers_in(ablation(made, tokens, kind=kind).changes)
    found["lens"] = numbers_in(logit_lens(made, tokens))
    found["diagnostics"] = numbers_in(diagnose_model(made, probe.windows))
    found["composition"] = composition_scores(made).tolist()
    found["qk"] = qk_attribution(made, tokens, 1, 1, 8, 2).values.tolist()
    return found


def numbers_in(value: Any) -> Any:
    """The numbers of a result, as lists."""
    if isinstance(value, Tensor):
        return value.detach().float().cpu().tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return [numbers_in(getattr(value, each.name)) for each in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [numbers_in(each) for each in value]
    return value if isinstance(value, int | float | str | None) else repr(type(value))


def config_of(place: Place, sections: dict[str, Any], name: str) -> Config:
    """A run of a second on the place."""
    given = {key: dict(value) if isinstance(value, dict) else value for key, value in sections.items()}
    given["model"] = {"n_layer": 1} | given.get("model", {})
    given["trainer"] = {"max_steps": 2, "val_check_interval": 1000} | given.get("trainer", {})
    given["trainer"] |= {"accelerator": place.accelerator}
    given["trainer"].setdefault("precision", "32-true")
    given["sampling"] = {"max_new_tokens": 4} | given.get("sampling", {})
    return small_settings(place.folder, **given, name=f"{name}-{place.kind}")


def run(place: Place, sections: dict[str, Any]) -> dict[str, Any]:
    """A whole run, resumed for one more step: losses, samples and head scores."""
    from minigpt.training.run import train

    resumed = sections.pop("resumed", True)
    config = config_of(place, sections, "run")
    folder = train(config)
    if resumed:
        longer = dataclasses.replace(config.trainer, max_steps=config.trainer.max_steps + 1)
        train(dataclasses.replace(config, trainer=longer), folder.path)
    with folder.metrics.open() as file:
        rows = list(csv.DictReader(file))
    columns = ("train/loss", "grad_norm", "val/loss")
    found: dict[str, Any] = {name: [float(row[name]) for row in rows if row[name]] for name in columns}
    found["samples"] = [file.read_text() for file in sorted((folder.path / "samples").glob("*.txt"))]
    found["anomalies"] = len(list((folder.path / "anomalies").glob("*.json")))
    if folder.heads.exists():
        with folder.heads.open() as file:
            found["heads"] = [[_number(cell) for cell in row] for row in csv.reader(file)]
    return found


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def steps(place: Place, sections: dict[str, Any]) -> dict[str, Any]:
    """A run without validation between its steps: waits of the first steps by what they wait for."""
    from minigpt.training.run import train

    if place.kind == "cpu":
        return {"waits": []}
    seen: list[Counter[str]] = []
    original = TrainingModule.on_train_batch_start

    def note(module: TrainingModule, batch: Any, batch_idx: int) -> None:
        seen.append(Counter() if JOB["real"] else Counter(pretended.waits))
        original(module, batch, batch_idx)

    config = config_of(place, {"sampling": {"prompts": []}, **sections}, "steps")
    n = config.trainer.accumulate_grad_batches
    with mock.patch.object(TrainingModule, "on_train_batch_start", note):
        train(config)
    starts = seen[::n]  # of optimizer steps
    return {"waits": [by_place(after - before) for before, after in itertools.pairwise(starts)]}


def by_place(waits: Counter[str]) -> Counter[str]:
    """Without the kind and the line: "copy to the CPU: training/module.py:211 f" -> "training/module.py f"."""
    found = Counter[str]()
    for where, n in waits.items():
        found[re.sub(r"^[^:]*: ([^:]*):\d+", r"\1", where)] += n
    return found


def validation(place: Place, sections: dict[str, Any]) -> dict[str, Any]:
    """Waits of the last validation of a run, from its first batch to its loss, and its number of batches."""
    from minigpt.training.run import train

    if place.kind == "cpu" or JOB["real"]:
        return {}
    found: dict[str, Any] = {}
    begin, end = TrainingModule.on_validation_epoch_start, TrainingModule.on_validation_epoch_end

    def at_start(module: TrainingModule) -> None:
        begin(module)
        found["before"] = Counter(pretended.waits)

    def at_end(module: TrainingModule) -> None:
        end(module)
        found["waits"] = by_place(pretended.waits - found["before"])
        found["batches"] = module.trainer.num_val_batches[0]

    hooks = {"on_validation_epoch_start": at_start, "on_validation_epoch_end": at_end}
    with mock.patch.multiple(TrainingModule, **hooks):
        train(config_of(place, {"sampling": {"prompts": []}, **sections}, "validation"))
    return {name: found[name] for name in ("waits", "batches")}


def commands(place: Place, sections: dict[str, Any]) -> dict[str, Any]:
    """A run's model opened by the commands that look into it."""
    from minigpt.cli.main import dispatch
    from minigpt.lab.patch import patch_run
    from minigpt.pages.explanation import explain
    from minigpt.pages.model_report import write_inspection
    from minigpt.training.run import train

    cpu = Place("cpu", place.folder)
    path = place.folder / "runs" / "commands-cpu"
    if place.kind == "cpu":
        train(config_of(cpu, {"attention": {"enabled": False}, **sections}, "commands"))
    writer = Writer.load(path, place.device)
    text, _ = explain(writer, "1 plus", GenerationConfig(max_new_tokens=2, temperature=0))
    table = write_inspection(InspectConfig(run=str(path), device=place.device), TEXT)
    maps = [
        numbers_in(each.values)
        for method in ("activation", "attribution", "path")
        for each in patch_run(
            PatchConfig(str(path), "1 plus 2 is", "1 plus 3 is", " ", method=method, device=place.device)
        ).maps
    ]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for command in (["lens"], ["attribute"], ["attribute", "--loss"]):
            dispatch([*command[:1], str(path), "--text", "1 plus", *command[1:], "--device", place.device])
    return {
        "text": text.tokens,
        "printed": printed.getvalue(),
        "table": table.split("\n\n")[0],
        "maps": maps,
    }


def oracles(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """The slow twins compute on the CPU, where there is float64, whatever device their arguments are on."""
    x = torch.linspace(0, 1, 6).to(place.device)
    study = study_file("kernel-regression")
    query = torch.linspace(0, 1, 8).view(1, 1, 2, 4).to(place.device)
    attended = attend_slowly(query, query, query, similarity=Cosine(1).to(place.device), graph=Causal())
    return {"regression": study.regress(x, x, x, study.fit_width(x, x)).tolist(), "attention": attended.tolist()}


REFUSED: dict[str, Callable[[torch.device], Any]] = {
    "two devices": lambda device: torch.ones(2, device=device) + torch.ones(2),
    "numpy": lambda device: torch.ones(2, device=device).numpy(),
    "a matrix of the CPU": lambda device: torch.ones(2, 2, device=device) @ torch.ones(2, 2),
}
REFUSED_ON_MPS: dict[str, Callable[[torch.device], Any]] = {
    "tensor": lambda device: torch.tensor([1.0, 2.0], dtype=torch.float64, device=device),
    "zeros": lambda device: torch.zeros(2, dtype=torch.float64, device=device),
    "double": lambda device: torch.ones(2, device=device).double(),
    "mean": lambda device: torch.ones(2, device=device).mean(dtype=torch.float64),
    "from numpy": lambda device: torch.from_numpy(np.ones(2)).to(device),
    "no kernel": lambda device: torch.geqrf(torch.ones(2, 2, device=device)),
}
REFUSED_IF_DETERMINISTIC: dict[str, Callable[[torch.device], Any]] = {
    "cumsum": lambda device: torch.ones(2, device=device).cumsum(0),
    "median": lambda device: torch.ones(2, device=device).median(dim=0),
    "histc": lambda device: torch.ones(2, device=device).histc(2),
}


def refusals(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """The names of what the device, or a run on it, should have refused. On the CPU, nothing is tried."""
    from minigpt.training.run import check_before_text

    passed = []
    others = {"cpu": {}, "cuda": REFUSED_IF_DETERMINISTIC, "mps": REFUSED_ON_MPS}[place.kind]
    wanted = {} if place.kind == "cpu" else REFUSED | others
    torch.use_deterministic_algorithms(place.kind == "cuda")  # `result` turns it off
    for name, attempt in wanted.items():
        with contextlib.suppress(TypeError, RuntimeError):
            attempt(torch.device(place.device))
            passed.append(name)
    if place.kind == "mps":
        with contextlib.suppress(UserError):
            check_before_text(config_of(place, {"trainer": {"precision": "64-true"}}, "refused"))
            passed.append("64-true")
    return {"passed": passed}


def waits_of_doctor(place: Place, sections: dict[str, Any]) -> dict[str, Any]:
    """How often the estimate of a step waits for the device; the CPU has nothing to wait for."""
    from minigpt.training.run import check_before_text
    from minigpt.training.step_times import measure

    config = config_of(place, {**sections, "model": {"vocab_size": 257}}, "doctor")
    before = 0 if place.kind == "cpu" or JOB["real"] else pretended.waits.total()
    measure(config, check_before_text(config), 1e9)
    return {"waits": 0 if place.kind == "cpu" or JOB["real"] else pretended.waits.total() - before}


def chunks(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """The loss in chunks, and its gradients."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(*shape).to(place.device).requires_grad_() for shape in ((2, 8, 4), (12, 4)))
    targets = torch.arange(16).view(2, 8).remainder(10).to(place.device)
    loss = chunked_loss(hidden, weight, targets, 10, at_a_time=64)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return {"loss": float(loss), "gradients": [numbers_in(hidden.grad), numbers_in(weight.grad)]}


def writing(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Texts of a batch, long enough for a CUDA graph and past the context; and the waits for one of 41 tokens."""
    made = small_model({"context_length": 64, **settings}).to(place.device).eval()
    writer, found = Writer(made, BytesTokenizer()), {}
    for name, changes in {
        "drawn": {"top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2},
        "greedy": {"temperature": 0, "stop": ["e"]},
        "healed": {"min_new_tokens": 3},
    }.items():
        config = GenerationConfig(max_new_tokens=70 if name == "drawn" else 20, **changes)
        prompts = [TEXT[:14], TEXT[:4], "1 " if name == "healed" else "3"]
        found[name] = [each.tokens for each in writer.generate_many(prompts, config)]
    before = Counter() if place.kind == "cpu" or JOB["real"] else Counter(pretended.waits)
    writer.generate("1 plus", max_new_tokens=41, forbidden_tokens=[256])
    if place.kind != "cpu" and not JOB["real"]:
        found["waits"] = (pretended.waits - before).total()
    return found


CASES = {
    each.__name__: each
    for each in (
        model,
        long_text,
        writing,
        inspection,
        run,
        steps,
        validation,
        commands,
        oracles,
        refusals,
        waits_of_doctor,
        chunks,
    )
}


def machine(kind: str, settings: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    """The real device, or a pretended one with these properties."""
    if JOB["real"]:
        return contextlib.nullcontext()
    return pretended.pretended(kind, **settings)


def results(folder: Path, name: str, settings: dict[str, Any], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Place -> what a case found there, or its error: on the CPU, then on each kind of device."""
    folder.mkdir()
    found = {"cpu": result(Place("cpu", folder), name, settings, contextlib.nullcontext())}
    properties = settings.get("machine", {})
    return found | {kind: result(Place(kind, folder), name, settings, machine(kind, properties)) for kind in kinds}


def result(
    place: Place, name: str, settings: dict[str, Any], there: contextlib.AbstractContextManager[None]
) -> dict[str, Any]:
    """What one case found in one place, or its error."""
    output = io.StringIO()
    own = json.loads(json.dumps({key: value for key, value in settings.items() if key != "machine"}))
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings(), there:
            warnings.simplefilter("ignore")
            return {"found": CASES[name](place, own)}
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc() + output.getvalue()}
    finally:
        torch.use_deterministic_algorithms(False)  # Lightning leaves it on


if __name__ == "__main__":
    root = Path(JOB["folder"])
    JOB["results"] = [results(root / str(i), *case) for i, case in enumerate(JOB["cases"])]
    Path(sys.argv[1]).write_text(json.dumps(JOB))
