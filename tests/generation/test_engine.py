"""The engine against the loop without a cache: token for token, for every kind of model, alone and in a batch."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from grids import pairwise

from minigpt.config import GenerationConfig, GPTConfig
from minigpt.errors import UserError
from minigpt.generation import engine
from minigpt.generation.cpu_backend import CPUDecode
from minigpt.generation.engine import Reader, Row, generate, window_start
from minigpt.generation.model_reader import CompiledDecode, StaticDecode
from minigpt.generation.prompt_lookup import prompt_lookup_draft
from minigpt.generation.sampling import Generator, apply_filters, draw
from minigpt.model import compiling
from minigpt.model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 50, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
KINDS: list[dict[str, Any]] = [
    {},
    {"norm": "layernorm", "mlp": "gelu", "bias": True, "position": "learned", "qk_norm": False, "tie_embeddings": True},
    {"mlp": "gelu_exact"},
    *({"position": position} for position in ("sinusoidal", "alibi", "none")),
    {"n_kv_head": 2},
    {"n_kv_head": 1, "position": "alibi"},
    {"window": 5},
    {"window": [3, None], "position": "learned"},
    {"document_mask": True, "end_of_text": 7},
    {"document_mask": True, "end_of_text": 7, "position": "learned", "window": 6},
    {"logit_softcap": 3.0},
    *({"similarity": similarity} for similarity in ("cosine", "gaussian", "hopfield", "symmetric", "linear", "hard")),
    {"similarity": "uniform", "position": "learned"},
    {"similarity": "linear", "window": [4, None]},
    {"similarity": "linear", "document_mask": True, "end_of_text": 7},
    {"similarity": "gaussian", "position": "alibi", "n_kv_head": 2},
]
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [11], [3, 7, 5], list(range(24))]


def make(kind: dict[str, Any]) -> GPT:
    """A model whose logits differ clearly, as those of a fresh one hardly do."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**TINY | kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


def rows(prompts: Sequence[Sequence[int]], seed: int = 0) -> list[Row]:
    return [Row(list(prompt), Generator(seed + i), i, len(prompt)) for i, prompt in enumerate(prompts)]


def written(
    model: GPT, prompts: Sequence[Sequence[int]], seed: int = 0, reader: Reader | None = None, **settings: Any
) -> list[list[int]]:
    made = rows(prompts, seed)
    for _ in generate(model, made, GenerationConfig(**settings), reader):
        pass
    return [row.drawn for row in made]


