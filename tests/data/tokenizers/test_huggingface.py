"""Tokenizers of open models: their ids are those of the `tokenizers` library, and tokens decode one by one."""

import functools
import json
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from tokenizer_families import BYTE_LEVEL, SENTENCEPIECE, family, family_json, family_text
from tokenizers import Tokenizer as HFTokenizer

from minigpt.data.tokenizers.base import tokenizer_from_dict
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError

FAMILIES = [*BYTE_LEVEL, *SENTENCEPIECE]
families = pytest.mark.parametrize("name", FAMILIES)


def spaces(text: str) -> str:
    return text.replace("▁", " ")


BACK: dict[str, Callable[[str], str]] = {
    "GPT-NeoX": lambda text: unicodedata.normalize("NFC", text),
    "Qwen": lambda text: unicodedata.normalize("NFC", text),
    "Llama 2": lambda text: spaces(" " + text if text else text),
    # Metaspace adds no second space in front.
    "Mistral": lambda text: spaces(text if text[:1] in ("", " ", "▁") else " " + text),
    "Gemma": spaces,
}
"""The text that comes back; the others give back what they were given."""


def check_text(name: str, text: str) -> None:
    ours, theirs = opened(name)
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text, add_special_tokens=False).ids
    assert ours.end_of_text not in tokens
    assert b"".join(ours.decode_bytes([token]) for token in tokens) == ours.decode_bytes(tokens)
    assert ours.decode_bytes(tokens).decode() == BACK.get(name, str)(text)
    decoded = theirs.decode(tokens, skip_special_tokens=False)
    assert ours.decode_bytes(tokens).decode() in (decoded, " " + decoded)


@functools.cache
def opened(name: str) -> tuple[HuggingFaceTokenizer, HFTokenizer]:
    theirs = HFTokenizer.from_str(family_json(name))
    theirs.encode_special_tokens = True
    return HuggingFaceTokenizer(family(name)), theirs


@settings(max_examples=200, deadline=None)
@given(text=family_text)
def test_ids_and_texts_are_those_of_the_tokenizers_library(text: str) -> None:
    for name in FAMILIES:
        check_text(name, text)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(text=family_text)
def test_ids_and_texts_are_those_of_the_tokenizers_library_for_two_thousand_texts(text: str) -> None:
    for name in FAMILIES:
        check_text(name, text)


@families
def test_a_tokenizer_says_whether_it_gives_every_text_back(name: str) -> None:
    assert opened(name)[0].lossless == (name not in BACK)


@families
def test_a_lone_surrogate_is_read_as_a_question_mark_by_every_family(name: str) -> None:
    tokenizer = HuggingFaceTokenizer(family(name))
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b") == tokenizer.encode_batch(["a\ud800b"])[0].tolist()


@families
def test_a_model_with_more_rows_than_tokens_has_names_for_all_and_keeps_them(name: str) -> None:
    plain = HuggingFaceTokenizer(family(name))
    tokenizer = HuggingFaceTokenizer(family(name), vocab_size=400)
    assert tokenizer.vocab_size == 400
    assert tokenizer.decode_bytes([399, plain.vocab_size]) == f"<|unused_399|><|unused_{plain.vocab_size}|>".encode()
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert (again.vocab_size, again.end_of_text) == (400, plain.end_of_text)
    assert again.encode("return 東京 🙂") == plain.encode("return 東京 🙂")


def test_special_tokens_without_a_row_are_left_out_and_others_are_refused() -> None:
    saved = family("Gemma")
    rows = len(saved["model"]["vocab"])
    image = {**saved["added_tokens"][0], "id": rows, "content": "<image_soft_token>"}
    saved["added_tokens"].append(image)
    tokenizer = HuggingFaceTokenizer(saved, vocab_size=rows)  # as Gemma 3 1B: one token more than rows
    assert tokenizer.vocab_size == rows
    assert tokenizer.encode("a") == HuggingFaceTokenizer(saved).encode("a")
    saved["added_tokens"][-1]["special"] = False
    with pytest.raises(UserError, match=rf"has ids up to {rows}, but vocab_size is {rows}: needs at least {rows + 1}"):
        HuggingFaceTokenizer(saved, vocab_size=rows)


@pytest.mark.parametrize("vocab_size", [0, -1, 10**12, True, "400", 400.0])
def test_a_vocabulary_that_is_too_small_or_large_or_no_number_is_refused(vocab_size: Any) -> None:
    with pytest.raises(UserError, match=r"vocab_size is .*: needs"):
        HuggingFaceTokenizer(family("Qwen"), vocab_size=vocab_size)


@pytest.mark.parametrize("given_end", ["<|stop|>", 321])
def test_an_end_of_text_with_an_unknown_name_is_given_by_name_or_id_and_kept(given_end: str | int) -> None:
    saved = family("GPT-Neo")
    saved["added_tokens"][0]["content"] = "<|stop|>"
    assert saved["added_tokens"][0]["id"] == 321
    with pytest.raises(UserError, match="has no end-of-text token"):
        HuggingFaceTokenizer(saved)
    tokenizer = HuggingFaceTokenizer(saved, given_end)
    assert tokenizer.decode_bytes([tokenizer.end_of_text]) == b"<|stop|>"
    assert tokenizer.end_of_text not in tokenizer.encode("<|stop|>")
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.end_of_text == tokenizer.end_of_text


