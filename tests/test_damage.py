"""Damage to what a run or a preparation left is noticed, and the file before it used; nothing that is opened runs."""

import hashlib
import io
import json
import os
import pickle
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minigpt.cli import parsing
from minigpt.config import Config, DataConfig, GenerationConfig, GPTConfig, InspectConfig, ReportConfig
from minigpt.data.prepare import prepare
from minigpt.data.shards import PreparedData, open_prepared
from minigpt.data.sources.scan import Scans
from minigpt.data.tokenizers.base import CharsTokenizer, load_tokenizer
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.inspection.snapshot import Snapshot
from minigpt.model.gpt import GPT
from minigpt.pages.film import film
from minigpt.pages.model_report import inspect_runs
from minigpt.pages.report import report_run
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, load_model, newest_checkpoint, save_checkpoint, save_weights
from minigpt.training.checkpoints import AtomicCheckpointIO
from minigpt.training.run import train

TOKENIZER = CharsTokenizer("\n abcdefghijklm")
SIZES = {"context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 8}
CONFIG = Config(model=GPTConfig(vocab_size=TOKENIZER.vocab_size, **SIZES))


def content_of(step: int) -> dict[str, Any]:
    """What Lightning would hand over to be saved."""
    torch.manual_seed(step)
    state = {f"model.{name}": tensor for name, tensor in GPT(CONFIG.model).state_dict().items()}
    ours = {"config": CONFIG.to_dict(), "tokenizer": TOKENIZER.to_dict(), "text_fingerprint": "", "micro_batches": 0}
    return {"global_step": step, "state_dict": state, "optimizer_states": [], CHECKPOINT_KEY: ours}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of 20 steps, the best and the one before the last being of step 10."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # thousands of files here need not outlive a power cut
    run = RunFolder(tmp_path / "run")
    save_checkpoint(run.last, content_of(20))
    for path in (run.earlier(10), run.best):
        save_checkpoint(path, content_of(10))
    torch.manual_seed(10)
    save_weights(run.weights, GPT(CONFIG.model), CONFIG, TOKENIZER)
    return run


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in range(30)))
    return prepare(DataConfig(source=str(tmp_path / "rows.jsonl"), tokenizer="bytes", dir=str(tmp_path / "data")))


