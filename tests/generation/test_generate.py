"""The loop: what the model is shown, where it stops, and the text that comes out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from minigpt.config import GPTConfig, UserError
from minigpt.data.tokenizer import BPETokenizer, BytesTokenizer, CharsTokenizer, decode
from minigpt.generation.generate import continue_text, encode_prompt, generate, stream_text
from minigpt.model.gpt import GPT

TOKENIZER = BytesTokenizer()


class Counting(nn.Module):
    """A model of ten tokens that finds the successor of the last token likeliest, and remembers what it read."""

    def __init__(self, context_length: int = 4, certainty: float = 1.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(context_length=context_length)
        self.certainty = nn.Parameter(torch.tensor(certainty))
        self.read: list[list[int]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.read += tokens.tolist()
        return self.certainty * nn.functional.one_hot((tokens + 1) % 10, 10)


class Preferring(nn.Module):
    """A model that finds one and the same token likeliest, and the next ones less and less likely."""

    def __init__(self, token: int, vocab_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(context_length=8)
        self.logits = nn.Parameter(-((torch.arange(vocab_size) - token) % vocab_size).float())
        self.read: list[list[int]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.read += tokens.tolist()
        return self.logits.expand(1, tokens.shape[1], -1)


def write(model: Any = None, prompt: list[int] | None = None, **options: Any) -> list[int]:
    settings = {"max_new_tokens": 6, "temperature": 0.0} | options
    return list(generate(model or Counting(), prompt or [0], **settings))


def test_at_temperature_zero_each_token_is_the_likeliest() -> None:
    assert write() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("n", [1, 2, 17])
def test_as_many_tokens_are_written_as_were_asked_for(n: int) -> None:
    assert len(write(max_new_tokens=n, temperature=1.0)) == n


def test_the_model_reads_what_was_written_so_far_up_to_its_context() -> None:
    model = Counting(context_length=4)
    write(model, [7, 8])
    assert model.read == [[7, 8], [7, 8, 9], [7, 8, 9, 0], [8, 9, 0, 1], [9, 0, 1, 2], [0, 1, 2, 3]]


def test_a_prompt_that_fills_the_context_is_read_whole() -> None:
    model = Counting(context_length=4)
    assert write(model, [3, 4, 5, 6], max_new_tokens=1) == [7]
    assert model.read == [[3, 4, 5, 6]]


def test_the_text_ends_where_the_model_ends_it_and_the_mark_is_not_shown() -> None:
    model = Counting()
    assert write(model, end_of_text=4) == [1, 2, 3]
    assert len(model.read) == 4


def test_without_an_end_mark_the_text_goes_on() -> None:
    assert 4 in write(end_of_text=None)


def test_tokens_beyond_the_tokenizers_are_never_drawn() -> None:
    assert max(write(Counting(certainty=0.0), max_new_tokens=300, temperature=1.0, n_drawable=7)) == 6
    assert write(Counting(certainty=9.0), [5], n_drawable=7, max_new_tokens=3) == [6, 0, 1]  # 7 is likeliest after 6


def test_the_same_seed_writes_the_same_tokens_and_another_seed_others() -> None:
    options = {"max_new_tokens": 40, "temperature": 1.0}
    assert write(seed=1, **options) == write(seed=1, **options)
    assert write(seed=1, **options) != write(seed=2, **options)


def test_the_draws_do_not_depend_on_the_global_random_state_nor_change_it() -> None:
    torch.manual_seed(1)
    first = write(seed=1, temperature=1.0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert write(seed=1, temperature=1.0) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_prompt_is_left_as_it_was() -> None:
    prompt = [1, 2]
    write(prompt=prompt)
    assert prompt == [1, 2]


def test_tokens_come_one_by_one() -> None:
    model = Counting()
    tokens = generate(model, [0], max_new_tokens=6, temperature=0.0)  # type: ignore[arg-type]
    assert next(tokens) == 1
    assert len(model.read) == 1


def test_nobody_needs_to_switch_gradients_off() -> None:
    class Watching(Counting):
        def forward(self, tokens: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return super().forward(tokens)

    tokens = generate(Watching(), [0], max_new_tokens=3, temperature=0.0)  # type: ignore[arg-type]
    for _ in tokens:
        assert torch.is_grad_enabled()  # between two tokens, in the caller's own code


def test_a_real_model_writes_beyond_its_context() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, context_length=8, n_layer=1, n_head=2, n_embd=16)).eval()
    tokens = write(model, [1, 2, 3], max_new_tokens=20, temperature=1.0, top_k=5)
    assert len(tokens) == 20
    assert set(tokens) <= set(range(11))


def test_an_empty_prompt_starts_where_a_document_starts() -> None:
    assert encode_prompt(TOKENIZER, "", 8) == [TOKENIZER.end_of_text]


def test_a_prompt_as_long_as_the_context_fits() -> None:
    assert encode_prompt(TOKENIZER, "abcd", 4) == list(b"abcd")


def test_a_prompt_that_does_not_fit_is_refused_with_both_lengths() -> None:
    with pytest.raises(UserError, match="the prompt has 5 tokens, but the model reads at most 4"):
        encode_prompt(TOKENIZER, "abcde", 4)


def test_a_prompt_with_an_unknown_character_is_refused() -> None:
    with pytest.raises(UserError, match=r"character 'z' \(U\+007A\)"):
        encode_prompt(CharsTokenizer("ab"), "abz", 4)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_streamed_text_is_whole_characters_that_join_to_the_text(text: str) -> None:
    pieces = list(stream_text(TOKENIZER, TOKENIZER.encode(text)))
    assert "".join(pieces) == text
    assert all(len(piece) == 1 for piece in pieces)  # of bytes, each character comes with its last one


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(0, 256), max_size=12))
def test_streamed_text_is_the_decoded_text_even_where_it_is_no_text(tokens: list[int]) -> None:
    assert "".join(stream_text(TOKENIZER, tokens)) == decode(TOKENIZER, tokens)


def test_a_character_of_several_tokens_is_shown_with_its_last() -> None:
    tokenizer = BPETokenizer.train(["plain words"], 258)
    shown = []
    for token in tokenizer.encode("é🙂"):
        shown.append("".join(stream_text(tokenizer, [token])))
    assert set(shown) == {"\ufffd"}  # each token alone is half a character
    assert list(stream_text(tokenizer, tokenizer.encode("é🙂"))) == ["é", "🙂"]


def test_text_that_ends_in_half_a_character_says_so_at_the_end() -> None:
    assert list(stream_text(TOKENIZER, b"a\xc3")) == ["a", "\ufffd"]


def test_text_is_shown_before_the_next_token_is_made() -> None:
    made = []

    def tokens() -> Any:
        for token in b"ab":
            made.append(token)
            yield token

    text = stream_text(TOKENIZER, tokens())
    assert next(text) == "a"
    assert made == [ord("a")]


LETTERS = CharsTokenizer(" abcdefgh")  # ten tokens with the end of text, as many as Counting has
WORDS = BPETokenizer.train(["ab ab ab"], 2048)  # bytes, "ab" is 256, " ab" is 257, the end of text is 258


def continued(model: Any, tokenizer: Any, prompt: str, **options: Any) -> str:
    settings = {"max_new_tokens": 3, "temperature": 0.0} | options
    return "".join(continue_text(model, tokenizer, prompt, **settings))


def test_a_text_is_continued_to_the_end_of_its_document() -> None:
    assert continued(Counting(), LETTERS, "ab", max_new_tokens=50) == "cdefgh"


def test_no_token_beyond_the_tokenizers_is_written() -> None:
    model = Preferring(262, 300)
    assert continued(model, WORDS, "ab") == decode(WORDS, [0, 0, 0])  # the next likely one that has a text


@pytest.mark.parametrize("spaces", [1, 2, 3])
def test_spaces_at_a_prompts_end_are_left_to_the_model_and_not_written_twice(spaces: int) -> None:
    model = Counting(context_length=8)
    assert continued(model, LETTERS, "ab" + " " * spaces, max_new_tokens=spaces + 2) == "ab"
    assert model.read[0] == LETTERS.encode("ab")
    assert model.read[-1] == LETTERS.encode("ab" + " " * spaces + "a")


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
    assert continued(model, WORDS, "ab ", max_new_tokens=1) == text
    assert model.read == [WORDS.encode("ab")]


def test_a_prompt_of_spaces_alone_is_read_as_it_is() -> None:
    model = Counting()
    continued(model, LETTERS, "  ")
    assert model.read[0] == [0, 0]


def test_a_prompt_that_is_refused_is_refused_as_it_was_written() -> None:
    with pytest.raises(UserError, match="the prompt has 5 tokens, but the model reads at most 4"):
        continued(Counting(context_length=4), LETTERS, "a    ")
