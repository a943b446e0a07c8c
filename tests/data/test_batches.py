"""Batches: every window once an epoch, every val token once, and nothing depends on what was read before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import UserError
from minigpt.data.batches import IGNORED, TrainBatches, ValBatches


def train_batches(n_tokens: int = 100, context_length: int = 8, batch_size: int = 3, **options: int) -> TrainBatches:
    """Batches of the text 0, 1, 2, ..., so that a token tells its place."""
    settings = {"n_batches": 40, "seed": 1} | options
    return TrainBatches(np.arange(n_tokens), context_length=context_length, batch_size=batch_size, **settings)


def first_tokens(batches: TrainBatches, n_windows: int) -> list[int]:
    """Where the first n windows of the run begin, with batches of one window."""
    assert batches.batch_size == 1
    return [int(batches[i][0][0, 0]) for i in range(n_windows)]


def test_targets_are_the_tokens_one_position_later() -> None:
    for i in range(40):
        tokens, targets = train_batches()[i]
        assert tokens.shape == targets.shape == (3, 8)
        assert tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, tokens + 1)  # the text counts up


@pytest.mark.parametrize("n_tokens", [9, 10, 15, 16, 17, 24, 25, 26, 100, 1000])
def test_each_epoch_visits_each_window_once_in_a_new_order(n_tokens: int) -> None:
    batches = train_batches(n_tokens, batch_size=1, n_batches=10_000)
    n = batches.n_windows
    starts = first_tokens(batches, 3 * n)
    orders = [starts[:n], starts[n : 2 * n], starts[2 * n :]]
    for order in orders:
        assert np.all(np.diff(sorted(order)) == 8)  # neither overlap nor gap
        assert 0 <= min(order)
        assert max(order) + 8 < n_tokens
    assert n >= (n_tokens - 1) // 8 - 1  # at most one window of text is left out of an epoch
    if n > 5:
        assert len({tuple(order) for order in orders}) == 3


def test_the_cuts_shift_from_epoch_to_epoch_so_that_every_token_is_predicted_at_many_places() -> None:
    batches = train_batches(100, batch_size=1, n_batches=10_000)
    shifts = {start % 8 for start in first_tokens(batches, 60 * batches.n_windows)}
    assert shifts == set(range(8))


def test_a_text_of_exactly_one_window_is_enough() -> None:
    tokens, targets = train_batches(9, batch_size=2)[5]
    assert tokens.tolist() == [list(range(8))] * 2
    assert targets.tolist() == [list(range(1, 9))] * 2


@pytest.mark.parametrize("n_tokens", [0, 1, 8])
def test_a_text_shorter_than_a_window_is_refused_with_both_lengths(n_tokens: int) -> None:
    with pytest.raises(UserError, match=f"has {n_tokens} tokens, but a window of model.context_length=8 needs 9"):
        train_batches(n_tokens)


def test_a_batch_depends_on_seed_and_index_alone_whatever_was_read_before() -> None:
    batches = train_batches()
    forward = [batches[i][0] for i in range(40)]
    for i in np.random.default_rng(0).permutation(40):
        assert torch.equal(batches[int(i)][0], forward[i])
        assert torch.equal(train_batches()[int(i)][0], forward[i])


def test_other_seeds_give_other_batches() -> None:
    assert not torch.equal(train_batches(seed=1)[0][0], train_batches(seed=2)[0][0])


@pytest.mark.parametrize("n_devices", [2, 3])
def test_the_devices_shares_are_disjoint_and_together_the_whole_epoch(n_devices: int) -> None:
    batches = train_batches(8 * 36 + 8, batch_size=2)  # 36 windows whatever the shift: 18 batches
    assert batches.n_windows == 36
    shares = [
        [int(start) for i in range(rank, 18, n_devices) for start in batches[i][0][:, 0]] for rank in range(n_devices)
    ]
    together = [start for share in shares for start in share]
    assert len(together) == len(set(together)) == 36


def test_repeat_goes_round_the_first_batches_only() -> None:
    batches, plain = train_batches(repeat=3), train_batches()
    for i in range(12):
        assert torch.equal(batches[i][0], plain[i % 3][0])


def test_a_run_has_as_many_batches_as_it_was_given() -> None:
    assert len(train_batches(n_batches=7)) == 7


def test_batches_read_memory_mapped_unsigned_tokens(tmp_path: object) -> None:
    np.save(f"{tmp_path}/tokens.npy", np.full(20, 65535, dtype=np.uint16))
    tokens = np.load(f"{tmp_path}/tokens.npy", mmap_mode="r")
    batch = TrainBatches(tokens, context_length=8, batch_size=1, n_batches=1, seed=0)[0]
    assert batch[0].unique().tolist() == batch[1].unique().tolist() == [65535]


@settings(max_examples=150, deadline=None)
@given(n_tokens=st.integers(2, 200), context_length=st.integers(1, 33), batch_size=st.integers(1, 7))
def test_validation_predicts_every_token_but_the_first_exactly_once(
    n_tokens: int, context_length: int, batch_size: int
) -> None:
    batches = ValBatches(np.arange(n_tokens), context_length=context_length, batch_size=batch_size)
    predicted = []
    for i in range(len(batches)):
        tokens, targets = batches[i]
        assert tokens.shape == targets.shape
        assert 1 <= len(tokens) <= batch_size
        assert tokens.shape[1] == context_length
        meant = targets != IGNORED
        assert torch.equal(targets[meant], tokens[meant] + 1)
        predicted += targets[meant].tolist()
    assert predicted == list(range(1, n_tokens))


def test_there_is_no_val_batch_beyond_the_last() -> None:
    batches = ValBatches(np.arange(10), context_length=4, batch_size=2)
    assert len(batches) == 2
    with pytest.raises(IndexError):
        batches[2]


@pytest.mark.parametrize("n_tokens", [0, 1])
def test_a_val_split_with_nothing_to_predict_is_refused(n_tokens: int) -> None:
    with pytest.raises(UserError, match="val split is empty"):
        ValBatches(np.arange(n_tokens), context_length=4, batch_size=2)
