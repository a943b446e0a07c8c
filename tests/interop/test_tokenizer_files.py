"""Tokenizers written for other programs: AutoTokenizer has the same ids, and what is read back is what was written."""

import functools
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import BYTE_LEVEL, SENTENCEPIECE, TEXT, family, family_text, gpt2_tables
from tokenizers import Tokenizer as HFTokenizer

from minigpt.data.tokenizers.base import BPETokenizer, BytesTokenizer, CharsTokenizer, Tokenizer
from minigpt.data.tokenizers.bpe import END_OF_TEXT, SPLITS
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError
from minigpt.interop.tokenizer_files import hugging_face_files
from minigpt.interop.tokenizer_folder import read_tokenizer

PAIRS = [bytes([byte]) for byte in range(256)]
PAIRS += [bytes(pair) for pair in itertools.product(b"aSs1! '\r\n\t", repeat=2)]
"""A vocabulary in which any two of some bytes join unless the split parts them: another split gives other tokens."""

OURS: dict[str, Tokenizer] = {
    "bytes": BytesTokenizer(),
    "chars": CharsTokenizer.of([TEXT + END_OF_TEXT]),
    "bpe": BPETokenizer.train([TEXT], 330),
    # As cl100k_base and o200k_base: several special tokens, and ids without one.
    **{
        f"the split of {name}": BPETokenizer(
            split, PAIRS, {END_OF_TEXT: len(PAIRS) + 1, "<|a|>": len(PAIRS), "<|unused_358|>": len(PAIRS) + 2}
        )
        for name, split in SPLITS.items()
    },
}
FAMILIES = [*BYTE_LEVEL, *SENTENCEPIECE]


