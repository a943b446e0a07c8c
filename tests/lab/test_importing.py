"""`minigpt import` as it is typed, and what each command makes of another program's model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.comparing import opened_by_transformers, small_model
from small_runs import small_text
from tokenizer_families import family, trained_sentencepiece

import minigpt
from minigpt.cli.main import dispatch
from minigpt.data.tokenizers.base import Tokenizer, tokenizer_from_dict
from minigpt.errors import UserError
from minigpt.interop.folder import write_folder
from minigpt.interop.tokenizer_folder import read_tokenizer
from minigpt.lab.export import export_run
from minigpt.runs.loading import load_model

LLAMA = {"qk_norm": False, "n_kv_head": 2}


def beginning(name: str, token: int) -> dict[str, Any]:
    """The post_processor by which Llama's and Gemma's files put a token before a text."""
    text, bos = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": name, "type_id": 0}}
    ids = {name: {"id": name, "ids": [token], "tokens": [name]}}
    return {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, text], "special_tokens": ids}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose tokenizer begins a text with <s>."""
    folder = tmp_path_factory.mktemp("hub") / "small-llama"
    content = family("Llama 2") | {"post_processor": beginning("<s>", 1)}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    write_folder(folder, small_model({"vocab_size": len(content["model"]["vocab"]), **LLAMA}), end_of_text=2)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture
def imported(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    dispatch(["import", str(theirs)])
    return "runs/small-llama"


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        dispatch(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_imported_model_is_a_run_that_writes_is_inspected_shared_and_trained_on(
    capsys: pytest.CaptureFixture[str], theirs: Path, imported: str
) -> None:
    assert capsys.readouterr().out.splitlines() == [
        f"{imported}: 38,368 parameters, 2 layers of 4 heads, a context of 64 tokens",
        f"  minigpt sample {imported}",
        f"  minigpt inspect {imported} --text 'The cat sat on the mat, the cat sat on'",
        f"  minigpt train --from {imported} --data.source story.txt",
    ]
    assert sorted(file.name for file in Path(imported).iterdir()) == [
        "config.yaml",
        "minigpt_tokenizer.json",
        "model.safetensors",
    ]
    run = minigpt.open_run(imported)
    greedy = {"temperature": 0, "max_new_tokens": 10}
    expected = minigpt.load(theirs).generate("return first", **greedy)  # type: ignore[arg-type]
    assert run.generate("return first", **greedy) == expected
    assert run.config.model == load_model(theirs).config.model
    assert run.samples == []
    assert len(run.metrics) == 0
    dispatch(["sample", imported, "--prompt=return first", "--temperature=0", "--max_new_tokens=10"])
    assert f"return first{expected.text}" in capsys.readouterr().out
    dispatch(["inspect", imported, "--text=return first + second"])
    assert "-> runs/small-llama/inspection.html" in capsys.readouterr().out
    dispatch(["share", imported])
    assert minigpt.load("small-llama.safetensors").generate("return first", **greedy) == expected  # type: ignore[arg-type]
    dispatch(["report", imported])
    assert "0 steps, 0 samples" in capsys.readouterr().out
    Path("story.txt").write_text(small_text())
    trainer = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    small = ["--data.batch_size=2", "--attention.enabled=false", "--name=tuned", "--sampling.prompts=[]"]
    dispatch(["train", "--from", imported, "--data.source=story.txt", *trainer, *small])
    assert minigpt.open_run("runs/tuned").metrics["step"].max() == 2


def test_a_prompt_begins_as_in_the_models_own_program(theirs: Path, imported: str) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(theirs)
    model = opened_by_transformers(theirs)
    for prompt in ("def add(first", "return", "a 東京"):
        read = tokenizer(prompt, return_tensors="pt")["input_ids"]
        settings = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(read, attention_mask=torch.ones_like(read), **settings)[0, read.shape[1] :]
        written = minigpt.load(imported).generate(prompt, temperature=0, max_new_tokens=20)
        assert list(written.prompt_tokens) == read[0].tolist()
        assert read[0, 0] == 1
        assert list(written.tokens) == expected.tolist()[: len(written.tokens)]
        assert len(written.tokens) == 20 or written.ended == "end_of_text"
    writer = minigpt.load(theirs)
    assert writer.generate("", max_new_tokens=1).prompt_tokens == (1,)
    assert writer.generate([5, 6], max_new_tokens=1).prompt_tokens == (5, 6), "token ids are read as they are"
    seen = minigpt.open_run(imported).inspect("return first")
    assert seen.snapshot.token_ids[0] == 1


def begins(tokenizer: Tokenizer) -> int | None:
    assert tokenizer_from_dict(tokenizer.to_dict()).begin_of_text == tokenizer.begin_of_text
    return tokenizer.begin_of_text


def test_a_text_begins_with_what_the_tokenizers_file_adds(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    llama3 = family("Llama 3")
    begin = next(each["id"] for each in llama3["added_tokens"] if each["content"] == "<|begin_of_text|>")
    sequence = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}]
    processor = {"type": "Sequence", "processors": [*sequence, beginning("<|begin_of_text|>", begin)]}
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    cases: list[tuple[dict[str, Any], dict[str, Any], int | None]] = [
        (llama3 | {"post_processor": processor}, names, begin),
        (llama3 | {"post_processor": processor}, names | {"add_bos_token": False}, begin),
        (llama3, names | {"add_bos_token": True}, None),  # transformers ignores it beside a tokenizer.json
        (llama3, names, None),
        (llama3 | {"post_processor": beginning("return", 5)}, names, None),  # no special token
        (llama3 | {"post_processor": beginning("<|begin_of_text|>", 10**6)}, names, None),
    ]
    for content, config, expected in cases:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "TokenizersBackend"}))
        assert begins(read_tokenizer(tmp_path)) == expected
        if expected is not None or not content["post_processor"]:
            ids = AutoTokenizer.from_pretrained(tmp_path)("return")["input_ids"]
            assert (ids[0] if ids[0] == begin else None) == expected


