"""Text in, text out: what the model is shown, where a text ends, and that nothing unfinished is ever shown."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import BYTES, LETTERS, WORDS, Counting, Preferring, Saying, real
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file, save_model

import minigpt
from minigpt.config import Config, GenerationConfig, GPTConfig
from minigpt.data.tokenizers.base import BPETokenizer, Tokenizer, decode
from minigpt.errors import UserError
from minigpt.files import shown
from minigpt.generation.generator import Writer
from minigpt.generation.text import TextStream, encode_prompt
from minigpt.model.gpt import GPT
from minigpt.runs.loading import save_weights


def written(model: Any, tokenizer: Tokenizer, prompt: str, **changes: Any) -> str:
    return Writer(model, tokenizer).generate(prompt, **{"max_new_tokens": 3, "temperature": 0.0} | changes).text


def test_a_text_is_continued_to_the_end_of_its_document() -> None:
    sample = Writer(Counting(10), LETTERS).generate("ab", max_new_tokens=50, temperature=0.0)  # type: ignore[arg-type]
    assert (sample.text, sample.ended, sample.tokens) == ("cdefgh", "end_of_text", (3, 4, 5, 6, 7, 8))
    assert len(sample.log_probabilities) == 6


def test_no_token_beyond_the_tokenizers_is_written() -> None:
    assert written(Preferring(262, 300), WORDS, "ab") == decode(WORDS, [0, 0, 0])  # the next likely one with a text


@pytest.mark.parametrize("spaces", [1, 2, 3])
def test_spaces_at_a_prompts_end_are_left_to_the_model_and_not_written_twice(spaces: int) -> None:
    model = Counting(10)
    assert written(model, LETTERS, "ab" + " " * spaces, max_new_tokens=spaces + 2) == "ab"
    assert model.read[0] == LETTERS.encode("ab")
    assert [token for (token,) in model.read[1:]] == LETTERS.encode(" " * spaces + "a")


@pytest.mark.parametrize(
    ("preferred", "text"),
    [
        (WORDS.encode(" ab")[0], "ab"),
        (WORDS.encode("ab")[0], "ab"),  # contradicts the space; the next likely one is " ab"
        (WORDS.encode(" ")[0], ""),
    ],
)
def test_after_a_space_the_model_chooses_among_the_tokens_that_begin_with_it(preferred: int, text: str) -> None:
    model = Preferring(preferred, WORDS.vocab_size)
    assert written(model, WORDS, "ab ", max_new_tokens=1) == text
    assert model.read == [WORDS.encode("ab")]


def test_a_prompt_of_spaces_alone_is_read_as_it_is() -> None:
    model = Counting(10)
    written(model, LETTERS, "  ")
    assert model.read[0] == [0, 0]


def test_an_empty_prompt_starts_where_a_document_starts() -> None:
    model = Counting(10)
    written(model, LETTERS, "")
    assert model.read[0] == [LETTERS.end_of_text]


def test_a_model_of_whole_texts_reads_each_prompt_as_the_beginning_of_one() -> None:
    model = Counting(10)
    Writer(model, LETTERS, from_start=True).generate("ab", max_new_tokens=1)  # type: ignore[arg-type]
    assert model.read == [[LETTERS.end_of_text, 1, 2]]


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "message"),
    [
        (BYTES, "abcdefghi", "the prompt has 9 tokens, but the model reads at most 8"),
        (LETTERS, "abcdefgh ", "the prompt has 9 tokens, but the model reads at most 8"),
        (LETTERS, "abz", r"character 'z' \(U\+007A\)"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_as_it_was_written(
    tokenizer: Tokenizer, prompt: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        written(Counting(300), tokenizer, prompt)


def test_a_prompt_as_long_as_the_context_fits() -> None:
    assert encode_prompt(BYTES, "abcd", 4) == list(b"abcd")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["!"], "one, two"),
        ("wo!", "one, t"),
        (["two!", "wo"], "one, t"),
        (["o!"], "one, tw"),
        (["o, t"], "one, two! two"),
        (["one"], ""),
        (["two? ", "nothing"], "one, two! two"),
    ],
)
def test_a_stop_string_ends_the_text_and_nothing_of_it_is_shown(stop: str | list[str], text: str) -> None:
    said = "one, two! two"
    writer = Writer(Saying(BYTES, said), BYTES)  # type: ignore[arg-type]
    sample = writer.generate("x", stop=stop, max_new_tokens=40, temperature=0.0)
    assert sample.text == text
    assert sample.ended == ("end_of_text" if text == said else "stop")


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="abé🙂", max_size=30),
    stop=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3),
)
def test_what_is_shown_piece_by_piece_is_the_text_up_to_the_stop_that_ends_first(text: str, stop: list[str]) -> None:
    end = min((text.find(each) + len(each) for each in stop if each in text), default=None)
    places = [text[:end].find(each) for each in stop if end is not None and each in text[:end]]
    expected = text[: min(places)] if places else text
    stream, shown = TextStream(BYTES, stop), ""
    for token in BYTES.encode(text):
        shown += stream.add(token)
        assert expected.startswith(shown)
    assert shown + stream.end() == expected
    assert stream.stopped == bool(places)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(0, 256), max_size=12))
def test_streamed_text_is_the_decoded_text_even_where_it_is_no_text(tokens: list[int]) -> None:
    stream = TextStream(BYTES)
    assert "".join([*map(stream.add, tokens), stream.end()]) == decode(BYTES, tokens)


def test_a_character_of_several_tokens_is_shown_with_its_last() -> None:
    tokenizer = BPETokenizer.train(["plain words"], 258)
    stream = TextStream(tokenizer)
    assert [stream.add(token) for token in tokenizer.encode("é🙂")] == ["", "é", "", "", "", "🙂"]


def test_text_is_shown_before_the_next_token_is_made() -> None:
    model = Saying(BYTES, "abc")
    text = Writer(model, BYTES).stream("x", temperature=0.0)  # type: ignore[arg-type]
    assert next(text) == "a"
    assert len(model.read) == 1


def test_streamed_pieces_join_to_the_text() -> None:
    writer = Writer(real(), BYTES)
    settings: dict[str, Any] = {"max_new_tokens": 50, "seed": 3, "temperature": 1.0, "top_k": None}
    assert "".join(writer.stream("ab ", **settings)) == writer.generate("ab ", **settings).text


def test_many_prompts_and_samples_are_each_as_if_alone() -> None:
    writer = Writer(real(), BYTES)
    many = writer.generate_many(["ab", "", "longer "], num_samples=2, max_new_tokens=40, seed=5)
    assert [(sample.prompt, sample.seed) for sample in many] == [(p, s) for p in ("ab", "", "longer ") for s in (5, 6)]
    alone = [writer.generate(each.prompt, max_new_tokens=40, seed=each.seed) for each in many]
    assert [each.text for each in many] == [each.text for each in alone]
    assert [each.tokens for each in many] == [each.tokens for each in alone]
    assert len({sample.tokens for sample in many}) == 6


def test_the_draws_do_not_depend_on_the_global_random_state_nor_change_it() -> None:
    writer = Writer(real(), BYTES)
    torch.manual_seed(1)
    first = writer.generate("a", seed=1)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert writer.generate("a", seed=1) == first
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 47, 100])
def test_the_score_of_a_text_is_the_loss_of_each_token_after_at_least_half_a_context(length: int) -> None:
    model, text = real(), "".join(chr(97 + i * 7 % 26) for i in range(length))
    score = Writer(model, BYTES).score(text)
    tokens = [BYTES.end_of_text, *BYTES.encode(text)]
    expected = []
    for place in range(1, len(tokens)):
        start = 0 if place <= 32 else (place - 1 - 16) // 16 * 16
        with torch.no_grad():
            logits = model(torch.tensor([tokens[start:place]]))[0, -1]
        expected.append(float(logits.log_softmax(-1)[tokens[place]]))
        assert 16 < place - start <= 32 or not start
    torch.testing.assert_close(torch.tensor(score.log_probabilities), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert score.loss == pytest.approx(-sum(expected) / length, rel=1e-4)
    assert score.bits_per_byte == pytest.approx(score.loss / 0.693147, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatur": 1}, "temperatur: no such setting; there are max_new_tokens, "),
        ({"temperature": -1.0}, "temperature=-1.0: must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        ({"stop": [""]}, r"stop=\[''\]: has an empty string"),
        ({"forbidden_tokens": [257]}, "forbidden_tokens: there is no token 257: the vocabulary has 257"),
        ({"forbidden_tokens": list(range(257))}, "forbidden_tokens: no token is left to draw"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Writer(real(), BYTES).generate("a", **changes)


def test_an_empty_text_has_no_score() -> None:
    with pytest.raises(UserError, match="the text is empty"):
        Writer(real(), BYTES).score("")


def test_a_config_is_the_default_of_single_changes() -> None:
    writer, config = Writer(real(), BYTES), GenerationConfig(max_new_tokens=7, seed=2)
    samples: Sequence[Any] = [writer.generate("a", config), writer.generate("a", config, seed=3)]
    assert [(len(sample.tokens), sample.seed) for sample in samples] == [(7, 2), (7, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "0.5"}, "temperature='0.5': expected float"),
        ({"temperature": None}, "temperature=None: expected float"),
        ({"temperature": True}, "temperature=True: expected float"),
        ({"top_k": 5.5}, r"top_k=5.5: expected int \| None"),
        ({"stop": 5}, r"stop=5: expected str \| list\[str\]"),
        ({"stop_tokens": [1.5]}, r"stop_tokens=\[1.5\]: expected list\[int\]"),
        ({"overflow": "x"}, "overflow='x': expected Literal"),
        ({"temperature": 1e-310}, "temperature=1e-310: must be 0, for greedy decoding, or at least 1e-30"),
        ({"repetition_penalty": 1e308}, "repetition_penalty=1e.308: must lie in 0.001 to 1000; 1 is none"),
    ],
)
def test_values_of_another_kind_are_refused_also_in_python(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Writer(real(), BYTES).generate("a", **changes)


def test_a_stop_token_of_the_settings_is_not_the_end_of_the_text() -> None:
    writer = Writer(Counting(10), LETTERS)  # type: ignore[arg-type]
    assert writer.generate("ab", temperature=0.0, stop_tokens=[5]).ended == "stop_token"
    assert writer.generate("ab", temperature=0.0).ended == "end_of_text"


WITHOUT_TORCH = """
import json, sys
import minigpt
from minigpt.__main__ import main
writer = minigpt.load("model.safetensors")
texts = [sample.text for sample in writer.generate_many(["ab", "c" * 70], num_samples=2, max_new_tokens=40)]
texts.append("".join(writer.stream("ab", max_new_tokens=3, temperature=0, draft_tokens=4)))
print(json.dumps(texts))
try:
    main("sample", "model.safetensors", "--prompt", "ab", "--max_new_tokens", "3", "--temperature", "0")
