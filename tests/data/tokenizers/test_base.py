"""Tokenizers: nothing of a text is lost, text is never taken for a special token, and a file brings them back."""

import base64
import copy
import hashlib
import itertools
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import any_text, hard_text
from tokenizer_families import gpt2_tables as gpt2_tables_of_openai
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from minigpt.data.sources.chunking import cut_up
from minigpt.data.tokenizers import bpe, huggingface, tiktoken_tables
from minigpt.data.tokenizers.base import (
    END_OF_TEXT,
    MAX_FILE_BYTES,
    TIKTOKEN_NAMES,
    BPETokenizer,
    BytesTokenizer,
    CharsTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    decode,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
    tokenizer_from_dict,
)
from minigpt.data.tokenizers.bpe import SPLITS
from minigpt.errors import UserError

TEXT = (
    "def add(first, second):\n    return first + second\n\n\ndef subtract(first, second):\n    return first - second\n"
)
TEXT += "naïve café: 東京 42 1234567 it's  two  spaces\t\r\n 🙂 " + END_OF_TEXT


def huggingface_file() -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE with two merges."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = HFTokenizer(models.BPE(vocab | {"re": 256, "Ġre": 257}, [("r", "e"), ("Ġ", "re")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    saved: dict[str, Any] = json.loads(tokenizer.to_str())
    return saved


TRAINED: dict[str, Tokenizer] = {
    "bytes": BytesTokenizer(),
    "chars": CharsTokenizer.of([TEXT]),
    "bpe": BPETokenizer.train([TEXT], 300),
    "huggingface": HuggingFaceTokenizer(huggingface_file()),
}
kinds = pytest.mark.parametrize("tokenizer", TRAINED.values(), ids=TRAINED.keys())


knowing_all = pytest.mark.parametrize(
    "tokenizer",
    [t for name, t in TRAINED.items() if name != "chars"],
    ids=[name for name in TRAINED if name != "chars"],
)


