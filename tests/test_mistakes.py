"""Mistakes across train, sample, prepare and inspect: one clear line, exit code 2, nothing changed on disk.

They are made one after another, as a user would on the command line, in two processes: those that the command line
alone tells, which are answered without torch, because its import takes seconds; and all others.
"""

import contextlib
import functools
import hashlib
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scripts import ROOT, ready_python

COMMANDS = {"train", "sample", "prepare", "inspect", "doctor", "prove-resume"}
OBJECT = "an object is {class_path: module.Class, init_args: {name: value}}"
EARLY_STOPPING = "lightning.pytorch.callbacks.EarlyStopping"
TEXT = ["--data.source", "long.txt", "--data.tokenizer", "bytes", "--data.val_fraction", "0.05"]
PLAIN = [*TEXT, "--trainer.logger", "false"]


class Mistake(NamedTuple):
    """A command line, and words of its answer: what is wrong where, and what to do."""

    command: list[str]
    words: list[str]


def on(command: str, *words: str, more: list[str] | None = None) -> Mistake:
    return Mistake([*command.split(" "), *(more or [])], list(words))


CONFIG = [
    # a name that there is not
    on("train --model.n_layr 3", "--model.n_layr", "did you mean --model.n_layer?"),
    on("train --n_layer 3", "--n_layer", "did you mean --model.n_layer?"),
    on("train --trainer.max_step 3", "did you mean --trainer.max_steps?"),
    on("train --print_cofig", "did you mean --print_config?"),
    on("train --config typo.yaml", "typo.yaml:2: unknown setting model.n_layr", "did you mean model.n_layer?"),
    on("train --config lost.yaml", "lost.yaml:1: unknown setting n_layer", "did you mean model.n_layer?"),
    on("train --config tab.yaml", "tab.yaml:2: not valid YAML"),
    on("train --config long.txt", "long.txt: a recipe is a mapping such as 'model: {n_layer: 6}'"),
    on("train --config nowhere.yaml", "--config nowhere.yaml: no such file or directory"),
    on("train --config tiyn.yaml", "--config tiyn.yaml", "did you mean configs/tiny.yaml?"),
    on("train --seed 3 configs/tiny.yaml", "cannot place the argument 'configs/tiny.yaml'", "--name value"),
    on("train --resume nowhere", "--resume nowhere: there is no nowhere/config.yaml", "such as runs/demo"),
    on("train --resume runs/tiny/model.safetensors", "name the folder of a run"),
    on("doctor --model.n_layr 3", "did you mean --model.n_layer?"),
    on("prove-resume --kils 3", "unknown option --kils", "did you mean --kills?"),
    on("prove-resume --steps 1", "steps=1: must be at least 4"),
    on("prove-resume --kills some", "kills=some: expected int"),
    on("prove-resume --data.source -", "data.source=-", "save it to a file"),
    on("prove-resume --trainer.enable_checkpointing false", "there would be nothing to resume from"),
    on("share runs/tiny --out friend.bin", "out=friend.bin: name a file that ends in .safetensors"),
    on("sample runs/tiny --tempratur 1", "--tempratur", "did you mean --temperature?"),
    on("sample runs/tiny once", "cannot place the argument 'once'"),
    on("inspect runs/tiny --comparr x", "did you mean --compare?"),
    on("tran", "minigpt tran: write train or", "did you mean train?"),
    on("prepair", "did you mean prepare?"),
    on("prepare --source long.txt", "--source", "did you mean --data.source?"),
    on("prepare --config typo.yaml", "typo.yaml:2: unknown setting model.n_layr"),
    # a value that cannot be
    on("train --model.n_layer six", "model.n_layer=six: expected int"),
    on("train --model.n_layer=-1", "model.n_layer=-1: must be at least 1"),
    on("train --model.n_embd 100 --model.n_head 3", "model.n_embd=100 is not divisible by model.n_head=3"),
    on("train --model.dropout 1.5", "model.dropout=1.5: must be at least 0 and below 1"),
    on("train --model.position relative", "model.position=relative: expected rotary, learned"),
    on("train --optimizer.learning_rate fast", "optimizer.learning_rate=fast: expected float"),
    on("train --optimizer.learning_rate nan", "optimizer.learning_rate=nan: must be a finite number"),
    on("train --optimizer.name muon --trainer.strategy fsdp", "optimizer.name=muon", "use ddp"),
    on("train --optimizer.name adamw --trainer.strategy fsdp", "trainer.gradient_clip_val=1.0", "use fsdp2"),
    on("train --trainer.max_time 3m", "trainer.max_time=3m: must look like 00:00:03:00"),
    on("train --trainer.max_epochs 3", "max_epochs", "give trainer.max_steps"),
    on("train --trainer.devices -5", "trainer.devices=-5: must be at least 1, or -1 for all"),
    on("train --trainer.devices", "--trainer.devices needs a value", "written --trainer.devices=-..."),
    on("train --trainer.logger neptune", "trainer.logger=neptune: expected wandb"),
    on("train --trainer.logger {}", "trainer.logger={}", OBJECT),
    on("train --trainer.callbacks", "trainer.callbacks=", OBJECT, more=["[{class_pth: a.B}]"]),
    on("train --trainer.callbacks", "trainer.callbacks=", OBJECT, more=["[{class_path: a.B, init_args: 5}]"]),
    on("train --trainer.callbacks", "trainer.callbacks=", OBJECT, more=["[{class_path: EarlyStopping}]"]),
    on("train --name a/b", "name='a/b'", "it names a folder"),
    on("train --data.tokenizer gpt5", "data.tokenizer=gpt5: use bytes, chars, bpe:N"),
    on("train --data.tokenizer bpe:10", "data.tokenizer=bpe:10", "N lies between 258 and 1000000"),
    on("train --data.source=", "data.source is empty: name python_stdlib"),
    on("train --data.weights [1,2]", "data.weights=[1.0, 2.0]: there is 1 source"),
    on("prepare --data.val_fraction 2", "data.val_fraction=2.0: must lie between 0 and 1"),
    on("prepare --data.token_type uint8", "data.token_type=uint8: expected auto, uint16 or uint32"),
    on("sample", "run is missing"),
    on("sample runs/tiny --top_k 0", "top_k=0: must be at least 1"),
    on("sample runs/tiny --device gpu", "device=gpu: use cpu, cuda, cuda:1 or mps"),
    on("sample runs/tiny --prompts asked.jsonl", "--out texts.jsonl"),
    on("sample runs/tiny --interactive --compare runs/tiny", "interactive and compare are given together"),
    on("inspect", "run is missing"),
    on("inspect runs/tiny --text a --file long.txt", "text and file are both given: leave one out"),
    on("inspect runs/tiny --max_tokens 0", "max_tokens=0: must lie between 1 and 256"),
    on("inspect runs/tiny --device quantum", "device=quantum: use cpu"),
]
"""What the command line alone tells: answered without torch."""

