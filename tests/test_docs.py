"""docs/: code blocks run, and pictures and numbers are those of the code; test_commands.py types the commands."""

import dataclasses
import json
import re

import torch
from scripts import ROOT, run_script

from minigpt.cli.parsing import settings_of
from minigpt.config import CompareConfig, Config, GenerationConfig, SampleConfig
from minigpt.data.sources.names import COMPRESSED, TABLES
from minigpt.data.synthetic.texts import SYNTHETIC
from minigpt.data.tokenizers.tiktoken_tables import TIKTOKEN_NAMES
from minigpt.model.variants import similarities
from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Causal, Documents, Full, Prefix, Window

PAGE = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def python_block(containing: str) -> str:
    (block,) = [text for language, text in BLOCKS if language == "python" and containing in text]
    return block


def test_every_setting_of_writing_is_named() -> None:
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(GenerationConfig):
        assert f"`{field.name}" in page or f"--{field.name}" in page or f"{field.name}=" in page, field.name


def test_every_kind_of_source_and_tokenizer_is_named() -> None:
    for name in (*TABLES, *COMPRESSED, *SYNTHETIC, *TIKTOKEN_NAMES, "python_stdlib", "hf:", "bpe:N", "chars", "bytes"):
        assert name in DATA or name in {".ndjson", ".json"}, name


def test_the_relations_example_is_read() -> None:
    (line,) = re.findall(r"```json\n(.*?)```", DATA, re.DOTALL)
    text = "Leon's old parrot Cleo is so hyper that she never stops moving."
    path_line = line.replace("…", text)
    relation = json.loads(path_line)["relations"][0]
    source, target = relation["source"], relation["target"]
    assert (text[slice(*source)], text[slice(*target)]) == ("she", "Cleo")


def test_the_first_example_runs_and_prints_shapes_and_a_graph() -> None:
    run = run_script("-c", python_block("near = attention_weights"))
    assert run.returncode == 0, run.stderr
    assert "torch.Size([2, 8, 100, 64]) torch.Size([2, 8, 100, 100])" in run.stdout
    assert run.stdout.splitlines()[-1] == "········"


def test_the_drawn_graphs_are_what_the_code_draws() -> None:
    (drawing,) = [text for language, text in BLOCKS if not language and "Causal() & Window(3)" in text]
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1, -1])
    graphs = [Full(), Causal(), Causal() & Window(3), Causal() | Prefix(4), Causal() & Documents(ids)]
    drawn = [re.findall(r"[■·]{8}", line) for line in drawing.splitlines()[1:]]
    assert drawn == [list(row) for row in zip(*(graph.show(8).splitlines() for graph in graphs), strict=True)]


def test_the_similarity_of_ones_own_works_in_attend_as_it_stands_there() -> None:
    names = {**vars(similarities), "SIMILARITIES": dict(similarities.SIMILARITIES)}
    exec(python_block("class Tempered"), names)
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    own, plain = names["Tempered"](2), similarities.ScaledDot()
    torch.testing.assert_close(
        attend(query, key, value, similarity=own, graph=Causal()),
        attend(query, key, value, similarity=plain, graph=Causal()),
    )


def test_every_similarity_is_in_the_table() -> None:
    for name in similarities.SIMILARITIES:
        assert f"| `{name}` |" in PAGE


def test_every_setting_on_the_nanogpt_page_exists() -> None:
    page = (ROOT / "docs" / "from_nanogpt.md").read_text(encoding="utf-8")
    known = set(settings_of(Config)) | set(settings_of(SampleConfig)) | set(settings_of(CompareConfig))
    # nanoGPT's own names in the other column, and options that are not settings
    others = {"start", "eval_only", "init_from", "out_dir", "batch_size", "standalone", "nproc_per_node"}
    others |= {"section.name", "resume", "from", "help"}
    assert set(re.findall(r"--([a-z_][\w.]*)", page)) - known - others == set()