@pytest.fixture(scope="module")
def gpt2_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiktoken cache with the tables that OpenAI published for GPT-2."""
    cache = tmp_path_factory.mktemp("tiktoken")
    for name, content in gpt2_tables_of_openai().items():
        (cache / name).write_bytes(content)
    return cache


@pytest.fixture(scope="module")
def gpt2(gpt2_tables: Path) -> Iterator[BPETokenizer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_tables))
        yield BPETokenizer.named("gpt2")


@pytest.fixture(scope="module")
def huggingface_gpt2(gpt2: BPETokenizer, gpt2_tables: Path) -> HuggingFaceTokenizer:
    """The same tables as a tokenizer.json."""
    files = [path.read_text(encoding="utf-8") for path in gpt2_tables.iterdir()]
    merges, vocab = sorted(files, key=lambda text: text.startswith("{"))
    pairs = [(first, second) for first, second in (line.split() for line in merges.split("\n")[1:-1])]
    tokenizer = HFTokenizer(models.BPE(json.loads(vocab), pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return HuggingFaceTokenizer(json.loads(tokenizer.to_str()))


@knowing_all
@settings(max_examples=100, deadline=None)
@given(text=hard_text)
def test_decoding_what_was_encoded_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.lossless
    assert decode(tokenizer, tokenizer.encode(text)) == text
    assert tokenizer.end_of_text not in tokenizer.encode(text)


@knowing_all
@pytest.mark.parametrize("unit", [" ", "a", "\n", "\r\n", "\0", "é", "e\u0301", "🙂", "=-", "ab", "1"])
def test_a_very_long_run_of_one_character_is_encoded_and_comes_back(tokenizer: Tokenizer, unit: str) -> None:
    assert decode(tokenizer, tokenizer.encode(unit * 100_000)) == unit * 100_000


def test_a_million_spaces_are_encoded_and_come_back_though_the_regex_engine_gives_up_on_them() -> None:
    tokenizer, text = TRAINED["bpe"], "a" + " " * 1_000_000 + "b"
    tokens = tokenizer.encode(text)
    assert decode(tokenizer, tokens) == text
    assert tokenizer.encode_batch([text])[0].tolist() == tokens


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from("\n\t \u2003ab."), st.integers(0, 30)).map(lambda p: p[0] * p[1])))
def test_white_space_is_cut_only_in_runs_that_are_too_long(parts: list[str]) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "LONGEST_WHITE_SPACE", 10)
        found = list(bpe._without_endless_white_space(text))
    expected = [0]
    for run in re.finditer(r"\s{11,}", text):
        expected += range(run.start() + 10, run.end(), 10)
    assert found == [text[a:b] for a, b in itertools.pairwise([*expected, len(text)])]


def test_texts_that_are_encoded_in_several_calls_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "CALL_CHARACTERS", 5)
    texts = ["re", "a longer text", "", "12 re re", "東京", "re"]
    tokenizer = TRAINED["huggingface"]
    assert [tokens.tolist() for tokens in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


@kinds
def test_a_lone_surrogate_which_utf8_cannot_hold_is_read_as_a_question_mark(tokenizer: Tokenizer) -> None:
    tokenizer = CharsTokenizer.of(["a\ud800b"]) if isinstance(tokenizer, CharsTokenizer) else tokenizer
    assert decode(tokenizer, tokenizer.encode("a\ud800b")) == "a?b"
    assert tokenizer.encode_batch(["a\ud800b"])[0].tolist() == tokenizer.encode("a?b")
    assert BPETokenizer.train(["a\ud800b"], 300).vocab_size > 256


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
    batch = tokenizer.encode_batch(texts)
    assert [tokens.tolist() for tokens in batch] == [tokenizer.encode(text) for text in texts]
    assert all(isinstance(tokens, np.ndarray) and tokens.dtype.kind == "u" for tokens in batch)
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("pattern", SPLITS.values(), ids=SPLITS.keys())
@settings(max_examples=100, deadline=None)
@given(text=hard_text, data=st.data())
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(pattern: str, text: str, data: st.DataObject) -> None:
    tokenizer = BPETokenizer(pattern, TRAINED["bpe"].ranks, {END_OF_TEXT: 299})  # type: ignore[attr-defined]
    text += data.draw(hard_text).replace("a", "b a") + data.draw(hard_text).replace("a", "!\na")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "THREAD_CHARACTERS", 1)
        assert tokenizer.encode_batch([text, text])[1].tolist() == tokenizer.encode(text)


PAIRS = [bytes([byte]) for byte in range(256)]
PAIRS += [bytes(pair) for pair in itertools.product(b"aSs1! '\r\n\t", repeat=2)]
"""A vocabulary in which any two of some bytes join unless the split parts them: another split gives other tokens."""


@pytest.mark.parametrize("pattern", SPLITS.values(), ids=SPLITS.keys())
@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet="aSs1! '\r\n\té²東\u3000", max_size=30))
def test_text_is_split_as_the_pattern_says(pattern: str, text: str) -> None:
    tokenizer = BPETokenizer(pattern, PAIRS, {END_OF_TEXT: len(PAIRS)})
    ranks = {token: rank for rank, token in enumerate(PAIRS)}
    plain = tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    assert tokenizer.encode(text) == plain.encode_ordinary(text)


def test_a_long_document_is_cut_for_the_threads_but_not_where_a_token_could_be(gpt2: BPETokenizer) -> None:
    text = TEXT * 3000 + "x" * 200_000 + TEXT * 3000
    assert len(list(cut_up(text, bpe.THREAD_CHARACTERS))) > 5
    assert gpt2.encode_batch([text])[0].tolist() == gpt2._encoding.encode_ordinary(text)


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_the_split_patterns_are_those_of_tiktoken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(tiktoken_ext.openai_public, load, lambda *args, **kwargs: {})
    assert SPLITS[name] == getattr(tiktoken_ext.openai_public, name)()["pat_str"]


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


def test_words_of_ordinary_texts_are_learned_from_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(bpe.__file__).parent.glob("*.py"))]
    texts += ["=" * 1000, " " * 1000 + "a" * 1000, "\n" * 1000 + "é" * 1000, TEXT]
    learned = BPETokenizer.train(texts, 1000).ranks
    monkeypatch.setattr(bpe, "_LEARNING_PATTERN", bpe.SPLIT_PATTERN)
    assert BPETokenizer.train(texts, 1000).ranks == learned


@pytest.mark.parametrize(
    "text", ["ACGT" * 5000, " " * 20_000, "=" * 20_000, " " * 20_000 + "\n", "\n" * 20_000, "a" * 20_000]
)
def test_a_run_without_a_break_is_learned_from_in_words_of_bounded_length(text: str) -> None:
    words = [word for word, _ in bpe._words_to_learn_from().pre_tokenize_str(text)]
    assert len("".join(words)) == len(text)
    assert max(map(len, words)) <= 2 * bpe.LONGEST_WORD + 1  # white space and then line ends, or a sign and then ends


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


def test_an_alphabet_is_taken_from_texts_that_are_read_one_by_one() -> None:
    alive: list[int] = []

    def texts() -> Iterator[str]:
        for i in range(100):
            alive.append(i)
            yield chr(ord("a") + i % 26)

    assert CharsTokenizer.of(texts()).alphabet == "abcdefghijklmnopqrstuvwxyz"
    assert len(alive) == 100


def test_gpt2_has_the_published_ids(gpt2: BPETokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(END_OF_TEXT) == [27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer_from_dict(json.loads(json.dumps(gpt2.to_dict()))).encode(TEXT) == gpt2.encode(TEXT)


@settings(max_examples=200, deadline=None)
@given(text=hard_text)
def test_gpt2_gives_any_text_back_and_has_the_same_ids_from_a_file_of_hugging_faces(
    gpt2: BPETokenizer, huggingface_gpt2: HuggingFaceTokenizer, text: str
) -> None:
    ids = gpt2.encode(text)
    assert decode(gpt2, ids) == text
    assert huggingface_gpt2.encode(text) == ids
    assert huggingface_gpt2.decode_bytes(ids) == text.encode()


def test_each_token_of_gpt2_has_the_same_bytes_from_a_file_of_hugging_faces(
    gpt2: BPETokenizer, huggingface_gpt2: HuggingFaceTokenizer
) -> None:
    assert (huggingface_gpt2.vocab_size, huggingface_gpt2.end_of_text) == (50257, 50256)
    for token in range(50257):
        assert huggingface_gpt2.decode_bytes([token]) == gpt2.decode_bytes([token])


@pytest.mark.parametrize("hangs", ["the lookup of a name", "a connection"])
def test_where_nobody_answers_a_tiktoken_name_is_refused_within_two_seconds(
    hangs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        time.sleep(9)
        raise OSError("much later")

    assert tiktoken_tables._CONNECT_SECONDS < 2
    monkeypatch.setattr(tiktoken_tables, "_CONNECT_SECONDS", 0.3)  # so that a busy machine does not fail the test

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo" if "name" in hangs else "create_connection", hang)
    import requests  # noqa: F401 (its import is no part of the two seconds)

    original = tiktoken.load.read_file
    begin = time.perf_counter()
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR.*bpe:N or bytes"):
        make_tokenizer("gpt2", [], [])
    assert time.perf_counter() - begin < 2
    assert tiktoken.load.read_file is original


def test_tables_are_downloaded_from_a_slow_server_that_answers(
    gpt2_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(tiktoken_tables, "_require_connection", lambda host, port: asked.append((host, port)))

    class Answer:
        def __init__(self, url: str, timeout: float) -> None:
            self.content = (gpt2_tables / hashlib.sha1(url.encode()).hexdigest()).read_bytes()

        def raise_for_status(self) -> None:
            pass

    monkeypatch.setattr("requests.get", Answer)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    assert make_tokenizer("gpt2", [], []).vocab_size == 50257
    assert [port for _, port in asked] == [443, 443]
    assert len(list(tmp_path.iterdir())) == 2


def test_behind_a_proxy_it_is_the_proxy_that_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def refuse(host: str, port: int) -> None:
        asked.append((host, port))
        raise ConnectionRefusedError

    monkeypatch.setattr(tiktoken_tables, "_require_connection", refuse)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for proxy in ("proxy.invalid:3128", "http://proxy.invalid:3128"):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(ConnectionRefusedError):
            tiktoken_tables._download("https://tables.invalid/vocab.bpe")
    assert asked == [("proxy.invalid", 3128)] * 2


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_without_network_a_tiktoken_name_is_refused_with_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS, name, no_network)
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR") as caught:
        make_tokenizer(name, [], [])
    assert f"data.tokenizer={name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tiktoken_encoding_keeps_all_its_special_tokens_and_its_gaps_can_be_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    special = {END_OF_TEXT: 257, "<|other|>": 259}  # with a gap, as cl100k_base has
    tables = {"name": "gpt2", "pat_str": r"\w+|\W+", "mergeable_ranks": ranks, "special_tokens": special}
    monkeypatch.setitem(tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS, "gpt2", lambda: tables)
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
        (b"[" * 100_000, "not a JSON file"),
        (b'{"a":' * 100_000, "not a JSON file"),
        (b"[]", "not a tokenizer of minigpt"),
        (b"null", "not a tokenizer of minigpt"),
        (b"{}", "not a tokenizer of minigpt"),
        (b'{"version": "1.0", "model": {"type": "BPE"}}', "not a Hugging Face tokenizer.json"),
        (b'{"version": "1.0", "model": {"type": "Unigram", "vocab": []}}', "'Unigram'.*only BPE is supported"),
        (b'{"kind": "huggingface", "tokenizer": []}', "not a Hugging Face tokenizer.json"),
        (b'{"kind": "huggingface"}', "not a tokenizer of minigpt"),
        (b'{"kind": "words"}', "unknown tokenizer kind 'words'"),
        (b'{"kind": "chars"}', "not a tokenizer of minigpt"),
        (b'{"kind": "chars", "alphabet": 3}', "not a tokenizer of minigpt"),
        (b'{"kind": "chars", "alphabet": "aba"}', "appears twice in its alphabet"),
        (b'{"kind": "chars", "alphabet": "\\ud800"}', "lone surrogate"),
        (b'{"kind": "bpe", "pattern": "x", "ranks": ["?"], "special_tokens": {}}', "not a tokenizer of minigpt"),
        (b'{"kind": "bpe", "pattern": "(", "ranks": [], "special_tokens": {"<|endoftext|>": 0}}', "split pattern"),
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


def test_a_tokenizer_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="larger than 64 MiB"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_file_is_plain_ascii_json(tmp_path: Path) -> None:
    save_tokenizer(TRAINED["chars"], tmp_path / "tokenizer.json")
    assert json.loads((tmp_path / "tokenizer.json").read_bytes().decode("ascii"))["kind"] == "chars"


def changed(saved: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path like "model.vocab.re"; None takes it away."""
    saved = copy.deepcopy(saved)
    *parents, name = [int(key) if key.isdigit() else key for key in path.split(".")]
    place: Any = saved
    for key in parents:
        place = place[key]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return saved


