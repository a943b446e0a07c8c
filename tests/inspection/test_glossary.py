"""Every number has a term: a sentence, a range that holds, and which way is more."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import ROOT

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection.glossary import GLOSSARY, Term, term_of
from minigpt.inspection.heads import repeated_ablation, score_heads
from minigpt.inspection.probes import Probe
from minigpt.model.gpt import GPT
from minigpt.training.callbacks import COLUMNS

CODE = "add(add(a), add(b))\n" * 20


def test_every_score_and_number_of_an_inspection_is_explained_and_lies_in_its_range() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, context_length=60, n_layer=2, n_head=4, n_embd=32))
    tokenizer = BytesTokenizer()
    probe = Probe.of(tokenizer, tokenizer.encode(CODE), 60, 60)
    seen = score_heads(model, tokenizer, probe, 0, everything=True).snapshot
    scores = dict(seen.scores) | repeated_ablation(model, 256, {"first_copy_loss": 9.0, "second_copy_loss": 0.0})
    values = scores | {f"attn/{name}": np.array(number) for name, number in seen.numbers.items()}
    assert {"relation: bracket", "ablation_repeated", "attn/max/bracket", "attn/icl_score"} <= set(values)
    for name, value in values.items():
        term = term_of(name)
        assert term is not None, name
        assert term.name == name
        assert np.nanmin(value) >= (-np.inf if term.low is None else term.low - 1e-6), name
        assert np.nanmax(value) <= (np.inf if term.high is None else term.high + 1e-6), name


def test_every_column_of_the_metrics_is_explained() -> None:
    assert {name for name in COLUMNS if term_of(name) is None} == {"step", "tokens", "seconds"}
    assert term_of("anything else") is None


@pytest.mark.parametrize("term", GLOSSARY.values(), ids=GLOSSARY.keys())
def test_a_term_reads_as_sentences_and_has_no_markup(term: Term) -> None:
    assert term.sentence.endswith(".")
    assert not term.higher_means.endswith(".")
    assert term.differs is None or term.differs.endswith(".")
    assert term.text.isascii()
    assert not set(term.text) & set("<>`")
    assert len(term.text) < 420
    assert (term.low is None) >= (term.high is None) or term.low is not None


def test_a_range_is_said_with_its_unit() -> None:
    ranges = {name: GLOSSARY[name].range for name in ("entropy", "mean_distance", "ablation", "largest_score")}
    assert list(ranges.values()) == ["0 to 1", "0 or more tokens", "any number of nats per token", "any number"]


def test_a_relation_with_few_links_says_so() -> None:
    few, enough = term_of("relation, few links: pronoun"), term_of("relation: pronoun")
    assert few is not None
    assert enough is not None
    assert "Too few links for a label" in few.text
    assert "'pronoun'" in enough.text
    assert "few" not in enough.text


def test_heads_csv_has_only_explained_columns(tmp_path: Path) -> None:
    from small_runs import small_settings

    from minigpt.training.run import train

    run = train(small_settings(tmp_path, sampling={"prompts": []}, attention={}))
    with run.heads.open() as file:
        columns = next(csv.reader(file))
    assert {name for name in columns if term_of(name) is None} == {"layer", "head", "label", "ablation_kind"}


def test_the_docs_have_the_whole_glossary_word_for_word() -> None:
    """Renew them with `python tests/inspection/test_glossary.py`."""
    assert (ROOT / "docs" / "inspection.md").read_text(encoding="utf-8").endswith(glossary_table())


def glossary_table() -> str:
    def cell(text: str | None) -> str:
        return (text or "").replace("|", "\\|")

    rows = [
        f"| `{term.name}` | {cell(term.sentence)} | {term.range} | {cell(term.higher_means)} | {cell(term.differs)} |\n"
        for term in GLOSSARY.values()
    ]
    head = "| number | what | range | higher means | elsewhere |\n|---|---|---|---|---|\n"
    return f"\n{head}{''.join(rows)}"


if __name__ == "__main__":
    page = ROOT / "docs" / "inspection.md"
    kept = page.read_text(encoding="utf-8").partition("\n| number | what |")[0]
    page.write_text(kept + glossary_table(), encoding="utf-8")
