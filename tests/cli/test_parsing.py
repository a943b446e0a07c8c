"""The command line: each mistake is one line that names it, and later words win over earlier ones."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import ROOT, run_script

from minigpt.cli import parsing, program
from minigpt.config import Config, GenerationConfig, InspectConfig, SampleConfig
from minigpt.environment import _advice
from minigpt.errors import UserError

TRAINING_MISTAKES: list[tuple[list[str], list[str]]] = [
    (["--modle.n_layer", "3"], ["unknown option --modle.n_layer", "did you mean --model.n_layer?"]),
    (["--model.n_layr", "3"], ["unknown option --model.n_layr", "did you mean --model.n_layer?"]),
    (["--model.n_layr=3"], ["unknown option --model.n_layr:", "did you mean --model.n_layer?"]),
    (["--n_layer", "3"], ["unknown option --n_layer", "did you mean --model.n_layer?"]),
    (["--max_steps", "3"], ["unknown option --max_steps", "did you mean --trainer.max_steps?"]),
    (["--train.max_steps", "3"], ["unknown option --train.max_steps", "--trainer.max_steps?"]),
    (["--model.n_layer.x", "3"], ["unknown option --model.n_layer.x"]),
    (["--zzzzzzzz", "3"], ["unknown option --zzzzzzzz", "--help lists all"]),
    (["-x"], ["unknown option -x"]),
    (["--print_cofig"], ["unknown option --print_cofig", "did you mean --print_config?"]),
    (["--seed", "3", "configs/tiny.yaml"], ["cannot place the argument 'configs/tiny.yaml'"]),
    (["tiyn"], ["tiyn: no such file", "did you mean tiny?"]),
    (["nowhere"], ["nowhere: no such file", "there are demo, "]),
    (["tiny", "nowhere"], ["nowhere: no such file"]),
    ([""], ["needs the name of a recipe"]),
    (["--model.n_layer", "3", "4"], ["cannot place the argument '4'"]),
    (["--model.n_layer"], ["--model.n_layer needs a value"]),
    (["--config"], ["--config needs a value"]),
    (["--resume"], ["--resume needs a value"]),
    (["--model.n_layer", "six"], ["model.n_layer=six", "expected int"]),
    (["--model.n_layer", "1.5"], ["model.n_layer=1.5", "expected int"]),
    (["--model.n_layer", "1e3"], ["model.n_layer=1000.0", "expected int"]),
    (["--model.n_layer", "null"], ["model.n_layer=", "expected int"]),
    (["--model.n_layer", "[1, 2"], ["model.n_layer=[1, 2", "expected int"]),
    (["--model.n_layer", "a\nb"], ["model.n_layer=a b", "expected int"]),
    (["--model.n_kv_head", "x"], ["model.n_kv_head=x", "expected int or null"]),
    (["--optimizer.learning_rate", "fast"], ["optimizer.learning_rate=fast", "expected float"]),
    (["--compile", "maybe"], ["compile=maybe", "expected true, false or null"]),
    (["--compile"], ["--compile needs a value"]),
    (["--model.position", "relative"], ["model.position=relative", "rotary", "learned", "none"]),
    (["--trainer.logger", "neptune"], ["trainer.logger=neptune", "wandb", "tensorboard"]),
    (["--trainer.callbacks", "3"], ["trainer.callbacks=3", "class_path"]),
    (["--sampling.prompts", "once"], ["sampling.prompts=once", "expected list[str]"]),
    (["--model", "3"], ["--model is a group of settings", "--model.name value"]),
    (["--data", "nowhere.yaml"], ["--data is a group of settings"]),
    (["--model", "{n_layr: 3}"], ["unknown setting model.n_layr", "did you mean model.n_layer?"]),
    (["--model.n_layer", "-1"], ["model.n_layer=-1", "at least 1"]),
    (["--trainer.max_steps", "0"], ["trainer.max_steps=0", "at least 1"]),
    (["--model.dropout", "1"], ["model.dropout=1", "below 1"]),
    (["--model.n_embd", "10", "--model.n_head", "3"], ["model.n_embd=10", "not divisible by model.n_head=3"]),
    (["--model.similarity", "cosin"], ["model.similarity=cosin: expected scaled_dot, cosine", "or hard"]),
    (["--model.window", "wide"], ["model.window=wide", "list[int, null]"]),
    (["--model.window", "[8, x]"], ["model.window=[8, 'x']"]),
    (["--model.window", "0"], ["model.window=0", "at least 1"]),
    (["--model.similarity", "hopfield", "--model.hopfield_beta", "0"], ["model.hopfield_beta=0", "above 0"]),
    (["--model.similarity", "hard", "--model.dropout", "0.1"], ["model.dropout=0.1", "similarity=hard"]),
    (["--model.similarity", "linear", "--model.position", "alibi"], ["model.position=alibi", "similarity=linear"]),
    (["--optimizer.learning_rate", "0"], ["optimizer.learning_rate=0", "above 0"]),
    (["--data.val_fraction", "5"], ["data.val_fraction=5", "between 0 and 1"]),
    (["--data.tokenizer", "gpt4"], ["data.tokenizer=gpt4", "bytes", "gpt2"]),
    (["--data.tokenizer", "bpe:10"], ["data.tokenizer=bpe:10", "258"]),
    (["--trainer.max_time", "3m"], ["trainer.max_time=3m", "00:00:03:00"]),
    (["--trainer.max_epochs", "3"], ["max_epochs", "trainer.max_steps"]),
    (["--seed", "99999999999999999999"], ["seed=99999999999999999999", "2147483647"]),
    (["--name", "a/b"], ["name='a/b'", "names a folder"]),
    (["--name", ""], ["name=''"]),
    *(
        ([f"--{name}", value], [f"{name}={value}", "must be a finite number"])
        for name, value in [
            ("optimizer.learning_rate", "nan"),
            ("optimizer.learning_rate", "inf"),
            ("optimizer.weight_decay", "nan"),
            ("model.dropout", "nan"),
            ("sampling.temperature", "nan"),
            ("sampling.temperature", "inf"),
            ("trainer.gradient_clip_val", "nan"),
            ("data.val_fraction", "nan"),
        ]
    ),
    (["--optimizer.learning_rate=-inf"], ["optimizer.learning_rate=-inf", "must be a finite number"]),
    (["--resume", "nowhere"], ["--resume nowhere", "nowhere/config.yaml", "runs/demo"]),
    (["--resume="], ["--resume is empty"]),
    (["--config", "nowhere"], ["--config nowhere: no such file", "there are demo, ", "tiny"]),
    (["--config", "configs/tyny.yaml"], ["--config configs/tyny.yaml", "did you mean configs/tiny.yaml?"]),
    (["--config", "hopfield.yaml"], ["did you mean configs/attention/hopfield.yaml?"]),
    (["--config", "configs"], ["--config configs: is a directory"]),
    (["--config", ""], ["--config", "needs the name of a recipe or file"]),
    (["--config=two\nlines.yaml"], ["two lines.yaml: no such file"]),
    (["--config", "configs/tiny.yaml", "--config", "nowhere.yaml"], ["--config nowhere.yaml: no such file"]),
    (["--name", "caf\udce9"], ["is not UTF-8 text"]),  # what Python makes of a byte that is not UTF-8
]

SAMPLING_MISTAKES: list[tuple[list[str], list[str]]] = [
    ([], ["run is missing"]),
    (["--prompt", "x"], ["run is missing"]),
    ([""], ["run is empty", "runs/demo"]),
    (["r", "once upon"], ["cannot place the argument 'once'"]),
    (["--run", "r"], ["run is positional: leave out --run"]),
    (["r", "--tempratur", "1"], ["unknown option --tempratur", "did you mean --temperature?"]),
    (["r", "--config", "x.yaml"], ["unknown option --config"]),
    (["r", "--prompt"], ["--prompt needs a value"]),
    (["r", "--prompt", "--x"], ["--prompt needs a value", "--prompt=-"]),
    (["r", "--prompt", "\udce9"], ["is not UTF-8 text"]),
    (["r", "--max_new_tokens", "many"], ["max_new_tokens=many", "expected int"]),
    (["r", "--max_new_tokens", "0"], ["max_new_tokens=0", "at least 1"]),
    (["r", "--top_k", "0"], ["top_k=0", "at least 1"]),
    (["r", "--top_k", "some"], ["top_k=some", "expected int or null"]),
    (["r", "--num_samples", "-2"], ["num_samples=-2", "at least 1"]),
    (["r", "--temperature=-1"], ["temperature=-1", "at least 0"]),
    (["r", "--temperature", "nan"], ["temperature=nan", "must be a finite number"]),
    (["r", "--temperature", "inf"], ["temperature=inf", "must be a finite number"]),
    (["r", "--seed=-1"], ["seed=-1", "between 0 and 2147483647"]),
    (
        ["r", "--seed", "2147483646", "--num_samples", "3"],
        ["seed=2147483646", "the last of num_samples=3 would be above"],
    ),
    (["r", "--seed", "99999999999999999999"], ["seed=99999999999999999999", "2147483647"]),
]

YAML_MISTAKES: dict[str, tuple[bytes, list[str]]] = {
    "key": (b"seed: 1\nmodel:\n  n_layr: 3\n", [":3: unknown setting model.n_layr", "did you mean model.n_layer?"]),
    "section": (b"modle:\n  n_layer: 3\n", [":1: unknown setting modle", "did you mean model?"]),
    "no_section": (b"# comment\nn_layer: 3\n", [":2: unknown setting n_layer", "did you mean model.n_layer?"]),
    "other_section": (b"data:\n  max_steps: 3\n", [":2: unknown setting data.max_steps", "trainer.max_steps?"]),
    "group_scalar": (b"model: 3\n", [":1: model is a group of settings"]),
    "group_empty": (b"seed: 1\nmodel:\n", [":2: model is a group of settings"]),
    "group_list": (b"model:\n  - n_layer: 3\n", [":1: model is a group of settings"]),
    "type": (b"model:\n  n_layer: six\n", ["model.n_layer=six", "expected int"]),
    "list": (b"model:\n  n_layer: [3]\n", ["model.n_layer=[3]", "expected int"]),
    "null": (b"seed: null\n", ["seed=null", "expected int"]),
    "nested_null": (b"model:\n  n_layer:\n", ["model.n_layer=null", "expected int"]),
    "bool_name": (b"name: yes\n", ["name=True", "expected str", "quotes"]),
    "sexagesimal": (b"trainer:\n  max_time: 1:00:00:00\n", ["trainer.max_time=216000", "quotes"]),
    "value": (b"trainer:\n  max_steps: -5\n", ["trainer.max_steps=-5", "at least 1"]),
    "nan": (b"model:\n  dropout: .nan\n", ["model.dropout=nan", "must be a finite number"]),
    "inf": (b"optimizer:\n  learning_rate: .inf\n", ["optimizer.learning_rate=inf", "must be a finite number"]),
    "twice": (b"seed: 1\nname: a\nseed: 2\n", [":3: seed was given already in line 1"]),
    "not_a_word": (b"? [1, 2]\n: 3\n", [":1: not valid YAML: found unhashable key"]),
    "resume": (b"resume: runs/demo\n", [":1: resume belongs on the command line, as --resume"]),
    "config": (b"config: configs/tiny.yaml\n", [":1: config belongs on the command line"]),
    "tag": (b"seed: !!python/object:os.system 1\n", [":1: not valid YAML", "constructor for the tag", "python/object"]),
    "alias": (b"seed: *other\n", [":1: not valid YAML", "other"]),
    "tab": (b"model:\n\tn_layer: 3\n", [":2: not valid YAML"]),
    "unclosed": (b"model: {n_layer: 3\n", [":2: not valid YAML"]),
    "two_documents": (b"seed: 1\n---\nseed: 2\n", [":2: not valid YAML"]),
    "zero_byte": (b"seed: 1\x00\n", ["not valid YAML"]),
    "not_utf8": (b"name: caf\xe9\n", ["not UTF-8 text (byte 9)"]),
    "scalar": (b"hello\n", ["a recipe is a mapping"]),
    "sequence": (b"- seed: 1\n", ["a recipe is a mapping"]),
    "empty": (b"", ["it holds no settings"]),
    "comment": (b"# nothing yet\n", ["it holds no settings"]),
}


@pytest.fixture
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are suggested from the current folder's configs/."""
    monkeypatch.chdir(ROOT)


