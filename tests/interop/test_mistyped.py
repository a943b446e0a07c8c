"""What a user may mistype about other programs' models: one line with a remedy, and lines that work as printed."""

import json
import re
import resource
import shlex
from pathlib import Path

import pytest
import torch
from comparing import small_model
from safetensors.torch import load_file, save_file

from minigpt.cli.main import dispatch
from minigpt.config import Config, GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.files import write_text
from minigpt.interop.folder import read_folder, write_folder
from minigpt.interop.tokenizer_files import hugging_face_files
from minigpt.training.finetuning import with_defaults

SAMPLE = ["--prompt=a", "--max_new_tokens=2"]


@pytest.fixture(autouse=True)
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of another program, in the folder `theirs`."""
    monkeypatch.chdir(tmp_path)
    folder = Path("theirs")
    write_folder(folder, small_model({"vocab_size": 257}))
    for name, content in hugging_face_files(BytesTokenizer(), 32).items():
        write_text(folder / name, json.dumps(content))
    return folder


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        dispatch(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../x", "-x", "..", "a--b", "x.git", "a/b/c", "ü", "a b", "a" * 97, ""])
def test_a_name_that_the_hub_cannot_have_is_refused_before_it_is_asked(name: str) -> None:
    assert "not a name on the hub" in refusal("sample", f"hf:{name}", *SAMPLE)
    assert "give a name on the hub" in refusal("export", "theirs", f"--push_to_hub={name}", "--out=out")
    assert not Path("out").exists()


def test_a_revision_is_named_in_the_line_that_downloads_it_and_is_not_empty() -> None:
    assert "hf download a/b --revision 'v 1' --local-dir 'b-v 1'`" in refusal("sample", "hf:a/b@v 1", *SAMPLE)
    assert "hf:a/b@step1,: a revision is missing" in refusal("inspect", "hf:a/b@step1,", "--text=a")
    assert "hf:a/b@: a revision is missing; write hf:a/b@main" in refusal("sample", "hf:a/b@", *SAMPLE)


def test_paths_that_the_system_refuses_get_one_line(theirs: Path) -> None:
    long = "a" * 300
    Path("loop").symlink_to("loop")
    for command in ("sample", "export", "inspect"):
        assert refusal(command, long).startswith(f"{long}: file name too long")
        assert "loop" in refusal(command, "loop")
    assert "name a folder with a config.json" in refusal("import", long)
    (theirs / "model.safetensors").rename(theirs / "other.safetensors")
    places = dict.fromkeys(load_file(theirs / "other.safetensors"), long)
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert f"{long} is missing" in refusal("sample", "theirs", *SAMPLE)


def test_a_part_of_a_model_says_what_to_name(theirs: Path) -> None:
    assert "name the folder that has its config.json" in refusal("sample", "theirs/model.safetensors", *SAMPLE)
    assert "name the folder of its model, theirs" in refusal("sample", "theirs/tokenizer.json", *SAMPLE)
    Path("model.gguf").write_bytes(b"GGUF")
    assert "GGUF files are written, not read" in refusal("sample", "model.gguf", *SAMPLE)
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    assert "merge_and_unload()" in refusal("sample", "adapter", *SAMPLE)
    for step in (10, 20):
        Path(f"series/checkpoint-{step}").mkdir(parents=True)
        Path(f"series/checkpoint-{step}/config.json").write_text("{}")
    assert "holds 2 checkpoints; name one, such as series/checkpoint-20" in refusal("export", "series")
    (theirs / "config.json").unlink()
    assert "name the folder that has its config.json" in refusal("sample", "theirs", *SAMPLE)


def test_a_model_where_a_recipe_belongs_is_pointed_to_from() -> None:
    for command in ("train", "doctor"):
        assert "write --from theirs" in refusal(command, "theirs")
        assert "write --from hf:gpt2" in refusal(command, "hf:gpt2")
    assert "a model on the hub is written hf:Qwen/Qwen3-0" in refusal("sample", "Qwen/Qwen3-0", *SAMPLE)
    assert "hf:" not in refusal("sample", "runs/typo", *SAMPLE)


def test_messages_name_the_folder_also_where_it_is_part_of_a_files_name(theirs: Path) -> None:
    theirs.rename("model")
    weights = load_file("model/model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name].to(torch.int8)}, "model/model.safetensors")
    with pytest.raises(UserError, match=r"^model/config\.json: .* save them as float32, float16 or bfloat16"):
        read_folder(Path("model"))


def test_a_model_that_was_not_trained_here_claims_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["import", "theirs", "--out=runs/own"])
    for source in ("theirs", "runs/own"):
        dispatch(["share", source, "--out=shared.safetensors"])
        dispatch(["share", "shared.safetensors"])
        said = capsys.readouterr().out
        assert "trained on an unknown text" in said
        assert "python_stdlib" not in said
        Path("shared.safetensors").unlink()
    assert "python_stdlib" not in Path("runs/own/config.yaml").read_text()


@pytest.mark.parametrize("out", ["a b", 'it\'s "DIR"', "-x", "日本"])
def test_the_lines_printed_open_a_folder_of_any_name(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["export", "theirs", f"--out={out}"])
    lines = capsys.readouterr().out.splitlines()
    serve = next(line for line in lines if "vllm" in line)
    assert Path(shlex.split(serve)[-1]).samefile(Path(out))
    assert not shlex.split(serve)[-1].startswith("-")
    opened = next(line for line in lines if "from_pretrained" in line).strip()
    asked: list[str] = []

    class Auto:
        from_pretrained = asked.append

    exec(opened, {"AutoTokenizer": Auto, "AutoModelForCausalLM": Auto})
    assert asked == [out, out]
    card = Path(out, "README.md").read_text(encoding="utf-8")
    assert f"from_pretrained({json.dumps(f'./{out}', ensure_ascii=False)})" in card


@pytest.mark.parametrize(
    "command",
    ["export theirs --out=out", "export theirs --to=safetensors --out=out", "import theirs --out=out", "share theirs"],
)
def test_a_full_disk_gets_one_line_that_names_the_file_and_leaves_nothing(command: str) -> None:
    before, (soft, hard) = sorted(Path().iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))  # Python ignores SIGXFSZ, so that writing fails
    try:
        said = refusal(*command.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.match(r"(out/model|theirs)\.safetensors: could not be written \(file too large", said), said
    assert sorted(Path().iterdir()) == before


def test_adapters_are_not_larger_than_the_model() -> None:
    width = small_model({}).config.n_embd
    with pytest.raises(UserError, match=f"lora={width + 1}: the model is {width} wide"):
        with_defaults(Config(initial_weights="theirs", lora=width + 1), GPTConfig(n_embd=width))
    assert with_defaults(Config(initial_weights="theirs", lora=width), GPTConfig(n_embd=width)).lora == width


def test_an_imported_folders_name_is_one_of_a_run_or_refused_with_the_option(theirs: Path) -> None:
    theirs.rename("my model")
    assert refusal("import", "my model").endswith("name another run folder with --out")
    assert refusal("import", "my model", "--out=runs/-x").endswith("name another run folder with --out")
    dispatch(["import", "my model", "--out=my runs/x"])
    assert Path("my runs/x/config.yaml").is_file()
    assert not Path("runs").exists()
