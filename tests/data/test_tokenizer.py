"""Tokenizers: nothing of a text is lost, text is never taken for a special token, and a file brings them back."""

import json
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import UserError
from minigpt.data.tokenizer import (
    END_OF_TEXT,
    TIKTOKEN_NAMES,
    BPETokenizer,
    BytesTokenizer,
    CharsTokenizer,
    Tokenizer,
    decode,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)

TEXT = (
    "def add(first, second):\n    return first + second\n\n\ndef subtract(first, second):\n    return first - second\n"
)
TEXT += "naïve café: 東京 42 1234567 it's  two  spaces\t\r\n 🙂 " + END_OF_TEXT
TRAINED: dict[str, Tokenizer] = {
    "bytes": BytesTokenizer(),
    "chars": CharsTokenizer.of([TEXT]),
    "bpe": BPETokenizer.train([TEXT], 300),
}
any_text = st.text(alphabet=st.characters(codec="utf-8"))
kinds = pytest.mark.parametrize("tokenizer", TRAINED.values(), ids=TRAINED.keys())


@pytest.mark.parametrize("tokenizer", [TRAINED["bytes"], TRAINED["bpe"]], ids=["bytes", "bpe"])
@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_decoding_what_was_encoded_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert decode(tokenizer, tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=sorted(set(TEXT))))
def test_decoding_what_was_encoded_gives_any_text_of_the_alphabet_back(text: str) -> None:
    assert decode(TRAINED["chars"], TRAINED["chars"].encode(text)) == text


@kinds
def test_every_token_id_lies_in_the_vocabulary_and_end_of_text_is_its_last(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert min(ids) >= 0
    assert max(ids) < tokenizer.end_of_text == tokenizer.vocab_size - 1


@kinds
def test_the_words_of_the_special_token_in_a_users_text_stay_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(END_OF_TEXT)
    assert tokenizer.end_of_text not in ids
    assert decode(tokenizer, ids) == END_OF_TEXT


@kinds
def test_the_special_token_is_written_out_when_decoded(tokenizer: Tokenizer) -> None:
    assert decode(tokenizer, [*tokenizer.encode("a"), tokenizer.end_of_text]) == "a" + END_OF_TEXT


@kinds
def test_a_batch_is_encoded_as_its_texts_one_by_one_and_in_order(tokenizer: Tokenizer) -> None:
    texts = [TEXT, "", "return", TEXT[::-1]]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@kinds
def test_a_saved_tokenizer_comes_back_with_the_same_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert (loaded.vocab_size, loaded.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert loaded.decode_bytes(loaded.encode(TEXT)) == TEXT.encode()


def test_half_a_character_is_shown_as_a_replacement_and_not_refused() -> None:
    assert decode(BytesTokenizer(), list("é".encode())[:1]) == "\ufffd"


def test_training_a_bpe_twice_gives_the_same_tokens() -> None:
    assert BPETokenizer.train([TEXT], 300).ranks == BPETokenizer.train([TEXT], 300).ranks


def test_a_trained_bpe_has_as_many_tokens_as_were_asked_for() -> None:
    assert BPETokenizer.train([TEXT], 300).vocab_size == 300


def test_a_bpe_of_a_tiny_text_has_its_bytes_its_few_merges_and_the_special_token() -> None:
    tokenizer = BPETokenizer.train(["ab ab ab"], 2048)
    assert tokenizer.vocab_size == 259  # 256 bytes, "ab", " ab", end_of_text
    assert tokenizer.encode("ab ab") == [256, 257]
    assert tokenizer.ranks[256:] == [b"ab", b" ab"]


def test_a_trained_bpe_needs_fewer_tokens_than_bytes() -> None:
    assert len(TRAINED["bpe"].encode(TEXT)) < 0.8 * len(TEXT.encode())


def test_merges_are_learned_from_the_train_texts_and_an_alphabet_from_all_texts() -> None:
    assert make_tokenizer("bpe:258", ["qqqq"], ["zzzzzzzzzz"]).encode("qqzz")[0] == 256
    assert decode(make_tokenizer("chars", ["q"], ["qz"]), [0, 1]) == "qz"


def test_a_character_outside_the_alphabet_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"'z' \(U\+007A\) at position 2 is not among the 2 characters"):
        CharsTokenizer("ab").encode("abzab")


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_without_network_a_tiktoken_name_is_refused_with_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR") as caught:
        make_tokenizer(name, [], [])
    assert f"data.tokenizer={name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tiktoken_encoding_keeps_all_its_special_tokens_and_its_gaps_can_be_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    special = {END_OF_TEXT: 257, "<|other|>": 259}  # with a gap, as cl100k_base has
    encoding = tiktoken.Encoding("fake", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    tokenizer = make_tokenizer("gpt2", [], [])
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (260, 257)
    assert tokenizer.encode("ab") == [256]
    assert decode(tokenizer, [256, 259]) == "ab<|other|>"
    assert all(tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"", "not a JSON file"),
        (b"{", "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[]", "not a tokenizer of minigpt"),
        (b"null", "not a tokenizer of minigpt"),
        (b"{}", "not a tokenizer of minigpt"),
        (b'{"version": "1.0", "model": {"type": "BPE"}}', "not a tokenizer of minigpt"),  # one of Hugging Face's
        (b'{"kind": "words"}', "unknown tokenizer kind 'words'"),
        (b'{"kind": "chars"}', "not a tokenizer of minigpt"),
        (b'{"kind": "chars", "alphabet": 3}', "not a tokenizer of minigpt"),
        (b'{"kind": "bpe", "pattern": "x", "ranks": ["?"], "special_tokens": {}}', "not a tokenizer of minigpt"),
        (b'{"kind": "bpe", "pattern": "(", "ranks": [], "special_tokens": {"<|endoftext|>": 0}}', "not a tokenizer"),
    ],
)
def test_a_tokenizer_file_that_is_missing_or_not_ours_is_refused(
    content: bytes | None, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_file_is_plain_ascii_json(tmp_path: Path) -> None:
    save_tokenizer(TRAINED["chars"], tmp_path / "tokenizer.json")
    assert json.loads((tmp_path / "tokenizer.json").read_bytes().decode("ascii"))["kind"] == "chars"