def damaged(content: bytes, n_flips: int, n_cuts: int) -> Iterator[bytes]:
    """A file's content with one byte changed, at its beginning, its end and anywhere; and without some of its end."""
    drawn, size = random.Random(0), len(content)
    edges = [*range(min(40, size)), *range(max(0, size - 90), size)]
    for number in range(n_flips):
        place = edges[number] if number < len(edges) else drawn.randrange(size)
        yield content[:place] + bytes([content[place] ^ drawn.randint(1, 255)]) + content[place + 1 :]
    for number in range(n_cuts):
        yield content[: size - 1 - number if number < n_cuts // 2 else drawn.randrange(size)]


MANY = pytest.mark.parametrize(
    ("n_flips", "n_cuts"), [(250, 25), pytest.param(5000, 500, marks=pytest.mark.slow)], ids=["some", "many"]
)


@MANY
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(n_flips: int, n_cuts: int, run: RunFolder) -> None:
    for content in damaged(run.last.read_bytes(), n_flips, n_cuts):
        run.last.write_bytes(content)
        path, found = newest_checkpoint(run, quiet=True)
        assert (path, found["global_step"]) == (run.earlier(10), 10)


@MANY
def test_damaged_weights_are_noticed_and_those_of_the_checkpoint_used(
    n_flips: int, n_cuts: int, run: RunFolder
) -> None:
    for content in damaged(run.weights.read_bytes(), n_flips, n_cuts):
        run.weights.write_bytes(content)
        assert load_model(run.path).path == run.best


@MANY
@pytest.mark.parametrize("which", ["manifest", "others"])
def test_a_damaged_file_of_tokens_is_noticed(
    which: str, n_flips: int, n_cuts: int, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scans, "_remember", lambda self: None)
    others = [name for name in data.manifest.files if (data.folder / name).stat().st_size]
    names = ["manifest.json"] if which == "manifest" else others
    for name in names:
        path = data.folder / name
        whole = path.read_bytes()
        for content in damaged(whole, -(-n_flips // len(names)), -(-n_cuts // len(names))):
            path.write_bytes(content)
            with pytest.raises(UserError, match="it will be prepared anew"):
                open_prepared(data.folder, Scans(tmp_path / "scans"))
        path.write_bytes(whole)
    open_prepared(data.folder, Scans(tmp_path / "scans"))


def test_what_is_used_instead_is_said_in_one_line(run: RunFolder, capsys: pytest.CaptureFixture) -> None:
    run.weights.write_bytes(next(damaged(run.weights.read_bytes(), 1, 0)))
    load_model(run.path)
    newest_checkpoint(run)
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith(f"note: {run.weights}: ")
    assert first.endswith(f"; {run.best} is used instead")
    assert not more


def test_where_nothing_is_whole_it_is_one_line(run: RunFolder) -> None:
    for path in (run.last, run.best, run.earlier(10)):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"last.ckpt: .*step_000010.ckpt: .*best.ckpt: ") as caught:
        newest_checkpoint(run)
    assert "\n" not in str(caught.value)


def test_a_single_file_that_is_damaged_is_refused_as_there_is_no_other(run: RunFolder) -> None:
    run.last.write_bytes(run.last.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        load_model(run.last)


def test_a_missing_last_checkpoint_is_replaced_by_the_one_before(run: RunFolder) -> None:
    run.last.unlink()
    assert newest_checkpoint(run)[0] == run.earlier(10)


def test_files_without_a_checksum_as_they_once_were_are_read_silently(
    run: RunFolder, capsys: pytest.CaptureFixture
) -> None:
    torch.save(content_of(30), run.last)
    with safe_open(run.weights, framework="pt") as file:
        header = {name: text for name, text in file.metadata().items() if name != "sha256"}
        save_file({name: file.get_tensor(name) for name in file.keys()}, run.weights, metadata=header)  # noqa: SIM118
    assert newest_checkpoint(run)[1]["global_step"] == 30
    assert load_model(run.path).path == run.weights
    assert capsys.readouterr().err == ""


def test_other_programs_open_our_files(run: RunFolder) -> None:
    name = "model.lm_head.weight"
    for memory_map in (False, True):
        opened = torch.load(run.last, weights_only=True, mmap=memory_map)
        assert torch.equal(opened["state_dict"][name], content_of(20)["state_dict"][name])
    with safe_open(run.weights, framework="pt") as file:
        assert len(file.metadata()["sha256"]) == 64


# Hostile files


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def as_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def as_array(value: Any, path: Path) -> None:
    np.savez(path.with_suffix(".npz"), format=np.array([value], dtype=object))
    path.with_suffix(".npz").replace(path)


OPENERS: dict[str, Callable[[RunFolder], object]] = {
    "load_model": lambda run: load_model(run.last),
    "sample.py": lambda run: Writer.load(run.path),
    "inspection": lambda run: inspect_runs(InspectConfig(run=str(run.path)), "abc"),
    "film": lambda run: film(run.path, "abc", GenerationConfig(max_new_tokens=1)),
    "--resume": lambda run: train(CONFIG, run.path),
    "Lightning": lambda run: AtomicCheckpointIO().load_checkpoint(run.last, weights_only=False),
}


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that hostile files make; at the end it must not be there. The environment asks for unsafe loading."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def test_the_payload_does_run_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("write", [torch.save, as_legacy, as_plain, as_array])
def test_a_pickle_in_the_place_of_a_checkpoint_is_never_run(
    write: Callable[[Any, Path], None], opener: str, tmp_path: Path, proof: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.last.parent.mkdir(parents=True)
    write(content_of(1) | {"hyper_parameters": Payload(proof)}, run.last)
    with pytest.raises(UserError) as caught:
        OPENERS[opener](run)
    assert str(run.last) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_folder_of_shards_is_never_opened(opener: str, tmp_path: Path, proof: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.last.mkdir(parents=True)
    (run.last / ".metadata").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(UserError, match="a sharded checkpoint"):
        OPENERS[opener](run)


@pytest.mark.parametrize(
    "open_it",
    [
        load_model,
        Writer.load,
        lambda url: film(url, "abc"),
        lambda url: inspect_runs(InspectConfig(run=url), "abc"),
        lambda url: report_run(ReportConfig(run=url)),
        lambda url: parsing.parse_training(["--resume", url]),
        lambda url: train(CONFIG, Path(url)),
    ],
)
@pytest.mark.parametrize("url", ["http://127.0.0.1:9/last.ckpt", "s3://bucket/run", "file:///tmp/model.safetensors"])
def test_a_url_is_never_opened(open_it: Callable[[str], object], url: str, proof: Path) -> None:
    with pytest.raises(UserError, match="is opened from disk only; download it first"):
        open_it(url)


def test_crafted_settings_in_a_checkpoint_are_never_built(run: RunFolder, proof: Path) -> None:
    """They pass as settings, since a recipe may name classes; whoever opens the file builds none."""
    built = {"class_path": "os.system", "init_args": {"command": f"touch {proof}"}}
    content = content_of(20) | {"hyper_parameters": {"_instantiator": "os.system", "command": f"touch {proof}"}}
    trainer = replace(CONFIG.trainer, callbacks=[built], plugins=[built], logger=built)
    content[CHECKPOINT_KEY]["config"] = asdict(replace(CONFIG, trainer=trainer))
    save_checkpoint(run.last, content)
    run.weights.unlink()
    run.best.unlink()
    assert load_model(run.path).path == run.last
    film(run.path, "abc", GenerationConfig(max_new_tokens=1))
    with pytest.raises(UserError):  # another run by other settings, or another text: not begun, whichever comes first
        train(replace(CONFIG, data=DataConfig(source="nowhere.txt")), run.path)


@pytest.mark.parametrize(
    "changed",
    [
        {"config": "[]"},
        {"config": "{"},
        {"config": "[" * 100_000},
        {"config": '{"model": {"vocab_size": -5}}'},
        {"config": '{"model": {"__class__": "os.system"}}'},
        {"config": '{"model": {"vocab_size": 17, "n_embd": 4611686018427387904, "n_head": 1}}'},
        {"tokenizer": "null"},
        {"tokenizer": '{"kind": "__import__"}'},
        {"tokenizer": '{"kind": "bpe"}'},
    ],
    ids=str,
)
def test_a_crafted_header_is_one_line(changed: dict[str, str], run: RunFolder, proof: Path) -> None:
    with safe_open(run.weights, framework="pt") as file:
        header = {name: text for name, text in file.metadata().items() if name != "sha256"}
        save_file({"x": torch.zeros(1)}, run.weights, metadata=header | changed)
    with pytest.raises(UserError) as caught:
        load_model(run.weights)
    assert "\n" not in str(caught.value)
    assert str(run.weights) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        (1 << 62).to_bytes(8, "little") + b"{}",
        (90_000_000).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        b"",
    ],
    ids=lambda content: str(len(content)),
)
def test_a_header_that_lies_about_its_length_is_one_line(content: bytes, tmp_path: Path, proof: Path) -> None:
    path = tmp_path / "model.safetensors"
    for name in (content, content + pickle.dumps(Payload(proof))):
        path.write_bytes(name)
        with pytest.raises(UserError, match=r"model.safetensors: "):
            load_model(path)


def test_other_files_that_could_hold_a_pickle_are_never_unpickled(
    data: PreparedData, tmp_path: Path, proof: Path
) -> None:
    payload = Payload(proof)
    as_plain(payload, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="not a JSON file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    as_array(payload, tmp_path / "step.npz")
    with pytest.raises(ValueError, match="is not a snapshot"):
        Snapshot.load(tmp_path / "step.npz")
    starts = io.BytesIO()
    np.save(starts, np.array([payload], dtype=object))
    path = data.folder / data.manifest.train.documents
    path.write_bytes(starts.getvalue())
    entry = {"n_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    forged = replace(data.manifest, files=data.manifest.files | {path.name: entry})
    (data.folder / "manifest.json").write_text(forged.to_json())
    with pytest.raises(UserError, match="not an array of numbers"):
        open_prepared(data.folder)
    recipe = tmp_path / "config.yaml"
    recipe.write_text(f"name: !!python/object/apply:os.system ['touch {proof}']\n")
    with pytest.raises(UserError, match="could not determine a constructor for the tag"):
        parsing.parse_training(["--resume", str(tmp_path)])
