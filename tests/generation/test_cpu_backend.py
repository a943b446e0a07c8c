"""The CPU's decoder in numpy against the model that it writes out, for every kind that it takes."""

from typing import Any

import numpy as np
import pytest
import torch
from test_engine import KINDS, make

from minigpt.generation import cpu_backend
from minigpt.generation.cpu_backend import ArrayCache, CPUDecode, can_decode
from minigpt.generation.cpu_products import ONE_THREAD, Forms, openblas, product_of_int8, to_column_major
from minigpt.model.gpt import GPT
from minigpt.model.tables import weight_shapes
from minigpt.runs.stored import StoredModel

TAKEN = [
    *(kind for kind in KINDS if can_decode(make(kind))),
    {"mlp": "swiglu", "mlp_hidden": 40, "bias": True, "head_dim": 10},
    {"softmax_temperature": 2.0, "logit_softcap": 4.0, "window": [5, 2], "n_kv_head": 2, "position": "alibi"},
    {"norm": "layernorm", "qk_norm": True, "n_kv_head": 1, "bias": True},
    {
        "qkv_bias": True,
        "norm_eps": 1e-3,
        "rotary_fraction": 0.5,
        "rotary_scaling": {"rope_type": "linear", "factor": 3},
    },
]


def stored(model: GPT) -> StoredModel:
    return StoredModel(model.config, {name: weight.numpy() for name, weight in model.state_dict().items()})


def read(decoder: CPUDecode, tokens: torch.Tensor, cache: ArrayCache, padding: list[int] | None = None) -> torch.Tensor:
    """Logits of all tokens, after which the cache goes on."""
    n_padding = None if padding is None else np.array(padding)
    found = decoder.read(tokens.numpy(), cache, n_wanted=tokens.shape[1], n_padding=n_padding)
    cache.position += tokens.shape[1]
    return torch.from_numpy(found)


def test_the_usual_kinds_are_taken_and_others_are_left_to_the_model() -> None:
    assert can_decode(make({}))
    assert len(TAKEN) == 15
    for kind in KINDS:
        plain = kind.get("similarity", "scaled_dot") == "scaled_dot" and not kind.get("document_mask")
        assert can_decode(make(kind)) == plain
    assert not can_decode(make({}).double())
    assert not can_decode(make({"block": "parallel"}))
    assert not can_decode(make({"qk_norm_per_head": False}))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kind", TAKEN, ids=str)
def test_logits_are_the_models_whatever_comes_at_once(kind: dict[str, Any], columns: bool) -> None:
    model = make(kind)
    tokens = torch.randint(0, 50, (3, 24))
    with torch.inference_mode():
        expected = model(tokens)
    for given in (model, stored(model)):
        decoder = CPUDecode(given, n_tokens=1000 if columns else 0)
        cache = decoder.new_cache(3, 24)
        for start, stop in ((0, 7), (7, 8), (8, 9), (9, 14), (14, 24)):
            found = read(decoder, tokens[:, start:stop], cache)
            torch.testing.assert_close(found, expected[:, start:stop], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TAKEN, ids=str)