OURS = TRAINED["bpe"].to_dict()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("pattern", r"(a+)+$", "split pattern"),
        ("pattern", r"\w+", "split pattern"),
        ("pattern", 3, "split pattern"),
        ("ranks", OURS["ranks"][1:], "no token for the byte 0x21"),
        ("ranks", [*OURS["ranks"], OURS["ranks"][-1]], "appears twice"),
        ("ranks", [*OURS["ranks"], "?"], "not a tokenizer of minigpt"),
        ("ranks", {}, "no token for the byte"),
        ("ranks", [base64.b64encode(i.to_bytes(4, "big")).decode() for i in range(1_000_001)], "no token for the byte"),
        ("special_tokens", {END_OF_TEXT: 298}, "not those that follow its 299 ranks"),
        ("special_tokens", {END_OF_TEXT: 0}, "not those that follow"),
        ("special_tokens", {END_OF_TEXT: -1}, "not those that follow"),
        ("special_tokens", {END_OF_TEXT: 10**12}, "not those that follow"),
        ("special_tokens", {END_OF_TEXT: 299, "b": 299}, "not those that follow"),
        ("special_tokens", {END_OF_TEXT: "299"}, "not an integer"),
        ("special_tokens", {END_OF_TEXT: 299.0}, "not an integer"),
        ("special_tokens", {END_OF_TEXT: True}, "not an integer"),
        ("special_tokens", {"end": 299}, "no special token"),
        ("special_tokens", [], "not a tokenizer of minigpt"),
        ("special_tokens", None, "not a tokenizer of minigpt"),
    ],
)
def test_a_saved_bpe_that_could_lose_text_or_ids_is_refused(path: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        tokenizer_from_dict(changed(OURS, path, value))
    assert len(str(caught.value)) < 300


def split_by(pattern: Any, behavior: str = "Isolated") -> dict[str, Any]:
    split = {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def nested(depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def added(content: Any, token: Any, **settings: Any) -> list[Any]:
    """The file's added tokens and one more."""
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [*huggingface_file()["added_tokens"], {"id": token, "content": content, **base, **settings}]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("model.type", "WordPiece", "only BPE is supported"),
        ("model", [], "not a Hugging Face tokenizer.json"),
        ("model.vocab", [], "not a Hugging Face tokenizer.json"),
        ("model.vocab.a", None, "no token for the byte 0x61"),
        ("model.vocab.東", 300, "not made of bytes"),
        ("model.vocab.re", 5, "share an id"),
        ("model.vocab.re", -1, "needs an integer from 0 to 999999"),
        ("model.vocab.re", 10**9, "needs an integer from"),
        ("model.vocab.re", 10**30, "needs an integer from"),
        ("model.vocab.re", True, "needs an integer from"),
        ("model.vocab.re", 256.0, "needs an integer from"),
        ("model.merges", [["r", "nothing"]], "a merge names 'nothing'"),
        ("model.merges", [["e", "r"]], "a merge names 'er'"),
        ("model.merges", ["r e", "a b c"], "does not join two tokens"),
        ("model.merges", [[1, 2]], "a merge names 1"),
        ("model.merges", 3, "not a Hugging Face tokenizer.json"),
        ("model.merges", None, "not a Hugging Face tokenizer.json"),
        ("model.dropout", 0.1, "dropout=0.1"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
        ("model.continuing_subword_prefix", "##", "continuing_subword_prefix"),
        ("added_tokens", [], "no end-of-text token"),
        ("added_tokens", None, "no end-of-text token"),
        ("added_tokens", ["x"], "not a Hugging Face tokenizer.json"),
        ("added_tokens", added("a", 64), "could be encoded from text"),
        ("added_tokens", added("re", 256), "could be encoded from text"),
        ("added_tokens", added("<x>", 258), "share an id"),
        ("added_tokens", added("re", 300), "share an id"),
        ("added_tokens", added("<x>", 300), "other ids than the file"),
        ("added_tokens", added("<x>", 1_000_000), "needs an integer from"),
        ("added_tokens", added(END_OF_TEXT, 259), "appears twice"),
        ("added_tokens", added("\ud800", 259), "is not text"),
        ("added_tokens", added("", 259), "is not text"),
        ("added_tokens", added(3, 259), "is not text"),
        ("normalizer", {"type": "Lowercase"}, "'Lowercase' changes text irreversibly"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}, "'NFKC' changes text irreversibly"),
        ("normalizer", nested(400), "refused by the tokenizers library|not a tokenizer.json"),
        ("normalizer", nested(20_000), "not a Hugging Face tokenizer.json"),
        ("pre_tokenizer", None, "exactly one ByteLevel step"),
        ("pre_tokenizer", {"type": "Whitespace"}, "exactly one ByteLevel step"),
        ("pre_tokenizer", split_by({"Regex": r"\s"}, "Removed"), "may drop characters"),
        ("pre_tokenizer", split_by({"Regex": "a|" * 10_000}), "20000 characters, more than 10000"),
        ("pre_tokenizer", split_by({"Regex": "("}), "refused by the tokenizers library"),
        ("pre_tokenizer", split_by({"Regex": 3}), "not a Hugging Face tokenizer.json"),
        ("pre_tokenizer", split_by("x"), "not a Hugging Face tokenizer.json"),
        *(
            ("pre_tokenizer", split_by({"Regex": pattern}), "has nested quantifiers")
            for pattern in (
                *(r"(a+)+$", r"(?:a*)*b", r"(a|a)*b", r"(\w+\s?)+$", r"(?=(x+x+)+y)", r"(a)\1", r"((a?)b){30}"),
                *(r"(a{1,9})+", r"([)]+)+$", r"(\(+)*x", r"(?<n>a\g<n>?)"),
            )
        ),
    ],
)
def test_a_file_of_hugging_faces_that_is_no_sound_byte_level_bpe_is_refused_at_once(
    path: str, value: Any, expected: str
) -> None:
    begin = time.perf_counter()
    with pytest.raises(UserError, match=expected) as caught:
        HuggingFaceTokenizer(changed(huggingface_file(), path, value))
    assert time.perf_counter() - begin < 5
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "pattern",
    [
        *SPLITS.values(),
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|\s+",
        r"\p{N}{1,3}",
        r"[0-9][0-9][0-9]",
        r"\d{1,3}(?=(?:\d{3})*\b)",
    ],
)
def test_split_patterns_that_models_use_are_accepted(pattern: str) -> None:
    tokenizer = HuggingFaceTokenizer(changed(huggingface_file(), "pre_tokenizer", split_by({"Regex": pattern})))
    assert decode(tokenizer, tokenizer.encode(TEXT)) == TEXT


