import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from unpacking import decode_earlier, decode_frames, expand_lengths

from minigpt.inspection import packing


@given(arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(0, 1, width=32)))
def test_a_weight_comes_back_within_the_stated_error(weights):
    error = np.abs(packing.expand(packing.compand(weights)).astype(np.float64) - weights)
    assert error.max() <= packing.MAX_ERROR + 1e-6  # float32's own rounding
    assert packing.MAX_ERROR < 0.00392


def test_the_stated_error_is_reached_and_not_only_an_upper_bound():
    weights = np.linspace(0, 1, 1_000_001)
    error = np.abs(packing.expand(packing.compand(weights)) - weights).max()
    assert error == pytest.approx(packing.MAX_ERROR, abs=1e-5)


def test_thinned_small_weights_are_even_levels_within_the_same_error():
    weights = np.linspace(0, 1, 2_000_001)
    levels = packing.thin(packing.compand(weights))
    assert np.abs(packing.expand(levels) - weights).max() <= packing.MAX_ERROR + 1e-6
    assert len(np.unique(levels)) == 256 - 40


def attention_over_steps(n_steps=4, n_tokens=40):
    """(n_steps, 2, 3, T * (T + 1) / 2) levels of six noisy heads, which sharpen from step to step."""
    scores = np.random.default_rng(0).normal(size=(2, 3, n_tokens, n_tokens))
    maps = np.stack([np.tril(np.exp((1 + step) * scores)) for step in range(n_steps)])
    maps /= maps.sum(-1, keepdims=True)
    return maps, [packing.pack(each) for each in maps]


def test_earlier_steps_come_back_within_their_stated_error_and_large_weights_exactly():
    maps, levels = attention_over_steps()
    again = decode_earlier(packing.encode_earlier(levels[:-1], levels[-1]), levels[-1], 3)
    error = np.abs(packing.unpack(again, 40) - maps[:-1])
    assert error.max() <= packing.COARSE_ERROR + 1e-6
    assert packing.COARSE_ERROR < 0.035
    assert (again[again >= 162] == np.stack(levels[:-1])[again >= 162]).all()


def test_rows_of_earlier_steps_still_sum_to_one():
    _, levels = attention_over_steps()
    again = decode_earlier(packing.encode_earlier(levels[:-1], levels[-1]), levels[-1], 3)
    sums = packing.unpack(again, 40).sum(-1)
    assert np.abs(sums.mean(-1) - 1).max() < 0.01
    assert np.abs(sums - 1).mean() < 0.06


def test_earlier_steps_take_a_fraction_of_the_bytes_of_exact_ones():
    _, levels = attention_over_steps(10, 64)
    exact = len(packing.encode_frames(levels)) - len(packing.encode_frames(levels[-1:]))
    assert len(packing.encode_earlier(levels[:-1], levels[-1])) < 0.4 * exact


def test_signed_values_come_back_within_their_error_and_zero_exactly():
    values = np.linspace(-1, 1, 100_001)
    levels = packing.compand_signed(values).astype(int)
    again = np.sign(levels - 128) * ((levels - 128) / 127) ** 2
    assert np.abs(again - values).max() == pytest.approx(packing.SIGNED_ERROR, abs=3e-5)
    assert levels.min() == 1  # 0 is left for masked values
    assert packing.compand_signed(np.zeros(1))[0] == 128


def test_nothing_and_everything_are_kept_exactly():
    assert packing.expand(packing.compand(np.array([0.0, 1.0]))).tolist() == [0.0, 1.0]


def test_a_head_that_spreads_evenly_over_many_tokens_does_not_vanish():
    for n_tokens in (128, 1024, 8192):
        weight = packing.expand(packing.compand(np.array([1 / n_tokens])))[0]
        assert weight == pytest.approx(1 / n_tokens, rel=0.2)