def test_a_long_prompt_is_read_in_chunks_or_by_the_model_if_torch_has_one(
    kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, padding = make(kind), [0, 5, 2]
    tokens = torch.randint(0, 50, (3, 20))
    monkeypatch.setattr(cpu_backend, "CHUNK", 21)
    monkeypatch.setattr(cpu_backend, "MOST_TOKENS", 2)
    for given in (stored(model), model):
        decoder = CPUDecode(given)
        cache = decoder.new_cache(3, 20)
        found = torch.cat([read(decoder, tokens[:, :16], cache, padding), read(decoder, tokens[:, 16:], cache)], dim=1)
        for row, n in enumerate(padding):
            with torch.inference_mode():
                expected = model(tokens[row : row + 1, n:])[0]
            torch.testing.assert_close(found[row, n:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*TAKEN, {"bias": True, "qkv_bias": False}, {"tie_embeddings": True}], ids=str)
def test_the_shapes_of_the_weights_follow_from_the_config(kind: dict[str, Any]) -> None:
    state = make(kind).state_dict()
    assert weight_shapes(make(kind).config) == {name: tuple(weight.shape) for name, weight in state.items()}


def test_what_is_changed_in_the_model_that_is_made_of_stored_weights_counts() -> None:
    model, tokens = make({}), torch.tensor([[1, 2, 3]])
    given = stored(model)
    decoder = CPUDecode(given, int8=False)
    before = read(decoder, tokens, decoder.new_cache(1, 3))
    with torch.inference_mode():
        opened = given.model
        assert torch.equal(opened(tokens), model(tokens))
    with torch.no_grad():
        opened.lm_head.weight.neg_()  # not made in inference mode
    assert decoder.ready()
    assert torch.equal(read(decoder, tokens, decoder.new_cache(1, 3)), -before)
    opened.blocks[0].register_forward_hook(lambda *_: None)
    assert not decoder.ready()
    assert not can_decode(given)


@pytest.mark.parametrize("kind", TAKEN, ids=str)
def test_padding_is_not_heard_and_positions_count_from_behind_it(kind: dict[str, Any]) -> None:
    model, padding = make(kind), [0, 5, 2]
    tokens = torch.randint(0, 50, (3, 16))
    with torch.inference_mode():
        decoder = CPUDecode(model)
        cache = decoder.new_cache(3, 24)
        read(decoder, tokens[:, :10], cache, padding)
        for start, stop in ((10, 11), (11, 16)):
            found = read(decoder, tokens[:, start:stop], cache)
            for row, n in enumerate(padding):
                expected = model(tokens[row : row + 1, n:stop])[0, start - n :]
                torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (64, 3), (200, 7)])
def test_a_matrix_by_columns_has_the_same_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape).numpy()
    found = to_column_major(matrix)
    assert found.flags.f_contiguous
    assert (found == matrix).all()


def test_threads_of_the_library_are_as_they_were_afterwards() -> None:
    for library in openblas():
        library.set_num_threads(2)
    model = make({})
    decoder = CPUDecode(model)
    read(decoder, torch.tensor([[1]]), decoder.new_cache(1, 24))
    assert [library.get_num_threads() for library in openblas()] == [2] * len(openblas())
    with ONE_THREAD:
        with ONE_THREAD:
            pass
        assert [library.get_num_threads() for library in openblas()] == [1] * len(openblas())
    assert [library.get_num_threads() for library in openblas()] == [2] * len(openblas())


@pytest.mark.parametrize("kind", TAKEN, ids=str)
def test_eight_bits_change_the_logits_little(kind: dict[str, Any]) -> None:
    model, padding = make(kind), [0, 5, 2]
    tokens = torch.randint(0, 50, (3, 16))
    with torch.inference_mode():
        decoder = CPUDecode(model, int8=True)
        cache = decoder.new_cache(3, 24)
        first = read(decoder, tokens[:, :10], cache, padding)
        found = torch.cat([first, read(decoder, tokens[:, 10:], cache)], dim=1)
        for row, n in enumerate(padding):
            expected = model(tokens[row : row + 1, n:])[0]
            error = (found[row, n:] - expected).square().mean() / expected.var()
            assert 0 < error < 0.02


@pytest.mark.parametrize(("N", "C"), [(20, 11), (1201, 500)], ids=["one thread", "several threads"])
def test_a_product_with_eight_bits_is_exact_for_the_rounded_weights_and_each_vector_on_its_own(N: int, C: int) -> None:
    random = np.random.default_rng(0)
    weight, bias, x = (random.standard_normal(shape, dtype=np.float32) for shape in ((N, C), N, (5, C)))
    x *= np.logspace(-3, 3, 5, dtype=np.float32)[:, None]
    x[1] = 0
    product = product_of_int8(weight, bias, forms=Forms())
    found = product(x)
    scales = [np.abs(rows).max(axis=1, keepdims=True) / np.float32(127) + np.float32(1e-12) for rows in (x, weight)]
    vectors, rows = (np.rint(each / scale).astype(np.int64) for each, scale in zip((x, weight), scales, strict=True))
    np.testing.assert_allclose(found, (vectors @ rows.T) * scales[0] * scales[1].T + bias, rtol=1e-5, atol=1e-5)
    for row in range(5):
        assert (product(x[row : row + 1])[0] == found[row]).all()
    assert (found[1] == bias).all()