def test_a_file_of_hugging_faces_is_loaded_and_travels_with_a_run(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(huggingface_file()), encoding="utf-8")
    theirs = make_tokenizer(str(path), [], [])
    assert isinstance(theirs, HuggingFaceTokenizer)
    assert theirs.encode("re re") == [256, 257]
    save_tokenizer(theirs, tmp_path / "tokenizer.json")
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert ours.to_dict() == theirs.to_dict()
    assert ours.encode(TEXT) == theirs.encode(TEXT)


def test_old_files_that_write_a_merge_as_one_string_are_read() -> None:
    tokenizer = HuggingFaceTokenizer(changed(huggingface_file(), "model.merges", ["r e", "Ġ re"]))
    assert tokenizer.encode("re re") == [256, 257]


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(["<|im_start|>", END_OF_TEXT, "[X]", "<", "|>", " ", "re"]) | any_text))
def test_no_special_token_of_hugging_faces_is_ever_made_from_text(parts: list[str]) -> None:
    saved = changed(huggingface_file(), "added_tokens", [*added("<|im_start|>", 259), added("[X]", 260)[-1]])
    saved["added_tokens"][0]["special"] = False  # whatever the file says of the end of text
    tokenizer = HuggingFaceTokenizer(saved)
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert not {258, 259, 260} & set(ids)
    assert decode(tokenizer, ids) == text