TEXTS = [
    on("prepare --data.source nowhere.txt", "data.source=nowhere.txt: no such file or folder (relative to "),
    on("prepare --data.source nowhere/*.txt", "data.source=nowhere/*.txt: no file matches the glob"),
    on("prepare --data.source python_stdlb", "data.source=python_stdlb", "did you mean python_stdlib?"),
    on(
        "prepare --data.source ftp://x.org/a.txt",
        "data.source=ftp://x.org/a.txt",
        "only http://, https:// and hf: are downloaded",
    ),
    on("prepare --data.source roneneldan/TinyStories", "is written hf:roneneldan/TinyStories"),
    on("prepare --data.source hf:", "data.source=hf:", "is written hf:NAME"),
    on("prepare --data.source empty", "data.source=empty: the folder holds no text files"),
    on("prepare --data.source empty.txt", "data.source=empty.txt: no text in it"),
    on(
        "prepare --data.source latin.txt",
        "latin.txt is not UTF-8 text (byte 3)",
        "--data.encoding cp1252",
        "encoding_errors",
    ),
    on("prepare --data.source texts.zip", "texts.zip is a zip archive: unpack it and name the folder"),
    on("prepare --data.source /dev/null", "is not a regular file", "--data.source -"),
    on("prepare --data.source -", "data.source=-: standard input is empty", "cat FILE |"),
    on("prepare --data.source short.txt --data.tokenizer bytes", "the text is too short (1 bytes)"),
    on("prepare --data.source long.txt --data.val_source nowhere", "data.val_source=nowhere: no such file"),
    on("prepare --data.source long.txt --data.tokenizer no.json", "data.tokenizer=no.json: no such file"),
    on(
        "prepare --data.source long.txt --data.tokenizer broken.json",
        "data.tokenizer=broken.json: not a JSON file",
    ),
    on("prepare --data.source long.txt --data.dir long.txt", "data.dir=long.txt: cannot be made"),
    on("peek --data.source empty.txt", "data.source=empty.txt: no text in it"),
]
"""What must be looked for on disk. Besides its notes of what it has read, data.dir stays as it was."""