@pytest.mark.parametrize("given_end", ["<|nothing|>", 5000, -1, True])
def test_an_end_of_text_that_no_token_is_is_refused(given_end: str | int) -> None:
    saved = family("GPT-Neo")
    saved["added_tokens"][0]["content"] = "<|stop|>"
    with pytest.raises(UserError, match=r"has no token .*, which is to be its end-of-text token"):
        HuggingFaceTokenizer(saved, given_end)


def test_an_end_of_text_among_the_models_own_tokens_is_never_made_from_text() -> None:
    saved = family("Llama 2")
    saved["added_tokens"] = saved["added_tokens"][:2]  # without </s>, which stays in the vocabulary
    tokenizer = HuggingFaceTokenizer(saved, "</s>")
    assert tokenizer.end_of_text == 2
    assert tokenizer.encode("</s>") == HuggingFaceTokenizer(family("Llama 2")).encode("</s>")


def test_merges_that_make_a_special_token_or_a_byte_are_left_out() -> None:
    saved = family("Llama 2")
    for name in ("<", "s", ">", "s>", "0x0A>", "<0x0A", "/", "</", "0", "x", "A", "0x", "0A", "0x0A"):
        saved["model"]["vocab"].setdefault(name, len(saved["model"]["vocab"]))
    merges = ["< /", "s >", "</ s>", "0 x", "0 A", "0x 0A", "0x0A >", "< 0x0A>"]
    saved["model"]["merges"] = merges if isinstance(saved["model"]["merges"][0], str) else [m.split() for m in merges]
    theirs = HFTokenizer.from_str(json.dumps(saved))
    theirs.encode_special_tokens = True
    assert theirs.encode("</s><0x0A>").ids[-2:] == [2, 13]
    tokenizer = HuggingFaceTokenizer(saved)
    assert tokenizer.decode_bytes(tokenizer.encode("</s><0x0A>")) == b" </s><0x0A>"
    assert not {2, 13} & set(tokenizer.encode("</s><0x0A>"))


def test_a_long_text_of_a_model_without_words_is_encoded_in_seconds() -> None:
    tokenizer = HuggingFaceTokenizer(family("Llama 2"))
    text = "return first + second" * 10_000
    assert tokenizer.decode_bytes(tokenizer.encode(text)).decode() == " " + text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda saved: saved["model"]["vocab"].pop("<0x0A>"), "has no token <0x0A>: its byte_fallback would lose"),
        (lambda saved: saved["model"].update(byte_fallback=False), "is not a byte-level BPE"),
        (lambda saved: saved["model"].update(ignore_merges=True), "could be encoded from text"),
        (lambda saved: saved["model"].update(merges=[["a"]]), "does not join two tokens"),
        (lambda saved: saved["model"].update(merges=[[1, 2]]), "not a Hugging Face tokenizer.json"),
        (lambda saved: saved["normalizer"]["normalizers"][0].update(prepend="x"), "prepends 'x' to every text"),
        (lambda saved: saved["normalizer"]["normalizers"][1].update(content=""), "normalizer replaces"),
        (
            lambda saved: saved["normalizer"]["normalizers"][1].update(pattern={"Regex": "(a+)+"}),
            "only spaces by '▁' are supported",
        ),
        (lambda saved: saved.update(normalizer={"type": "NFKC"}), "'NFKC' changes text irreversibly"),
        (lambda saved: saved.update(normalizer={"type": "Replace"}), "not a Hugging Face tokenizer.json"),
        (lambda saved: saved.update(pre_tokenizer={"type": "Whitespace"}), "may drop characters"),
        (lambda saved: saved.update(pre_tokenizer={"type": "ByteLevel"}), "may drop characters"),
        (lambda saved: saved.update(pre_tokenizer={"type": "Metaspace", "replacement": "a"}), "writes 'a' for spaces"),
        (lambda saved: saved["decoder"]["decoders"].append({"type": "CTC"}), "its decoder 'CTC' changes text"),
        (lambda saved: saved["decoder"]["decoders"][0].update(content="x"), "its decoder 'Replace' changes text"),
        (lambda saved: saved["decoder"]["decoders"][3].update(start=9), "its decoder 'Strip' changes text"),
    ],
)
def test_a_sentencepiece_style_file_that_may_lose_text_is_refused(
    change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    saved = family("Llama 2")
    change(saved)
    with pytest.raises(UserError, match=expected) as caught:
        HuggingFaceTokenizer(saved)
    assert "\n" not in str(caught.value)


def test_what_a_split_would_remove_is_kept() -> None:
    saved = family("OLMo 2")
    saved["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+"
    tokenizer = HuggingFaceTokenizer(saved)
    assert tokenizer.decode_bytes(tokenizer.encode("first, 42!")) == b"first, 42!"
    saved["pre_tokenizer"]["pretokenizers"][0]["invert"] = False
    with pytest.raises(UserError, match="may drop characters"):
        HuggingFaceTokenizer(saved)