def test_added_tokens_that_are_not_special_are_used_as_hugging_face_does() -> None:
    tokenizer = HuggingFaceTokenizer(changed(huggingface_file(), "added_tokens", added("    ", 259, special=False)))
    assert tokenizer.encode("a    re") == [64, 259, 256]
    assert tokenizer.lossless
    assert decode(tokenizer, [64, 259, 256, 258]) == "a    re" + END_OF_TEXT


def test_settings_of_a_file_that_would_cut_or_fill_texts_are_put_aside() -> None:
    saved = huggingface_file()
    saved["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {
        **{"strategy": {"Fixed": 9000}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
    }
    assert len(HuggingFaceTokenizer(saved).encode_batch(["abc"])[0]) == 3


@pytest.mark.parametrize(
    ("path", "value", "text", "back"),
    [
        ("normalizer", {"type": "NFC"}, "e\u0301", "é"),
        ("pre_tokenizer.add_prefix_space", True, "re", " re"),
        ("added_tokens", added("<x>", 259, special=False, lstrip=True), "a  <x>", "a<x>"),
    ],
)
def test_what_does_not_give_every_text_back_is_said_to_be_so(path: str, value: Any, text: str, back: str) -> None:
    tokenizer = HuggingFaceTokenizer(changed(huggingface_file(), path, value))
    assert not tokenizer.lossless
    assert decode(tokenizer, tokenizer.encode(text)) == back


@pytest.mark.parametrize(
    "names", [["</s>"], ["<|eot_id|>", "<|end_of_text|>"], ["<|im_end|>", "<|endoftext|>"], ["<pad>", "<eos>"]]
)
def test_the_last_named_token_here_is_taken_for_the_end_of_text(names: list[str]) -> None:
    tokens = [{**added(name, 258 + i)[-1]} for i, name in enumerate(names)]
    tokenizer = HuggingFaceTokenizer(changed(huggingface_file(), "added_tokens", tokens))
    assert tokenizer.decode_bytes([tokenizer.end_of_text]).decode() == names[-1]


def test_ids_that_a_file_of_hugging_faces_leaves_out_can_be_decoded() -> None:
    saved = changed(huggingface_file(), "model.vocab.re", 280)
    tokenizer = HuggingFaceTokenizer(changed(saved, "model.vocab.Ġre", 281))
    assert tokenizer.vocab_size == 282
    assert decode(tokenizer, [256]) == "<|unused_256|>"
    assert tokenizer.encode("re re") == [280, 281]


def test_a_split_pattern_that_gives_up_on_a_text_ends_in_one_line() -> None:
    # Polynomial, not exponential: not refused, but more than Oniguruma's ten million steps here.
    saved = changed(huggingface_file(), "pre_tokenizer", split_by({"Regex": r"\w*\w*\w*\w*\w*\w*[!]{2}"}))
    tokenizer = HuggingFaceTokenizer(saved)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match="split pattern of the tokenizer gave up"):
            encode("a" * 3000 + "!")