def written_slowly(model: GPT, prompt: Sequence[int], seed: int = 0, **settings: Any) -> list[int]:
    """The whole window is read for each token."""
    config, tokens = GenerationConfig(**settings), list(prompt)
    generator = Generator(seed)
    while len(tokens) - len(prompt) < config.max_new_tokens:
        window = tokens[window_start(len(tokens), model.config.context_length) :]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[:, -1]
        *_, (_, left) = apply_filters(logits[0].numpy(), config, tokens)
        tokens.append(draw(left, config.temperature, generator))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_with_the_cache_the_same_tokens_are_drawn_as_without_also_past_the_context(kind: dict[str, Any]) -> None:
    model = make(kind)
    for seed, (prompt, n) in enumerate(zip(PROMPTS, (34, 12, 12, 14), strict=True)):  # the first and last go past it
        settings = {"max_new_tokens": n, "temperature": float(seed % 2), "top_k": None}
        assert written(model, [prompt], seed, **settings) == [written_slowly(model, prompt, seed, **settings)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_is_the_same_in_a_batch_of_unequal_prompts_as_alone(kind: dict[str, Any]) -> None:
    model = make(kind)
    settings = {"max_new_tokens": 24, "temperature": 1.0, "top_k": None}
    alone = [written(model, [prompt], i, **settings)[0] for i, prompt in enumerate(PROMPTS)]
    assert written(model, PROMPTS, 0, **settings) == alone


@pytest.mark.parametrize(("kind", "temperature"), pairwise(KINDS, [0.0, 0.5], strength=1))
def test_with_a_draft_the_same_tokens_are_drawn_in_fewer_passes(
    kind: dict[str, Any], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, drafts = make(kind), []
    if temperature:
        model.double()  # in float32 one draw in half a million lies so near to an edge that rounding decides it

    def guess(tokens: Sequence[int], most: int) -> list[int]:
        """Sometimes right to the end, sometimes wrong at once: the tokens that will come, with an error at places."""
        (whole,) = [prompt + drawn for prompt, drawn in zip(PROMPTS, plain, strict=True) if prompt[0] == tokens[0]]
        come = whole[len(tokens) :][:most]
        draft = [(token + (len(tokens) + i) % 4 // 3) % 50 for i, token in enumerate(come)]
        drafts.append(len(draft))
        return draft

    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": temperature, "top_k": None}
    plain = written(model, PROMPTS, 0, **settings)
    monkeypatch.setattr(engine, "prompt_lookup_draft", guess)
    assert written(model, PROMPTS, 0, **settings, draft_tokens=5) == plain
    for seed, prompt in enumerate(PROMPTS):
        assert written(model, [prompt], seed, **settings, draft_tokens=5) == [plain[seed]]
    summed = kind.get("similarity") == "linear" and not kind.get("document_mask")
    assert bool(drafts) != summed


def test_a_draft_is_what_followed_the_longest_and_latest_of_the_same_words() -> None:
    assert prompt_lookup_draft([1, 2, 3, 9, 5, 6, 1, 2, 3], 3) == [9, 5, 6]
    assert prompt_lookup_draft([7, 2, 3, 8, 1, 2, 3, 9, 2, 3, 4, 1, 2, 3], 2) == [9, 2]
    assert prompt_lookup_draft([5, 2, 3, 8, 6, 2, 3, 9, 7, 2, 3], 4) == [9, 7, 2, 3]
    assert prompt_lookup_draft([1, 1, 1, 1], 4) == [1]
    assert prompt_lookup_draft([4, 1, 2, 3, 5, 6, 3], 4) == []
    assert prompt_lookup_draft([1, 2, 3, 1, 2], 0) == []
    assert prompt_lookup_draft([1], 3) == []


def test_a_text_that_repeats_itself_is_written_in_fewer_passes() -> None:
    model, n_passes = make({"similarity": "cosine"}), 0
    hidden = model.hidden

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal n_passes
        n_passes += 1
        return hidden(*arguments)

    model.hidden = counted  # type: ignore[method-assign]
    plain = written(model, [[1, 2]], max_new_tokens=21, temperature=0.0)
    before, n_passes = n_passes, 0
    assert written(model, [[1, 2]], max_new_tokens=21, temperature=0.0, draft_tokens=6) == plain
    assert (before, n_passes < 21) == (21, len(set(plain[0])) < 15)


def test_rows_that_end_leave_the_others_as_they_are() -> None:
    model = make({})
    settings = {"max_new_tokens": 40, "temperature": 1.0, "top_k": None, "stop_tokens": list(range(0, 50, 9))}
    alone = [written(model, [prompt], i, **settings)[0] for i, prompt in enumerate(PROMPTS)]
    assert len({len(drawn) for drawn in alone}) > 1
    assert written(model, PROMPTS, 0, **settings) == alone


def test_samples_of_one_prompt_share_its_prefill_and_are_those_of_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = make({"similarity": "cosine"}), []  # a kind that GPT itself decodes
    hidden = model.hidden

    def watched(tokens: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        shapes.append(tuple(tokens.shape))
        return hidden(tokens, *rest, **named)

    alone = [written(model, [PROMPTS[0]], seed, max_new_tokens=5)[0] for seed in range(3)]
    monkeypatch.setattr(model, "hidden", watched)
    assert written(model, [PROMPTS[0]] * 3, 0, max_new_tokens=5) == alone
    assert shapes == [(1, 9), (3, 1), (3, 1), (3, 1), (3, 1)]


def test_the_cache_holds_keys_of_grouped_heads_once_and_no_more_tokens_than_are_needed() -> None:
    from minigpt.model.cache import KVCache

    cache = KVCache(GPTConfig(**TINY | {"n_kv_head": 2, "context_length": 512}), 3, 40)
    assert {tuple(layer.key.shape) for layer in cache.layers} == {(3, 2, 40, 8)}
    summed = KVCache(GPTConfig(**TINY | {"similarity": "linear", "window": [4, None]}), 3, 20)
    assert [layer.key.shape[2] for layer in summed.layers] == [20, 0]


def test_a_row_ends_at_its_length_at_a_stop_token_or_at_the_contexts_edge() -> None:
    model = make({})
    greedy = written(model, [[1, 2]], max_new_tokens=30, temperature=0.0)[0]
    made = rows([[1, 2]])
    for _ in generate(model, made, GenerationConfig(max_new_tokens=30, temperature=0.0, overflow="stop")):
        pass
    assert (made[0].ended, made[0].tokens) == ("context", [1, 2, *greedy[:23]])
    made = rows([[1, 2]])
    for _ in generate(model, made, GenerationConfig(max_new_tokens=3, temperature=0.0)):
        pass
    assert (made[0].ended, made[0].drawn) == ("length", greedy[:3])
    made = rows([[1, 2]])
    config = GenerationConfig(max_new_tokens=30, temperature=0.0, stop_tokens=[greedy[2]])
    for _ in generate(model, made, config):
        pass
    assert (made[0].ended, made[0].drawn) == ("stop_token", greedy[: greedy.index(greedy[2])])


def test_stop_tokens_are_not_drawn_before_the_least_length() -> None:
    model, stop = make({}), list(range(1, 50))
    assert written(model, [[1]], max_new_tokens=9, min_new_tokens=5, temperature=1.0, stop_tokens=stop) == [[0] * 5]


def test_a_reader_can_end_a_row() -> None:
    model, made = make({}), rows([[1], [2]])
    for step, going in enumerate(generate(model, made, GenerationConfig(max_new_tokens=6))):
        if step == 1:
            going[0].ended = "enough"
    assert [(len(row.drawn), row.ended) for row in made] == [(2, "enough"), (6, "length")]


def test_the_chances_are_those_the_model_gave() -> None:
    model, made = make({}), rows([[1, 2, 3]])
    for _ in generate(model, made, GenerationConfig(max_new_tokens=8, temperature=0.3, top_k=3)):
        pass
    tokens = torch.tensor([made[0].tokens])
    with torch.no_grad():
        expected = model(tokens[:, :-1])[0, 2:].log_softmax(-1)[range(8), tokens[0, 3:]]
    torch.testing.assert_close(torch.tensor(made[0].log_probabilities), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("n_tokens", "context_length", "start"),
    [(1, 8, 0), (8, 8, 0), (9, 8, 2), (10, 8, 2), (11, 8, 4), (5, 4, 1), (9, 4, 5), (2, 1, 1), (7, 1, 6)],
)
def test_a_window_starts_at_quarters_of_the_context_and_always_fits(
    n_tokens: int, context_length: int, start: int
) -> None:
    assert window_start(n_tokens, context_length) == start
    assert 0 < n_tokens - start <= context_length


def test_gradients_are_off_inside_and_on_in_between() -> None:
    for _ in generate(make({}), rows([[1]]), GenerationConfig(max_new_tokens=3)):
        assert torch.is_grad_enabled()


def test_a_watcher_is_told_what_each_token_is_drawn_from_and_changes_nothing() -> None:
    model, made, told = make({}), rows([[1, 2, 3]], seed=4), []
    settings: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.5, "top_k": 6, "top_p": 0.8, "min_p": 0.1}
    made[0].watch = lambda logits, stages: told.append((logits, dict(stages)))
    for _ in generate(model, made, GenerationConfig(**settings, forbidden_tokens=[5])):
        pass
    assert made[0].drawn == written(model, [[1, 2, 3]], 4, **settings, forbidden_tokens=[5])[0]
    tokens = torch.tensor([made[0].tokens])
    with torch.no_grad():
        expected = model(tokens[:, :-1])[0, 2:]
    found = torch.stack([torch.from_numpy(logits) for logits, _ in told])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for token, (_, stages) in zip(made[0].drawn, told, strict=True):
        assert list(stages) == ["permitted", "forbidden_tokens", "temperature", "top_k", "top_p", "min_p"]
        left = [len(choice.tokens) for choice in stages.values()]
        assert left[:4] == [50, 49, 49, 6]
        assert left[3] >= left[4] >= left[5] > 0
        assert token in stages["min_p"].tokens


def test_with_eight_bits_rows_are_the_same_alone_in_a_batch_and_with_drafts() -> None:
    model = make({"n_kv_head": 2, "position": "learned", "mlp": "gelu", "bias": True})
    reader = CPUDecode(model, int8=True)
    settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.7, "top_k": None}
    alone = [written(model, [prompt], i, reader, **settings)[0] for i, prompt in enumerate(PROMPTS)]
    assert written(model, PROMPTS, 0, reader, **settings) == alone
    for i, prompt in enumerate(PROMPTS):
        assert written(model, [prompt], i, reader, **settings, draft_tokens=4) == [alone[i]]


class Ahead(StaticDecode):
    """Draws as on a GPU."""

    ahead = 5


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_of_one_shape_draw_the_same_tokens_also_ahead_of_the_loop_and_between_drafts(
    kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind)
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0, "top_k": None}
    settings |= {"stop_tokens": [13], "min_new_tokens": 3}  # rows end in the midst of what is drawn ahead
    plain = written(model, PROMPTS, 0, **settings)
    for reader in (StaticDecode(model), Ahead(model)):
        assert written(model, PROMPTS, 0, reader, **settings) == plain
    monkeypatch.setattr(engine, "prompt_lookup_draft", lambda tokens, most: [7] if len(tokens) % 3 and most else [])
    assert written(model, PROMPTS[:1], 0, StaticDecode(model), **settings, draft_tokens=1) == plain[:1]


def test_rows_and_log_probabilities_drawn_ahead_are_those_of_the_loop() -> None:
    model, config = make({}), GenerationConfig(max_new_tokens=30, overflow="stop", repetition_penalty=1.3)
    found = []
    for reader in (None, Ahead(model)):
        made = rows(PROMPTS)
        made[1].restrict = lambda drawn: None if len(drawn) > 1 else torch.arange(40).gt(20).numpy()
        for new in generate(model, made, config, reader):
            for row in new:
                if row.index == 2 and row.n_drawn == 6:
                    row.ended = "stop"  # by the caller, as at a stop string
        found.append(made)
    for ours, theirs in zip(*found, strict=True):
        assert (ours.tokens, ours.ended, ours.stopped_by) == (theirs.tokens, theirs.ended, theirs.stopped_by)
        assert ours.log_probabilities == pytest.approx(theirs.log_probabilities, abs=1e-4)
    with torch.no_grad():
        model.lm_head.weight[3].fill_(torch.nan)
    with pytest.raises(UserError, match="the model's logits are NaN or inf"):
        written(model, [[1]], 0, Ahead(model), max_new_tokens=2)


COMPILED = [
    {},
    {"window": 5},
    {"position": "alibi", "window": [5, None]},
    {"position": "learned", "norm": "layernorm", "mlp": "gelu"},
    {"n_kv_head": 2},
]


@pytest.mark.parametrize("kind", [COMPILED[0], *(pytest.param(each, marks=pytest.mark.slow) for each in COMPILED[1:])])
def test_decoding_is_one_program_whatever_the_prompt_and_the_position(
    kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = []

    def counted(program: torch.fx.GraphModule, inputs: object) -> Any:
        programs.append(program)
        return program

    monkeypatch.setattr(compiling.torch, "compile", partial(torch.compile, backend=counted))
    torch.compiler.reset()
    model = make({**kind, "context_length": 128})
    reader = CompiledDecode(model)
    prompts = PROMPTS[:3]  # with caches of one length
    settings: dict[str, Any] = {"max_new_tokens": 50, "temperature": 1.0, "top_k": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        for prompt in prompts:
            assert written(model, [prompt], 0, reader, **settings) == written(model, [prompt], 0, **settings)
        assert len(programs) == 1
        # Another one serves all batches, of which the rows end one after another.
        assert written(model, prompts, 0, reader, **settings) == written(model, prompts, 0, **settings)
        stopping = {**settings, "stop_tokens": [1, 2, 3]}
        assert written(model, prompts, 0, reader, **stopping) == written(model, prompts, 0, **stopping)
    assert len(programs) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [{}, {"similarity": "linear"}, {"similarity": "gaussian", "position": "alibi", "n_kv_head": 2}], ids=str
)
def test_compiled_decoding_draws_the_same_tokens(kind: dict[str, Any]) -> None:
    model = make(kind)
    settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.0, "top_k": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        found = written(model, PROMPTS[:1], 0, CompiledDecode(model), **settings)
    assert found == written(model, PROMPTS[:1], 0, **settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(temperature: float) -> None:
    model = make({})
    with torch.no_grad():
        model.lm_head.weight[3].fill_(torch.nan)
    with pytest.raises(UserError, match="the model's logits are NaN or inf"):
        written(model, [[1]], max_new_tokens=2, temperature=temperature)


def test_where_settings_leave_no_token_that_is_said() -> None:
    forbidden = [token for token in range(50) if token != 7]
    settings: dict[str, Any] = {"max_new_tokens": 3, "stop_tokens": [7], "forbidden_tokens": forbidden}
    assert written(make({}), [[1]], **settings) == [[]]
    with pytest.raises(UserError, match="no token is left to draw"):
        written(make({}), [[1]], **settings, min_new_tokens=2)