finally:
    heavy = {"torch", "lightning", "datasets", "pandas", "matplotlib", "requests", "tokenizers", "transformers"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_a_models_own_file_is_written_with_without_torch(tmp_path: Path) -> None:
    config = Config(model=GPTConfig(vocab_size=257, n_layer=2, n_head=2, n_embd=32, context_length=80))
    torch.manual_seed(0)
    model = GPT(config.model).eval()
    save_weights(tmp_path / "model.safetensors", model, config, BYTES)
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    written, _, printed = result.stdout.decode().partition("\n")
    writer = Writer(model, BYTES)
    samples = writer.generate_many(["ab", "c" * 70], num_samples=2, max_new_tokens=40)
    greedy = writer.generate("ab", max_new_tokens=3, temperature=0.0).text
    assert json.loads(written) == [*(sample.text for sample in samples), greedy]
    assert printed == f"{shown('ab' + greedy)}\n"


def test_weights_that_do_not_fit_the_config_are_refused_as_they_are_with_torch(tmp_path: Path) -> None:
    config = Config(model=GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=8))
    file = tmp_path / "model.safetensors"
    save_weights(file, GPT(dataclasses.replace(config.model, n_layer=2)), config, BYTES)
    with pytest.raises(UserError, match=r"model\.safetensors: its weights do not fit its config"):
        minigpt.load(file)