def test_levels_survive_being_expanded_and_companded_again():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(packing.compand(packing.expand(levels)), levels)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_packed_maps_come_back_with_their_shape_and_nothing_above_the_diagonal(n_tokens, seed):
    weights = np.tril(np.random.default_rng(seed).random((2, 3, n_tokens, n_tokens)))
    packed = packing.pack(weights)
    assert packed.shape == (2, 3, n_tokens * (n_tokens + 1) // 2)
    again = packing.unpack(packed, n_tokens)
    assert np.abs(again - weights).max() <= packing.MAX_ERROR + 1e-6
    assert not again[..., *np.triu_indices(n_tokens, 1)].any()


def test_the_triangle_is_stored_row_after_row():
    weights = np.array([[1.0, 0, 0], [0.25, 0.75, 0], [0, 0.5, 0.5]])
    levels = np.sqrt([1, 0.25, 0.75, 0, 0.5, 0.5]) * 255
    np.testing.assert_array_equal(packing.pack(weights), np.rint(levels))


@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 40)),
        elements=st.integers(0, 255),
    )
)
def test_frames_come_back_exactly_also_where_differences_wrap(frames):
    text = packing.encode_frames(list(frames))
    assert text.isascii()
    np.testing.assert_array_equal(decode_frames(text, frames.shape[1:]), frames)


def test_frames_that_do_not_change_cost_almost_nothing():
    frame = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)
    extra = len(packing.encode_frames([frame] * 10)) - len(packing.encode_frames([frame]))
    assert extra < 0.01 * 9 * frame.size


@given(st.integers(1, 64), st.floats(0, 5), st.integers(0, 2**32 - 1))
def test_the_sum_of_a_packed_row_stays_within_its_stated_error(n_tokens, sharpness, seed):
    weights = np.exp(sharpness * np.random.default_rng(seed).normal(size=n_tokens))
    weights /= weights.sum()
    total = packing.expand(packing.compand(weights)).sum(dtype=np.float64)
    assert abs(total - 1) <= packing.row_sum_error(n_tokens) + 1e-6


def test_maps_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., T, T\), got \(2, 3\)"):
        packing.pack(np.zeros((2, 3)))


def test_a_triangle_of_another_size_is_refused():
    with pytest.raises(ValueError, match="3 tokens need 6 levels per map"):
        packing.unpack(np.zeros((2, 5), dtype=np.uint8), 3)


def test_frames_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        packing.encode_frames([np.zeros(3, np.uint8), np.zeros(4, np.uint8)])


@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 60)), elements=st.floats(0, 1000)))
def test_a_length_comes_back_within_the_stated_share_of_itself_or_as_nothing(lengths):
    longest = lengths.max(-1, keepdims=True)
    again = expand_lengths(packing.compand_lengths(lengths)) * longest
    kept = lengths >= 1e-4 * longest * (1 + 1e-9)
    assert (np.abs(again - lengths)[kept] <= (packing.LENGTH_ERROR + 1e-6) * lengths[kept]).all()
    assert (again <= 1.02e-4 * longest)[~kept].all()
    assert packing.LENGTH_ERROR < 0.019


def test_the_longest_and_the_absent_are_kept_exactly_and_a_row_of_nothing_is_nothing():
    assert packing.compand_lengths(np.array([[0.0, 3.0, 1e-5], [0, 0, 0]])).tolist() == [[0, 255, 0], [0, 0, 0]]
    assert expand_lengths(np.array([0, 255], np.uint8)).tolist() == [0, 1]


def test_shares_weighted_with_rounded_lengths_are_off_by_less_than_a_hundredth():
    random = np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        lengths = np.exp(random.uniform(-9, 0, size=20))
        weights = random.dirichlet(np.full(20, 0.3))
        exact, rounded = (weights * x for x in (lengths, expand_lengths(packing.compand_lengths(lengths))))
        worst = max(worst, np.abs(exact / exact.sum() - rounded / rounded.sum()).max())
    assert 0.001 < worst < 0.01