def message_of(parse: Any, argv: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(argv)
    return str(caught.value)


def check(message: str, expected: list[str]) -> None:
    assert len(message.splitlines()) == 1, message
    assert len(message) < 400
    for words in expected:
        assert words in message


def recipe(folder: Path, text: str, name: str = "recipe.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.usefixtures("in_checkout")
@pytest.mark.parametrize(("argv", "expected"), TRAINING_MISTAKES, ids=[ascii(argv) for argv, _ in TRAINING_MISTAKES])
def test_a_mistake_in_the_words_of_train_py_is_one_line_that_names_it(argv: list[str], expected: list[str]) -> None:
    check(message_of(parsing.parse_training, argv), expected)


@pytest.mark.usefixtures("in_checkout")
@pytest.mark.parametrize(("argv", "expected"), SAMPLING_MISTAKES, ids=[ascii(argv) for argv, _ in SAMPLING_MISTAKES])
def test_a_mistake_in_the_words_of_sample_py_is_one_line_that_names_it(argv: list[str], expected: list[str]) -> None:
    check(message_of(lambda given: parsing.parse_options(given, SampleConfig), argv), expected)


@pytest.mark.parametrize(("content", "expected"), YAML_MISTAKES.values(), ids=YAML_MISTAKES.keys())
def test_a_mistake_in_a_recipe_is_one_line_that_names_it(content: bytes, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    message = message_of(parsing.parse_training, ["--config", str(path)])
    check(message, expected)
    if expected[0].startswith(":"):
        assert message.startswith(f"{path}:")


@pytest.mark.usefixtures("in_checkout")
def test_a_mistake_in_the_second_recipe_is_found_too(tmp_path: Path) -> None:
    path = recipe(tmp_path, "sead: 1\n")
    assert f"{path}:1: unknown setting sead" in message_of(
        parsing.parse_training, ["--config=configs/tiny.yaml", f"--config={path}"]
    )


def test_without_arguments_the_defaults_are_trained() -> None:
    assert parsing.parse_training([]) == (Config(), None)


def test_options_win_over_recipes_whatever_the_order(tmp_path: Path) -> None:
    file = recipe(tmp_path, "seed: 1\nmodel:\n  n_layer: 2\n  n_head: 2\n")
    config, _ = parsing.parse_training(["--config", file, "--seed", "7", "--model.n_layer=3"])
    assert (config.seed, config.model.n_layer, config.model.n_head) == (7, 3, 2)


def test_a_later_recipe_wins_over_an_earlier_one_and_leaves_the_rest(tmp_path: Path) -> None:
    first = recipe(tmp_path, "seed: 1\nmodel: {n_layer: 2}\n", "first.yaml")
    second = recipe(tmp_path, "model: {n_layer: 3}\n", "second.yaml")
    assert parsing.parse_training(["--config", first, "--config", second])[0].model.n_layer == 3
    assert parsing.parse_training(["--config", second, "--config", first])[0].model.n_layer == 2
    assert parsing.parse_training(["--config", first, "--config", second])[0].seed == 1


def test_a_resumed_run_has_its_own_config_and_the_arguments_change_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved = Config.from_dict({"seed": 5, "model": {"n_layer": 2}, "data": {"source": ["a", "b"]}})
    recipe(run, yaml.safe_dump(saved.to_dict()), "config.yaml")
    assert parsing.parse_training(["--resume", str(run)]) == (saved, run)
    config, resume = parsing.parse_training(["--trainer.max_steps", "9", f"--resume={run}"])
    assert (config.trainer.max_steps, config.seed, resume) == (9, 5, run)


def test_of_two_resumed_runs_the_later_wins_with_its_config(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        recipe(tmp_path / str(number), f"seed: {number}\n", "config.yaml")
    config, resume = parsing.parse_training([f"--resume={tmp_path}/1", f"--resume={tmp_path}/2"])
    assert (config.seed, resume) == (2, tmp_path / "2")


def test_settings_of_any_kind_are_understood() -> None:
    argv = ["--model.n_kv_head", "2", "--optimizer.learning_rate", "3e-4", "--compile", "true"]
    argv += ["--trainer.devices", "[0,1]"]
    argv += ["--sampling.prompts", "['one, two', '']", "--data.source", "[a.txt, b.txt]", "--trainer.max_time=null"]
    argv += ["--trainer.callbacks", "[{class_path: a.B, init_args: {c: 1}}]", "--trainer.logger", "false"]
    config, _ = parsing.parse_training(argv)
    assert (config.model.n_kv_head, config.optimizer.learning_rate, config.compile) == (2, 3e-4, True)
    assert (config.trainer.devices, config.trainer.max_time, config.trainer.logger) == ([0, 1], None, False)
    assert config.trainer.callbacks == [{"class_path": "a.B", "init_args": {"c": 1}}]
    assert (config.sampling.prompts, config.data.source) == (["one, two", ""], ["a.txt", "b.txt"])


def test_what_only_lightning_knows_is_passed_on_as_yaml_has_it(tmp_path: Path) -> None:
    file = recipe(tmp_path, "trainer: {deterministic: warn, benchmark: true, model_registry: 3}")
    options = ["--trainer.inference_mode", "false", "--trainer.detect_anomaly=1"]
    trainer = parsing.parse_training([file, *options])[0].trainer
    assert (trainer.deterministic, trainer.benchmark, trainer.model_registry) == ("warn", True, 3)
    assert (trainer.inference_mode, trainer.detect_anomaly) == (False, 1)


def test_a_text_that_reads_as_nothing_is_a_text() -> None:
    assert parsing.parse_options(["r", "--text", "null"], InspectConfig).text == "null"


@pytest.mark.parametrize(
    "prompt", ["", " ", "\n", "5", "null", "true", "[1", "a: b", "{x", "# no comment", "'quoted'", "é🙂", "1e3", "*a"]
)
def test_a_prompt_is_taken_letter_by_letter(prompt: str) -> None:
    assert parsing.parse_options(["runs/x", "--prompt", prompt], SampleConfig) == SampleConfig("runs/x", prompt=prompt)


@pytest.mark.parametrize(
    ("text", "stops"), [("END", ["END"]), ("5", ["5"]), ("null", ["null"]), ("[a, '\\n']", ["a", "\\n"])]
)
def test_a_stop_text_is_given_alone_or_in_a_list(text: str, stops: list[str]) -> None:
    assert parsing.parse_options(["r", "--stop", text], SampleConfig).stops == stops


def test_a_prompt_may_begin_with_a_dash() -> None:
    assert parsing.parse_options(["r", "--prompt=--x"], SampleConfig).prompt == "--x"


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
@pytest.mark.parametrize("folder", [ROOT, Path("/")])
def test_a_python_without_the_packages_is_told_what_to_do(script: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", ROOT / script, "runs/x"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "has no package 'jsonargparse': " in line
    assert ".venv/bin/activate" in line or "make demo" in line


def test_a_package_that_minigpt_misses_is_one_line_and_what_others_miss_is_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as if it were not installed

    def ours(_: list[str]) -> None:
        from minigpt.generation.modes.texts_file import _write

        _write(io.BytesIO(), [], None, 1, [], 0)  # type: ignore[arg-type]

    def theirs(_: list[str]) -> None:
        import tqdm  # noqa: F401

    with pytest.raises(SystemExit) as end:
        program.run(ours)
    assert end.value.code == 2
    assert "has no package 'tqdm': " in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        program.run(theirs)


@pytest.mark.parametrize(
    ("made", "prefix", "folder", "expected"),
    [
        (True, "/usr", ".", "activate the environment with `. .venv/bin/activate`"),
        (True, "/usr", "/usr", "activate the environment with `. '{root}/.venv/bin/activate'`"),
        (True, ".venv", ".", "complete the environment with `make demo`"),
        (False, "/usr", ".", "install minigpt with `make demo`"),
    ],
)
def test_the_advice_fits_the_environment_there_is(
    made: bool, prefix: str, folder: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a clone"
    (root / ".venv" / "bin").mkdir(parents=True)
    if made:
        (root / ".venv" / "bin" / "activate").touch()
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "prefix", str(root / prefix))
    monkeypatch.chdir(root / folder)
    assert _advice(root).startswith(expected.format(root=root))


def test_the_options_of_sample_py_reach_its_config() -> None:
    argv = ["r", "--max_new_tokens", "5", "--temperature", "0", "--top_k", "null"]
    argv += ["--num_samples", "2", "--seed", "3", "--device", "cuda:1"]
    expected = SampleConfig("r", max_new_tokens=5, temperature=0.0, top_k=None, num_samples=2, seed=3, device="cuda:1")
    assert parsing.parse_options(argv, SampleConfig) == expected


def test_settings_of_a_prompt_line_and_of_json_are_understood_alike() -> None:
    before = GenerationConfig()
    for settings in (
        {"temperature": "1e-3", "top_k": "null", "stop_tokens": "[5]", "seed": "3", "stop": '["\\n"]'},
        {"temperature": 1e-3, "top_k": None, "stop_tokens": [5], "seed": 3, "stop": ["\n"]},
    ):
        changed = GenerationConfig(temperature=1e-3, top_k=None, stop_tokens=[5], seed=3, stop=["\n"])
        assert parsing.change(before, settings) == changed
    assert before == GenerationConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tempratur": 1}, "unknown setting tempratur: did you mean temperature?"),
        ({"idd": 1}, "unknown setting idd: did you mean id?"),
        ({"help": 1}, "unknown setting help; there are id, max_new_tokens, "),
        ({"seed": None}, "seed=null: expected int"),
        ({"seed": "5 6"}, "seed=5 6: expected int"),
        ({"stop": 5}, "stop=5: expected str or list[str]"),
        ({"temperature": True}, "temperature=True: expected float"),
        ({"temperature": "nan"}, "temperature=nan: must be a finite number"),
    ],
)
def test_a_setting_that_cannot_be_changed_is_one_line(settings: dict[str, Any], message: str) -> None:
    assert message_of(lambda given: parsing.change(GenerationConfig(), given, ("id",)), settings).startswith(message)


@pytest.mark.parametrize("form", [["--data.source", "[D]"], ["--data.source=[D]"], ["--data.source", "- x"]])
def test_a_path_that_reads_as_a_list_is_a_path_where_it_is_there(
    form: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = form[-1].removeprefix("--data.source=")
    given = ["--data.val_source", "[a.txt, b.txt]", *form]
    assert parsing.parse_training(given)[0].data.source == [name.strip("[- ]")]
    (tmp_path / name).mkdir()
    config, _ = parsing.parse_training(given)
    assert config.data.sources == [f"./{name}"]
    assert config.data.val_sources == ["a.txt", "b.txt"]


def test_closed_standard_streams_are_empty_ones() -> None:
    script = "import sys\nfrom minigpt.cli import commands, program\n"
    script += "program.run(lambda argv: [print(sys.stdin.read()), print(commands.read_text('-', ''), file=sys.stderr)])"
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        command = ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, script]
        result = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
        assert result.returncode == 0


@pytest.mark.parametrize(
    ("raised", "code", "err"),
    [
        (None, 0, ""),
        (UserError("one\nline"), 2, "error: one line\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\na total of 8 GiB"),
            2,
            "error: too little memory (tried to allocate 2.00 GiB): take a smaller model, batch, context or text, or "
            "end other programs\n",
        ),
        (
            RuntimeError(
                "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            ),
            2,
            "error: too little memory (tried to allocate 9 bytes): take a smaller model, batch, context or text, or "
            "end other programs\n",
        ),
        (
            MemoryError(),
            2,
            "error: too little memory (MemoryError): take a smaller model, batch, context or text, or "
            "end other programs\n",
        ),
    ],
)
def test_a_program_ends_with_the_code_of_what_happened(
    raised: BaseException | None, code: int, err: str, capsys: pytest.CaptureFixture
) -> None:
    def main(arguments: list[str]) -> None:
        if raised is not None:
            raise raised

    with pytest.raises(SystemExit) as caught:
        program.run(main)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", err)


def test_a_bug_of_ours_is_not_hidden() -> None:
    def main(arguments: list[str]) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        program.run(main)


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--model.n_layr", "3"],
        ["train.py", "--config", "nowhere.yaml"],
        ["train.py", "--resume", "nowhere"],
        ["sample.py"],
        ["sample.py", "r", "--temperature", "nan"],
        ["sample.py", "r", "--prompt_file", "nowhere.txt"],
    ],
    ids=" ".join,
)
def test_a_mistake_ends_a_script_with_code_2_and_one_line_on_stderr(command: list[str]) -> None:
    result = run_script(*command)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_mistake_is_answered_before_torch_or_lightning_is_loaded() -> None:
    for command in (["train", "tiny", "--model.n_layr"], ["sample", "r", "--tempratur"]):
        script = f"import sys, {command[0]}\nfrom minigpt.cli.main import dispatch\ntry: dispatch({[*command, '3']})\n"
        script += "except ValueError: print(*{name.split('.')[0] for name in sys.modules})"
        loaded = run_script("-c", script, cold=True).stdout.split()
        assert "jsonargparse" in loaded
        assert not {"torch", "lightning", "numpy", "wandb", "datasets"} & set(loaded)


def test_bytes_on_the_command_line_that_are_not_utf8_are_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "sample.py", "r", "--prompt", b"caf\xe9"], cwd=ROOT, capture_output=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"is not UTF-8 text" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_a_printed_config_can_be_read_again(tmp_path: Path) -> None:
    argv = ["--config", "configs/tiny.yaml", "--model.n_layer", "3", "--sampling.prompts", "['1', 'yes', 'é: ']"]
    result = run_script("train.py", *argv, "--print_config")
    assert (result.returncode, result.stderr) == (0, "")
    file = recipe(tmp_path, result.stdout)
    again = run_script("train.py", "--config", file, "--print_config")
    assert (again.returncode, again.stdout) == (0, result.stdout)
    config, resume = parsing.parse_training(["--config", file])
    assert (config.name, config.model.n_layer, config.sampling.prompts) == ("tiny", 3, ["1", "yes", "é: "])
    assert resume is None