@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_models_weights_are_saved_and_flattened_like_any_others_also_after_writing(
    tied: bool, tmp_path: Path
) -> None:
    config = Config(model=GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=8, tie_embeddings=tied))
    save_weights(tmp_path / "model.safetensors", GPT(config.model), config, BYTES)
    writer = minigpt.load(tmp_path / "model.safetensors")
    writer.generate("a", max_new_tokens=70)
    assert all(tensor.is_contiguous() for tensor in writer.model.state_dict().values())
    torch.nn.utils.parameters_to_vector(writer.model.parameters())
    save_file(writer.model.state_dict(), tmp_path / "file.safetensors")
    save_model(writer.model, str(tmp_path / "model_file.safetensors"))
    fresh = GPT(config.model)
    assert load_model(fresh, tmp_path / "model_file.safetensors") == (set(), [])
    for found in (fresh.state_dict(), load_file(tmp_path / "file.safetensors")):
        assert all(torch.equal(found[name], tensor) for name, tensor in writer.model.state_dict().items())


@pytest.mark.parametrize(
    "ids", [[97, 32], (97, 32), torch.tensor([97, 32]), np.array([97, 32]), [np.int64(97), torch.tensor(32)]], ids=str
)
def test_token_ids_are_a_prompt_and_a_text_just_as_they_are(ids: Any) -> None:
    writer = Writer(real(), BYTES, from_start=True)
    found = writer.generate(ids, max_new_tokens=4)
    assert (found.prompt, found.prompt_tokens) == ("a ", (97, 32))
    assert writer.generate_many([ids], max_new_tokens=4) == [found]
    assert "".join(writer.stream(ids, max_new_tokens=4)) == found.text
    assert writer.score(ids) == writer.score("a ")