RUNS = [
    on("train --runs_dir long.txt", "runs_dir=long.txt: long.txt is a file, not a folder"),
    on(
        "train --trainer.accelerator gpu",
        "trainer.accelerator=gpu, trainer.devices=64: ",
        more=["--trainer.devices=64"],
    ),
    on("train --trainer.accelerator tpux", "trainer.accelerator=tpux: ", "Available names are: "),
    on("train --trainer.devices many --trainer.accelerator cpu", "trainer.devices=many"),
    on("train --trainer.precision bf17", "trainer.precision=bf17: ", "bf16-mixed"),
    on("train --trainer.strategy magic", "trainer.strategy=magic: ", "ddp"),
    on(
        "train --optimizer.name adamw --trainer.strategy fsdp --trainer.accelerator cpu",
        "trainer.strategy=fsdp",
        "GPU",
        more=["--trainer.gradient_clip_val=null"],
    ),
    on("train --trainer.profiler magic", "trainer.profiler=magic: ", "simple"),
    on("train --trainer.callbacks", "class_path=nowhere.X: cannot be built", more=["[{class_path: nowhere.X}]"]),
    on("train --trainer.callbacks", f"class_path={EARLY_STOPPING}", more=[f"[{{class_path: {EARLY_STOPPING}}}]"]),
    on(
        "train --trainer.callbacks",
        "trainer.callbacks: class_path=os.getcwd: is not a Lightning Callback",
        more=["[{class_path: os.getcwd}]"],
    ),
    on(
        "train --model.vocab_size 10",
        "model.vocab_size=10: the tokenizer has 257 tokens",
        more=PLAIN,
    ),
    on("train --model.context_length 99999", "needs 100000: give more text or a shorter context", more=PLAIN),
    on("train --attention.relations nowhere", "attention.relations=nowhere: cannot be read (no such file", more=PLAIN),
    on("train --resume runs/tiny", "--resume runs/tiny: no runs/tiny/checkpoints/last.ckpt yet", more=PLAIN),
    on("sample nowhere", "nowhere: no such run or checkpoint; there are runs/tiny"),
    on("sample empty", "empty: holds no model.safetensors and no checkpoints"),
    on("sample long.txt", "long.txt: damaged or incomplete; or not a checkpoint at all"),
    on("sample torn.safetensors", "torn.safetensors: damaged or incomplete"),
    on("sample evil.ckpt", "evil.ckpt: "),
    on("sample https://x.org/a.ckpt", "https://x.org/a.ckpt", "download it first"),
    on("sample runs/tiny --device cuda:99", "device=cuda:99: not available here"),
    on("sample runs/tiny --prompt_file nowhere", "--prompt_file nowhere: no such file or directory"),
    on("sample runs/tiny --prompt_file latin.txt", "--prompt_file latin.txt: not UTF-8 text (byte 3)"),
    on("sample runs/tiny --prompts torn.jsonl --out o.jsonl", "torn.jsonl:1: not JSON", '{"prompt": "def ", '),
    on(
        "sample runs/tiny --prompts asked.jsonl --out long.txt",
        "long.txt:1: is not an output line",
        "name another file",
    ),
    on("sample runs/tiny --explain long.txt", "long.txt: already exists and is not an HTML page; name another"),
    on("sample runs/tiny --checkpoints empty", "empty: is a folder; name a file"),
    on("sample runs/tiny --compare nowhere", "nowhere: no such run or checkpoint; there are runs/tiny"),
    on("sample runs/tiny --forbidden_tokens [999]", "forbidden_tokens: there is no token 999: the vocabulary has 257"),
    on("inspect nowhere", "nowhere: no such run or checkpoint; there are runs/tiny"),
    on("inspect runs/tiny --file nowhere", "--file nowhere: no such file or directory"),
    on("inspect runs/tiny --file empty.txt", "the text is empty: give one as --text or --file"),
    on("inspect runs/tiny --text a --out long.txt", "long.txt: already exists and is not an HTML page"),
    on("inspect runs/tiny --text a --out empty", "empty: is a folder; name a file"),
    on("inspect runs/tiny --text a --compare nowhere", "nowhere: no such run or checkpoint"),
    on("inspect runs/tiny --relations nowhere", "nowhere: cannot be read (no such file or directory)"),
    on("share nowhere", "nowhere: no such run or checkpoint; there are runs/tiny"),
    on("share empty", "empty: holds no model.safetensors and no checkpoints"),
    on("share runs/tiny --out torn.safetensors", "torn.safetensors: already exists", "--out FILE.safetensors"),
    on("share runs/tiny/model.safetensors", "weights without a card", "name a run folder"),
    on(
        "share runs/tiny/model.safetensors --out b.safetensors",
        "out=b.safetensors: is for the file made of a run folder",
    ),
    on("share long.txt", "long.txt: not a shared file, which ends in .safetensors"),
    on("share torn.safetensors", "torn.safetensors: damaged or incomplete"),
    on("report nowhere", "nowhere: no such run; a report needs", "such as runs/demo"),
    on("report runs/tiny --out long.txt", "long.txt: already exists and is not an HTML page"),
]
"""What needs torch to be told."""