@pytest.mark.parametrize(
    ("script", "words"), [("train.py", "Number of transformer blocks"), ("sample.py", "likeliest")]
)
def test_help_explains_the_settings_and_is_no_mistake(script: str, words: str) -> None:
    result = run_script(script, "--help", env={**os.environ, "COLUMNS": "200"})
    assert (result.returncode, result.stderr) == (0, "")
    assert words in result.stdout


@pytest.mark.parametrize("outlives_reader", [False, True])
def test_a_program_whose_reader_has_gone_ends_quietly_or_does_its_work(outlives_reader: bool) -> None:
    script = "import sys\nfrom minigpt.cli import program\n"
    script += "work = lambda argv: [*(print('x' * 1000) for _ in range(1000)), print('done', file=sys.stderr)]\n"
    script += f"program.run(work, outlives_reader={outlives_reader})"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == (b"done\n" if outlives_reader else b"")
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (UserError("a mistake"), 2), (BrokenPipeError(), 0)]
)
def test_the_exit_code_is_right_without_a_reader_too(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:  # noqa: PTH123 (of a descriptor)

        def main(arguments: list[str]) -> None:
            print("nobody reads this")
            raise raised

        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            program.run(main, outlives_reader=False)
        assert ended.value.code == code
        monkeypatch.undo()


def test_a_broken_pipe_that_is_not_the_readers_is_not_hidden() -> None:
    def main(arguments: list[str]) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        program.run(main)


@pytest.mark.parametrize("script", ["train", "sample"])
def test_a_script_finds_the_package_beside_it_and_runs_the_command_of_its_name(script: str) -> None:
    """Nothing but this stands there, so importing a script, as a worker process does, does nothing else."""
    _, *body = ast.parse((ROOT / f"{script}.py").read_text()).body
    assert [ast.unparse(node) for node in body] == [
        "import sys",
        f"sys.path.append(__file__.removesuffix('{script}.py') + 'src')",
        "from minigpt.__main__ import main",
        f"if __name__ == '__main__':\n    main('{script}')",
    ]