def test_many_prompts_may_come_one_by_one_or_as_the_rows_of_a_tensor() -> None:
    writer = Writer(real(), BYTES)
    expected = writer.generate_many(["ab", "cd"], max_new_tokens=2)
    assert writer.generate_many((text for text in ["ab", "cd"]), max_new_tokens=2) == expected
    assert writer.generate_many(torch.tensor([[97, 98], [99, 100]]), max_new_tokens=2) == expected
    assert writer.generate_many([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda writer: writer.generate(None), "prompt=None: expected text, or a list or a 1-D tensor of token ids"),
        (lambda writer: writer.generate(b"a"), "prompt=b'a': expected text"),
        (lambda writer: writer.generate(3), "prompt=3: expected text"),
        (lambda writer: writer.generate([1.5]), "prompt=[1.5]: expected text"),
        (lambda writer: writer.generate([True]), "prompt=[True]: expected text"),
        (lambda writer: writer.generate(["ab", "cd"]), "prompt=['ab', 'cd']: expected text"),
        (lambda writer: writer.generate(torch.tensor([[1, 2]])), "prompt=tensor([[1, 2]]): expected text"),
        (lambda writer: writer.generate([1, 257]), "prompt: there is no token 257: the vocabulary has 257"),
        (lambda writer: writer.generate([-1]), "prompt: there is no token -1"),
        (lambda writer: writer.generate("a", {"seed": 3}), "config={'seed': 3}: expected a GenerationConfig"),
        (lambda writer: writer.score(None), "prompt=None: expected text"),
        (lambda writer: writer.score([]), "the text is empty"),
        (lambda writer: writer.score([256]), "the text is empty"),
        (lambda writer: writer.generate_many("text"), "prompts='text': expected a list of prompts"),
        (lambda writer: writer.generate_many(None), "prompts=None: expected a list of prompts"),
        (lambda writer: writer.generate_many([1, 2]), "prompt=1: expected text"),
        (lambda writer: writer.generate_many(["a"], num_samples=0), "num_samples=0: must be a whole number from 1"),
        (lambda writer: writer.generate_many(["a"], num_samples="2"), "num_samples='2': must be a whole number from 1"),
        (lambda writer: writer.stream([0.5]), "prompt=[0.5]: expected text"),
        (lambda _: minigpt.load(None), "None: expected the path of a checkpoint, as a str or a Path"),
        (lambda _: minigpt.load(".", device=[]), "device=[]: not available here"),
    ],
)
def test_a_call_with_values_of_another_kind_says_what_was_expected(
    call: Callable[[Writer], object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        call(Writer(real(), BYTES))
    assert str(error.value).startswith(message)