MISTAKES = [*CONFIG, *TEXTS, *RUNS]


class Answer(NamedTuple):
    """How a program ended."""

    code: int
    err: str
    traceback: str
    changed: list[str]
    torch: bool


def state(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, with what is in it, but for data.dir's notes of what it has read."""
    own = (folder / "data" / "huggingface", *(folder / "data").glob(".*"))
    paths = [path for path in folder.rglob("*") if not any(path.is_relative_to(each) for each in own)]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in paths
        if path != folder / "data"
    }


def make(command: list[str]) -> Answer:
    """Run a program in this process."""
    from minigpt.cli.main import main

    before, err, trace, code = state(Path.cwd()), io.StringIO(), "", -1
    sys.argv = ["minigpt", *command]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        trace = traceback.format_exc()
    after = state(Path.cwd())
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return Answer(code, err.getvalue(), trace, changed, "torch" in sys.modules)


def make_what_training_makes() -> None:
    """A run's weights, and the text as it is prepared; not in the test's own process, to spare it torch."""
    from minigpt.config import Config, GPTConfig
    from minigpt.data.tokenizers.base import BytesTokenizer
    from minigpt.model.gpt import GPT
    from minigpt.runs.loading import save_weights

    assert make(["prepare", *TEXT]).code == 0
    shape = GPTConfig(vocab_size=257, context_length=32, n_layer=2, n_head=2, n_embd=32)
    save_weights(Path("runs/tiny/model.safetensors"), GPT(shape), Config(model=shape), BytesTokenizer())


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.fixture(scope="module")
def answers(made_once: Callable[..., Path]) -> list[Answer]:
    """What each of MISTAKES leads to."""
    text = (made_once("mistakes", make_all) / "answers.json").read_text()
    return [Answer(*answer) for answer in json.loads(text)]


def make_all(base: Path) -> None:
    """Write the answers to all mistakes, in a user's folder with a run, texts and recipes."""
    folder = base / "user"
    for name, content in {
        "long.txt": b"All happy families are alike.\n" * 100,
        "short.txt": b"x",
        "empty.txt": b"",
        "latin.txt": b"caf\xe9\n",
        "texts.zip": b"PK\3\4",
        "broken.json": b"{",
        "torn.safetensors": b"\xff\0\0\0\0\0\0\0{",
        "torn.jsonl": b'{"prompt": "x"',
        "asked.jsonl": b'{"prompt": "x"}\n',
        "typo.yaml": b"model:\n  n_layr: 3\n",
        "lost.yaml": b"n_layer: 3\n",
        "tab.yaml": b"model:\n\tn_layer: 3\n",
        "configs/tiny.yaml": b"seed: 1\n",
        "runs/tiny/config.yaml": b"name: tiny\n",
        "runs/tiny/metrics.csv": b"step\n",
        "evil.ckpt": pickle.dumps(Evil()),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    answers = []
    for python, part in ((sys.executable, "config"), (ready_python(), "rest")):
        result = subprocess.run(
            [python, str(ROOT / "tests" / "test_mistakes.py"), part],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "src", "tests"))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        answers += json.loads(result.stdout.splitlines()[-1])
    (base / "answers.json").write_text(json.dumps(answers))


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(mistake.command) for mistake in MISTAKES])
def test_a_mistake_is_one_line_that_says_what_to_do_and_changes_nothing(number: int, answers: list[Answer]) -> None:
    answer = answers[number]
    assert answer.traceback == ""
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert len(answer.err) < 600
    for words in MISTAKES[number].words:
        assert words in answer.err
    assert answer.changed == []


def test_mistakes_in_the_config_are_answered_without_torch(answers: list[Answer]) -> None:
    late = [" ".join(mistake.command) for mistake, answer in zip(CONFIG, answers, strict=False) if answer.torch]
    assert late == []


def test_there_are_many_mistakes_and_no_two_are_the_same() -> None:
    commands = [mistake.command for mistake in MISTAKES]
    assert len(commands) == len({tuple(command) for command in commands}) >= 100
    assert {command[0] for command in commands} >= COMMANDS


if __name__ == "__main__":
    # As in conftest.py: jsonargparse asks for the source of each class of settings for each command line.
    inspect.getsource = functools.cache(inspect.getsource)
    if sys.argv[1] == "config":
        told = [make(mistake.command) for mistake in CONFIG]
    else:
        make_what_training_makes()
        told = [make(mistake.command) for mistake in (*TEXTS, *RUNS)]
    print("\n" + json.dumps(told))
