"""`minigpt export` as it is typed: the folder, what is printed, the verdict of --check, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.comparing import SMALL
from safetensors.torch import load_file, save_file
from small_runs import small_settings

import minigpt
from minigpt.cli.main import dispatch
from minigpt.config import Config, ExportConfig, GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.lab import export
from minigpt.lab.export_check import check_export
from minigpt.model.gpt import GPT
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model, save_weights
from minigpt.training.run import train

HF = ["README.md", "config.json", "generation_config.json", "model.safetensors"]
HF += ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    model = {"context_length": 64, "head_dim": 12}
    return train(small_settings(tmp_path_factory.mktemp("owner"), model=model, attention={"enabled": False}))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(folder: str | Path) -> list[str]:
    return sorted(file.name for file in Path(folder).iterdir())


def refused(*arguments: str) -> str:
    before = names(".")
    with pytest.raises(UserError) as caught:
        dispatch(["export", *arguments])
    assert names(".") == before, "nothing is left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_of(**settings: Any) -> str:
    """A model with some settings and the tokenizer of bytes, in a file."""
    config = Config(model=GPTConfig(**(SMALL | {"vocab_size": 257} | settings)))
    save_weights("model.safetensors", GPT(config.model), config, BytesTokenizer())
    return "model.safetensors"


def test_a_run_opens_in_transformers_by_the_lines_that_are_printed_and_those_of_its_card(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(["export", str(run.path), "--check"])
    said = capsys.readouterr().out.splitlines()
    assert names("small-hf") == HF
    assert Path("small-hf").stat().st_mode & 0o777 == 0o755
    assert re.fullmatch(rf"small-hf: 0\.\d MB: {', '.join(HF)}", said[0])
    assert "  vllm serve small-hf" in said
    verdict = r"check by transformers [\d.]+: logits differ by at most \d\.\de-\d\d, 63 of 63 greedy tokens are equal, "
    assert re.fullmatch(f"{verdict}token ids are equal", said[-1])
    card = Path("small-hf/README.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert [line.strip() for line in said if line.startswith("    ")] == python.strip().replace(
        "./small-hf", "small-hf"
    ).splitlines()
    exec(python, {})
    text = capsys.readouterr().out
    assert text.startswith("Once upon a time")
    assert len(text) > len("Once upon a time\n")
    assert "# small\n" in card
    assert re.search(r"a GPT of 0\.0\d million parameters, trained on text\.txt", card)
    assert str(run.path.parent) not in card


def test_gguf_has_a_modelfile_and_passes_the_check(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["export", str(run.path), "--to=gguf", "--check"])
    said = capsys.readouterr()
    assert names("small-gguf") == ["Modelfile", "small.gguf"]
    assert "  cd small-gguf && ollama create small -f Modelfile && ollama run small\n" in said.out
    assert "63 of 63 greedy tokens are equal\n" in said.out
    assert "it/s" not in said.err
    dispatch(["export", str(run.path), "--to=gguf", "--dtype=q8_0", "--check", "--out=small.q8"])
    assert "logits differ by at most" in capsys.readouterr().out
    assert Path("small.q8/small.gguf").stat().st_size < Path("small-gguf/small.gguf").stat().st_size


def test_gpt2s_family_passes_the_check_of_gguf(capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True, tie_embeddings=True)
    dispatch(["export", file, "--to=gguf", "--check"])
    assert "63 of 63 greedy tokens are equal\n" in capsys.readouterr().out
    assert names("model-gguf") == ["Modelfile", "model.gguf"]


def test_safetensors_in_half_precision_opens_here(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["export", str(run.path), "--to=safetensors", "--dtype=bfloat16", "--out=a b"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "  minigpt sample 'a b/model.safetensors'"
    stored, own = load_file("a b/model.safetensors"), load_model(run.path).model.state_dict()
    assert all(torch.equal(stored[name], own[name].bfloat16()) for name in own)
    assert minigpt.load("a b/model.safetensors").generate("1", max_new_tokens=3).text


def test_weights_have_the_type_that_is_asked_for(run: RunFolder) -> None:
    dispatch(["export", str(run.path), "--dtype=float16"])
    assert {each.dtype for each in load_file("small-hf/model.safetensors").values()} == {torch.float16}
    assert json.loads(Path("small-hf/config.json").read_text())["torch_dtype"] == "float16"


def test_a_folder_that_is_there_or_cannot_be_made_is_named(run: RunFolder) -> None:
    Path("small-hf").mkdir()
    assert refused(str(run.path)) == "small-hf: already exists; remove it, or name another folder with --out"
    Path("file").touch()
    assert refused(str(run.path), "--out=file/a") == "file/a: cannot be made (file exists)"
    assert "no such run or checkpoint" in refused("nothing")
    assert "only minigpt opens --to safetensors" in refused(str(run.path), "--to=safetensors", "--check")


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_setting_without_a_counterpart_is_named_and_nothing_is_left(to: str) -> None:
    assert "gaussian" in refused(file_of(similarity="gaussian", qk_norm=False), f"--to={to}")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("x: no space left")])
def test_a_disk_that_fills_up_leaves_nothing(run: RunFolder, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(export, "hub_card", fail)
    assert "no space left" in refused(str(run.path)).lower()


@pytest.mark.parametrize(
    ("damage", "said"),
    [("weights", "logits differ by at most"), ("tokenizer", "token ids are different"), ("config", "cannot open")],
)
def test_a_damaged_export_does_not_pass_the_check(run: RunFolder, damage: str, said: str) -> None:
    folder = Path("small-hf")
    dispatch(["export", str(run.path)])
    if damage == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] *= 1.1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif damage == "tokenizer":
        content = json.loads((folder / "tokenizer.json").read_text())
        vocab = content["model"]["vocab"]
        vocab["a"], vocab["e"] = vocab["e"], vocab["a"]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        shutil.copy(folder / "tokenizer_config.json", folder / "config.json")
    with pytest.raises(UserError, match=said) as caught:
        check_export(folder, load_model(run.path), ExportConfig(str(run.path), check=True))
    assert "\n" not in str(caught.value)


def test_a_fence_in_a_sample_does_not_end_the_cards(run: RunFolder) -> None:
    copy = RunFolder(shutil.copytree(run.path, "small"))
    samples = copy.samples(12)
    samples.write_text(samples.read_text() + "\n````\n# A heading\n")
    dispatch(["export", "small"])
    card = Path("small-hf/README.md").read_text()
    (fence,) = re.findall(r"^(`+)text$", card, re.MULTILINE)
    assert len(fence) == 5
    assert card.index("# A heading") < card.index(f"\n{fence}\n")