@pytest.mark.parametrize(("adds", "expected"), [(True, 1), (False, None), (None, None)])
def test_a_text_begins_as_the_settings_beside_a_sentencepiece_model_say(
    adds: bool | None, expected: int | None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | ({} if adds is None else {"add_bos_token": adds}))
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = read_tokenizer(tmp_path)
    assert begins(tokenizer) == expected
    before = [] if expected is None else [expected]
    assert AutoTokenizer.from_pretrained(tmp_path)("return")["input_ids"] == [*before, *tokenizer.encode("return")]


def test_an_exported_model_begins_its_texts_as_before(theirs: Path, imported: str) -> None:
    from minigpt.config import ExportConfig

    said = export_run(ExportConfig(imported, check=True, out="again"))
    assert "token ids are equal" in said
    assert read_tokenizer(Path("again")).begin_of_text == 1
    assert json.loads(Path("again/tokenizer_config.json").read_text())["bos_token"] == "<s>"


def test_names_of_runs_and_files_come_from_the_models(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a@b").mkdir()
    (tmp_path / "a@b" / "model").symlink_to(theirs)
    monkeypatch.chdir(tmp_path / "a@b" / "model")
    monkeypatch.setenv("PWD", str(tmp_path))
    dispatch(["import", ".", "--out", str(tmp_path / "run")])
    monkeypatch.chdir(tmp_path)
    dispatch(["import", f"{theirs}/"])
    assert Path("runs/small-llama/config.yaml").is_file()
    dispatch(["share", "a@b/model"])
    assert Path("small-llama.safetensors").is_file()
    dispatch(["import", str(theirs), "--context_length=32", "--out=short"])
    assert minigpt.open_run("short").config.model.context_length == 32


def test_what_needs_a_run_says_so_of_another_programs_model(theirs: Path, imported: str) -> None:
    folder = str(theirs)
    assert "is another program's model; a film" in refusal("sample", folder, "--checkpoints=film.html")
    assert "is another program's model; a film" in refusal("sample", "hf:a/b", "--checkpoints=film.html")
    assert "holds no checkpoint" in refusal("sample", imported, "--checkpoints=film.html")
    assert "neither a run folder" in refusal("report", folder)
    assert "hf:a/b: no such run" in refusal("report", "hf:a/b")
    assert "is a directory" in refusal("compare", folder)
    assert "give a text as --text or --file" in refusal("inspect", imported)
    assert "give a text as --text or --file" in refusal("inspect", folder)
    assert refusal("import", folder) == f"{imported}: already exists; remove it, or name another folder with --out"
    assert "not a model of another program" in refusal("import", imported, "--out=b")
    assert "the hub cannot be reached" in refusal("export", "hf:a/b")
    assert "is a run folder" not in refusal("import", "nothing")
    with pytest.raises(UserError, match=r"there is no .*config.yaml"):
        minigpt.open_run(theirs)
    assert not list(Path().glob("*.html"))


def test_a_folder_that_cannot_be_written_leaves_no_run(theirs: Path, imported: str) -> None:
    Path("file").touch()
    assert "file" in refusal("import", str(theirs), "--out=file/a")
    assert sorted(path.name for path in Path().iterdir()) == ["file", "runs"]