def written(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in hugging_face_files(tokenizer, 77).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def opened_elsewhere(tokenizer: Tokenizer, folder: Path) -> tuple[Tokenizer, Any, Tokenizer]:
    from transformers import AutoTokenizer  # takes seconds

    written(tokenizer, folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    cache = tmp_path_factory.mktemp("tiktoken")
    for name, content in gpt2_tables().items():
        (cache / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return BPETokenizer.named("gpt2")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any, Tokenizer]]:
    """By name: the tokenizer, AutoTokenizer's of its files, and the one that is read back from them."""
    of_families: dict[str, Tokenizer] = {name: HuggingFaceTokenizer(family(name)) for name in FAMILIES}
    found = {}
    for name, tokenizer in (OURS | of_families).items():
        found[name] = opened_elsewhere(tokenizer, tmp_path_factory.mktemp("theirs") / name)
    return found


def check_text(opened: dict[str, tuple[Tokenizer, Any, Tokenizer]], text: str) -> None:
    for name, (ours, theirs, again) in opened.items():
        if isinstance(ours, CharsTokenizer):
            text_here = "".join(character for character in text if character in ours.alphabet)
        else:
            text_here = text
        tokens = ours.encode(text_here)
        assert theirs.encode(text_here, split_special_tokens=True) == tokens, name
        assert again.encode(text_here) == tokens, name
        assert again.decode_bytes(tokens) == ours.decode_bytes(tokens), name
        if ours.lossless:
            assert theirs.decode(tokens) == text_here, name


@settings(max_examples=200, deadline=None)
@given(text=family_text)
def test_auto_tokenizer_and_what_is_read_back_have_the_same_ids(
    opened: dict[str, tuple[Tokenizer, Any, Tokenizer]], text: str
) -> None:
    check_text(opened, text)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(text=family_text)
def test_auto_tokenizer_and_what_is_read_back_have_the_same_ids_for_two_thousand_texts(
    opened: dict[str, tuple[Tokenizer, Any, Tokenizer]], text: str
) -> None:
    check_text(opened, text)


@pytest.mark.slow
def test_gpt2_has_the_same_ids_there_and_read_back(gpt2: BPETokenizer, tmp_path: Path) -> None:
    found = {"gpt2": opened_elsewhere(gpt2, tmp_path)}

    @settings(max_examples=2000, deadline=None)
    @given(text=family_text)
    def check(text: str) -> None:
        check_text(found, text)

    check()


def test_auto_tokenizer_knows_the_special_tokens_the_size_and_the_context(
    opened: dict[str, tuple[Tokenizer, Any, Tokenizer]],
) -> None:
    for name, (ours, theirs, again) in opened.items():
        assert (theirs.eos_token_id, len(theirs)) == (ours.end_of_text, ours.vocab_size), name
        assert (again.end_of_text, again.vocab_size, again.lossless) == (
            ours.end_of_text,
            ours.vocab_size,
            ours.lossless,
        ), name
        assert theirs.model_max_length == 77
        assert theirs.convert_ids_to_tokens(ours.end_of_text) == ours.decode_bytes([ours.end_of_text]).decode(), name
    begins = {name: opened[name][1].bos_token for name in ("Llama 2", "Llama 3", "bpe")}
    assert begins == {"Llama 2": "<s>", "Llama 3": "<|begin_of_text|>", "bpe": END_OF_TEXT}


def test_the_name_of_the_special_token_in_a_text_is_special_there_unless_it_is_asked_to_split(
    opened: dict[str, tuple[Tokenizer, Any, Tokenizer]],
) -> None:
    ours, theirs, _ = opened["bpe"]
    assert theirs.encode(END_OF_TEXT) == [ours.end_of_text]
    assert theirs.encode(END_OF_TEXT, split_special_tokens=True) == ours.encode(END_OF_TEXT)


def test_a_character_outside_the_alphabet_is_refused_there_too(
    opened: dict[str, tuple[Tokenizer, Any, Tokenizer]],
) -> None:
    ours, theirs, _ = opened["chars"]
    with pytest.raises(UserError, match="'Ω'"):
        ours.encode("Ω")
    with pytest.raises(Exception, match="WordLevel error: Missing"):
        theirs.encode("Ω")


def test_files_that_auto_tokenizer_saved_again_are_read(
    opened: dict[str, tuple[Tokenizer, Any, Tokenizer]], tmp_path: Path
) -> None:
    for name, (ours, theirs, _) in opened.items():
        theirs.save_pretrained(tmp_path / name)
        again = read_tokenizer(tmp_path / name)
        assert type(again) is (CharsTokenizer if name == "chars" else HuggingFaceTokenizer)
        assert again.encode("return 1") == ours.encode("return 1"), name


def test_the_merges_of_gpt2_are_those_that_were_published_and_are_found_in_seconds(gpt2: BPETokenizer) -> None:
    begin = time.perf_counter()
    content = hugging_face_files(gpt2, 1024)["tokenizer.json"]
    assert time.perf_counter() - begin < 30
    (published,) = [table.decode() for table in gpt2_tables().values() if table.startswith(b"#version")]
    assert content["model"]["merges"] == [line.split(" ") for line in published.split("\n")[1:-1]]


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text(alphabet="ab", min_size=2, max_size=6), unique=True, max_size=12),
    texts=st.lists(st.text(alphabet="ab ", max_size=12), max_size=8),
)
def test_ranks_that_no_training_gives_have_the_same_ids(words: list[str], texts: list[str]) -> None:
    ranks = [bytes([byte]) for byte in range(256)] + [word.encode() for word in words]
    tokenizer = BPETokenizer(SPLITS["bpe"], ranks, {END_OF_TEXT: len(ranks)})
    theirs = HFTokenizer.from_str(json.dumps(hugging_face_files(tokenizer, 8)["tokenizer.json"]))
    for text in [*texts, *words]:
        assert theirs.encode(text).ids == tokenizer.encode(text)


def test_a_tokenizer_of_an_unknown_kind_is_refused() -> None:
    class Other(BytesTokenizer):
        pass

    hugging_face_files(Other(), 8)
    with pytest.raises(UserError, match="of the kind partial has no tokenizer.json"):
        hugging_face_files(functools.partial(Other), 8)  # type: ignore[arg-type]
