"""Batches: every item once an epoch, every val token once, and nothing depends on what was read before."""

import itertools
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import GPTConfig
from minigpt.data.batches import IGNORED, TrainBatches, ValBatches
from minigpt.data.shards import SourceRange, Split, TokenFile, Tokens
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.training.loss import next_token_loss

END = 0
"""end_of_text of the documents below."""


def split_of(tokens: np.ndarray, lengths: list[int], n_shards: int = 1, n_sources: int = 1) -> Split:
    """Documents of these lengths, end_of_text included; sources have as many of them each, and the last the rest."""
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    cuts = [len(lengths) // n_sources * i for i in range(n_sources)] + [len(lengths)]
    sources = tuple(
        SourceRange(f"source {i}", int(starts[a]), int(starts[b] - starts[a]), a, b - a, int(starts[b] - starts[a]))
        for i, (a, b) in enumerate(itertools.pairwise(cuts))
    )
    return Split(Tokens(np.array_split(tokens, n_shards)), starts[:-1], len(tokens), sources)


def counting(n_tokens: int, **options: int) -> Split:
    """The text 0, 1, 2, ..., so that a token tells its place, in documents of ten tokens."""
    return split_of(
        np.arange(n_tokens, dtype=np.uint32), [10] * (n_tokens // 10) + [n_tokens % 10] * (n_tokens % 10 > 0), **options
    )


def documents(*lengths: int, **options: int) -> Split:
    """Documents of so many stored tokens: 1, 2, 3, ... throughout, but END in each one's last place."""
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    tokens[np.cumsum(lengths) - 1] = END
    return split_of(tokens, list(lengths), **options)


def train_batches(
    split: Split | None = None, context_length: int = 8, batch_size: int = 3, **options: Any
) -> TrainBatches:
    settings = {"n_batches": 40, "seed": 1, "end_of_text": END} | options
    split = counting(100) if split is None else split
    return TrainBatches(split, context_length=context_length, batch_size=batch_size, **settings)


def val_batches(split: Split, context_length: int = 8, batch_size: int = 3, **options: Any) -> ValBatches:
    return ValBatches(split, context_length=context_length, batch_size=batch_size, end_of_text=END, **options)


def first_tokens(batches: TrainBatches, n_windows: int) -> np.ndarray:
    """Where the first n windows of the run begin, in a text that counts."""
    n_batches = -(-n_windows // batches.batch_size)
    return torch.cat([batches[i][0][:, 0] for i in range(n_batches)]).numpy()[:n_windows]


def examples(batch: tuple[torch.Tensor, ...]) -> list[tuple[int, ...]]:
    """The rows of a padded batch as the model sees them: each one's input and then its last target."""
    tokens, targets = batch
    assert tokens.shape == targets.shape
    assert tokens.dtype == targets.dtype == torch.int64
    rows = []
    for row, target in zip(*batch, strict=True):
        n = int((target != IGNORED).sum())
        assert target[: n - 1].tolist() == row[1:n].tolist()
        assert target[n:].tolist() == [IGNORED] * (len(target) - n)
        rows.append((*row[:n].tolist(), int(target[n - 1])))
    return rows


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


MODES = {
    "packed": (counting(1000, n_sources=2), {}),
    "packed, weighted": (counting(1000, n_sources=2), {"weights": [3, 1]}),
    "examples": (documents(*range(1, 30), n_sources=2), {"mode": "examples"}),
    "examples, weighted": (documents(*range(1, 30), n_sources=2), {"mode": "examples", "weights": [3, 1]}),
}
every_mode = pytest.mark.parametrize(("split", "options"), MODES.values(), ids=MODES.keys())


# Windows


def test_targets_are_the_tokens_one_position_later_also_where_the_end_meets_the_beginning() -> None:
    batches, joints = train_batches(), 0
    for i in range(40):
        tokens, targets = batches[i]
        assert tokens.shape == targets.shape == (3, 8)
        assert tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, (tokens + 1) % 100)
        assert torch.equal(targets[:, :-1], tokens[:, 1:])
        joints += int((targets == 0).sum())
    assert joints > 3


@settings(max_examples=60, deadline=None)
@given(n_tokens=st.integers(2, 300), context_length=st.integers(1, 33), seed=st.integers(0, 2**31 - 1))
def test_each_epoch_visits_each_window_once_in_a_new_order(n_tokens: int, context_length: int, seed: int) -> None:
    context_length = min(context_length, n_tokens - 1)
    batches = train_batches(counting(n_tokens), context_length, n_batches=1000, seed=seed)
    n = batches.n_items
    assert n == n_tokens // context_length  # fewer than context_length tokens are left out
    starts = first_tokens(batches, 3 * n)
    epochs = starts.reshape(3, n)
    for epoch in epochs:
        predicted = (epoch[:, None] + np.arange(1, context_length + 1)) % n_tokens
        assert len(np.unique(predicted)) == n * context_length
        assert len(np.unique((np.sort(epoch) - epoch.min()) % context_length)) <= 2  # one cut, and the joint
    if n > 10:
        assert len({tuple((epoch - epoch[0]) % n_tokens) for epoch in epochs}) == 3


def test_the_cut_is_anywhere_and_so_every_token_is_left_out_equally_often() -> None:
    n_tokens, n_epochs = 20, 3000
    batches = train_batches(counting(n_tokens), batch_size=2, n_batches=n_epochs)  # two windows of 8: 4 are left out
    starts = first_tokens(batches, 2 * n_epochs).reshape(n_epochs, 2)
    predicted = (starts[:, :, None] + np.arange(1, 9)) % n_tokens
    counts = np.bincount(predicted.ravel(), minlength=n_tokens)
    assert np.abs(counts - 0.8 * n_epochs).max() < 4 * (n_epochs * 0.8 * 0.2) ** 0.5
    assert set(starts.ravel().tolist()) == set(range(n_tokens))


def test_a_text_of_exactly_one_window_is_enough() -> None:
    for tokens, targets in [train_batches(counting(9), batch_size=2)[i] for i in range(10)]:
        assert torch.equal(targets, (tokens + 1) % 9)


@pytest.mark.parametrize("n_tokens", [0, 1, 8])
def test_a_text_shorter_than_a_window_is_refused_with_both_lengths(n_tokens: int) -> None:
    with pytest.raises(UserError, match=f"has {n_tokens} tokens, but a window of model.context_length=8 needs 9"):
        train_batches(counting(n_tokens))


def test_a_weighted_source_shorter_than_a_window_is_refused_by_name() -> None:
    split = split_of(np.arange(25), [20, 5], n_sources=2)
    train_batches(split)
    with pytest.raises(UserError, match="the train split has 5 tokens of source 1, but a window of model.context"):
        train_batches(split, weights=[1, 1])


@pytest.mark.parametrize("n_shards", [1, 7])
def test_batches_do_not_show_where_shards_end(n_shards: int) -> None:
    whole, parts = train_batches(counting(200)), train_batches(counting(200, n_shards=n_shards))
    assert all(same(whole[i], parts[i]) for i in range(40))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_batches_read_the_largest_unsigned_tokens(dtype: type, tmp_path: Path) -> None:
    largest = int(np.iinfo(dtype).max)
    np.full(20, largest, dtype=dtype).tofile(tmp_path / "tokens.bin")
    split = Split(Tokens([TokenFile(tmp_path / "tokens.bin", dtype.__name__)]), np.zeros(1, dtype=np.int64), 20, ())
    batch = train_batches(split, n_batches=1)[0]
    assert batch[0].unique().tolist() == batch[1].unique().tolist() == [largest]


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text().split("VmRSS:")[1]
    return int(status.split()[0]) * 1024


def test_windows_of_a_huge_text_are_read_without_reading_the_rest(tmp_path: Path) -> None:
    n_tokens = 4 * 2**30  # 8 GB, of which the file system stores nothing
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(2 * n_tokens)
    tokens = Tokens([TokenFile(tmp_path / "tokens.bin", "uint16")])
    split = Split(tokens, np.zeros(1, dtype=np.int64), n_tokens, ())
    before = resident_bytes()
    batches = train_batches(split, context_length=128, batch_size=16, n_batches=125)
    for i in range(125):
        batches[i]
    assert resident_bytes() - before < 10e6


# Examples


def test_an_example_is_a_document_between_two_ends_of_text() -> None:
    split = documents(3, 1, 2)  # 1 2 END | END | 5 END
    seen = [row for i in range(40) for row in examples(train_batches(split, batch_size=1, mode="examples")[i])]
    assert set(seen) == {(END, 1, 2, END), (END, END), (END, 5, END)}


def test_a_long_document_is_cut_into_pieces_that_begin_with_the_token_before() -> None:
    split = documents(2, 7, 3)  # 1 END | 3 4 5 6 7 8 END | 10 11 END
    seen = [row for i in range(10) for row in examples(train_batches(split, 3, 5, mode="examples")[i])]
    assert Counter(seen) == dict.fromkeys(
        [(END, 1, END), (END, 3, 4, 5), (5, 6, 7, 8), (8, END), (END, 10, 11, END)], 10
    )


def test_short_documents_need_no_table_of_pieces() -> None:
    assert train_batches(documents(8, 3), mode="examples").layout.first_chunk is None
    assert train_batches(documents(9, 3), mode="examples").layout.first_chunk.tolist() == [0, 2, 3]


def test_a_batch_is_padded_to_its_longest_example_only() -> None:
    batches = train_batches(documents(*range(1, 30)), 100, mode="examples")
    for i in range(40):
        assert (batches[i][1][:, -1] != IGNORED).any()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=300),
    context_length=st.integers(1, 12),
    batch_size=st.integers(1, 4),
)
def test_every_epoch_predicts_every_stored_token_once(lengths: list[int], context_length: int, batch_size: int) -> None:
    split = documents(*lengths)
    batches = train_batches(split, context_length, batch_size, n_batches=10**6, mode="examples")
    # After whole pools the epochs so far are complete, and what has come of the next one is without repetition.
    n_pools = -(-2 * batches.n_items // (batches.batches_per_pool * batch_size))
    seen = Counter[tuple[int, ...]]()
    for i in range(n_pools * batches.batches_per_pool):
        seen.update(examples(batches[i]))
    n_epochs, more = divmod(n_pools * batches.batches_per_pool * batch_size, batches.n_items)
    copies = Counter(all_examples(split, context_length))
    extra = seen - Counter({row: n * n_epochs for row, n in copies.items()})
    assert all(seen[row] >= n * n_epochs for row, n in copies.items())
    assert extra.total() == more
    assert not extra - copies


def all_examples(split: Split, context_length: int) -> list[tuple[int, ...]]:
    """The obvious way: each document between two ENDs, and a chunk of it for every context_length targets."""
    ends = [*split.document_starts[1:], len(split.tokens)]
    texts = [[END, *split.tokens.read(a, b)] for a, b in zip(split.document_starts, ends, strict=True)]
    return [
        tuple(int(token) for token in text[begin : begin + context_length + 1])
        for text in texts
        for begin in range(0, len(text) - 1, context_length)
    ]


def padding(batches: TrainBatches | ValBatches) -> float:
    """Share of the positions that are padding."""
    targets = [batches[i][1] for i in range(len(batches))]
    return sum(int((of_batch == IGNORED).sum()) for of_batch in targets) / sum(t.numel() for t in targets)


def test_sorting_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=2000).tolist()
    batches = train_batches(documents(*lengths), 64, 8, n_batches=256, mode="examples")
    assert batches.batches_per_pool == 64
    unsorted = 1 - np.mean(lengths) / np.mean([max(lengths[i : i + 8]) for i in range(0, 2000, 8)])
    assert unsorted > 0.3
    assert padding(batches) < 0.03
    assert padding(val_batches(documents(*lengths), 64, 8, mode="examples")) < 0.01


def test_batches_of_like_length_come_in_mixed_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=2000).tolist()
    for batches in (
        train_batches(documents(*lengths), 64, 8, n_batches=64, mode="examples"),
        val_batches(documents(*lengths), 64, 8, mode="examples"),
    ):
        widths = [batches[i][0].shape[1] for i in range(len(batches))]
        assert abs(np.corrcoef(widths[1:], widths[:-1])[0, 1]) < 0.3


@pytest.mark.parametrize("options", [{}, {"weights": [1, 9]}], ids=["by length", "weighted"])
def test_a_small_source_does_not_fill_batches_with_copies_of_one_example(options: dict[str, Any]) -> None:
    lengths = [*range(1, 1001), *range(1, 1001, 50)]
    split = split_of(np.arange(1, sum(lengths) + 1), lengths)
    sources = (
        SourceRange("large", 0, 500500, 0, 1000, 0),
        SourceRange("small", 500500, sum(lengths) - 500500, 1000, 20, 0),
    )
    split = Split(split.tokens, split.document_starts, 0, sources)
    batches = train_batches(split, 1000, 8, n_batches=400, mode="examples", **options)
    for i in range(400):
        assert max(Counter(map(tuple, batches[i][0].tolist())).values()) <= 2


def test_a_split_or_weighted_source_without_documents_is_refused() -> None:
    nothing = Split(Tokens([]), np.zeros(0, dtype=np.int64), 0, ())
    with pytest.raises(UserError, match="the train split has no documents: give more text"):
        train_batches(nothing, mode="examples")
    one = documents(3, n_sources=2)
    with pytest.raises(UserError, match="the train split has no documents of source 0: give more text"):
        train_batches(one, mode="examples", weights=[1, 1])


KINDS: list[dict[str, Any]] = [
    *({"position": position} for position in ("rotary", "learned", "sinusoidal", "alibi", "none")),
    {"similarity": "gaussian", "position": "learned"},
    {"similarity": "linear"},
    {"similarity": "uniform", "position": "alibi"},
    {"similarity": "hopfield", "n_kv_head": 1},
    {"similarity": "hard", "window": [3, None]},
    {"window": 2, "logit_softcap": 5.0},
    {"document_mask": True, "end_of_text": END, "position": "learned"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_a_padded_batch_has_the_loss_of_its_texts_one_by_one(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=64, context_length=12, n_layer=2, n_head=2, n_embd=16, **kind)
    model = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)  # at its first values the model hardly looks at the context
        batches = train_batches(documents(1, 12, 3, 17, 7, 2), 12, 4, mode="examples")
        for tokens, targets in [batches[i] for i in range(6)]:
            n_targets = int((targets != IGNORED).sum())
            singles = 0.0
            for row, target in zip(tokens, targets, strict=True):
                alone = target != IGNORED
                logits = model(row[alone][None])
                singles += float(next_token_loss(logits, target[alone][None], reduction="sum"))
            together = next_token_loss(model(tokens), targets)
            torch.testing.assert_close(float(together), singles / n_targets, rtol=1e-12, atol=1e-12)
            whatever = torch.where(targets == IGNORED, 7, tokens)  # no token hears the padding
            assert next_token_loss(model(whatever), targets) == together


# Any items


@every_mode
def test_a_batch_depends_on_seed_and_index_alone_whatever_was_read_before(
    split: Split, options: dict[str, Any]
) -> None:
    batches = train_batches(split, n_batches=100, **options)
    forward = [batches[i] for i in range(100)]
    sent = pickle.loads(pickle.dumps(batches))
    for i in np.random.default_rng(0).permutation(100).tolist():
        assert same(batches[i], forward[i])
        assert same(sent[i], forward[i])
        assert same(train_batches(split, n_batches=100, **options)[i], forward[i])


@every_mode
def test_other_seeds_give_other_batches(split: Split, options: dict[str, Any]) -> None:
    one, two = train_batches(split, seed=1, **options), train_batches(split, seed=2, **options)
    assert not all(torch.equal(one[i][0], two[i][0]) for i in range(3))


@every_mode
def test_repeat_goes_round_the_first_batches_only(split: Split, options: dict[str, Any]) -> None:
    batches, plain = train_batches(split, repeat=3, **options), train_batches(split, **options)
    assert all(same(batches[i], plain[i % 3]) for i in range(12))


def test_a_run_has_as_many_batches_as_it_was_given() -> None:
    batches = train_batches(n_batches=7)
    assert len(batches) == len(list(batches)) == 7


@pytest.mark.parametrize("n_devices", [1, 2, 3, 8])
@pytest.mark.parametrize("mode", ["packed", "examples"])
def test_the_devices_shares_are_disjoint_and_together_the_whole_epoch(n_devices: int, mode: str) -> None:
    split = split_of(np.arange(8 * 48), [8] * 48)
    devices = [train_batches(split, batch_size=2, n_batches=24, mode=mode) for _ in range(n_devices)]
    assert devices[0].n_items == 48
    shares = [
        [int(target) for i in range(rank, 24, n_devices) for target in batches[i][1].flatten()]
        for rank, batches in enumerate(devices)
    ]
    assert sorted(target for share in shares for target in share) == list(range(8 * 48))


@pytest.mark.parametrize("mode", ["packed", "examples"])
def test_a_mixture_has_its_shares_in_every_thousand_and_each_source_has_whole_epochs(mode: str) -> None:
    split = split_of(np.arange(800), [8] * 100)
    sources = (SourceRange("a", 0, 240, 0, 30, 0), SourceRange("b", 240, 560, 30, 70, 0))
    split = Split(split.tokens, split.document_starts, 0, sources)
    batches = train_batches(split, batch_size=10, n_batches=300, mode=mode, weights=[0.6, 0.4])
    predicted = torch.cat([batches[i][1] for i in range(300)]).numpy()
    of_b = predicted[:, 0] >= 240
    assert np.array_equal(of_b, predicted[:, -1] >= 240)  # no window reaches from one source into the other
    assert of_b.reshape(3, 1000).sum(axis=1).tolist() == [400] * 3
    for n_items, rows in ((30, predicted[~of_b]), (70, predicted[of_b])):
        n_epochs, more = divmod(len(rows), n_items)
        if mode == "packed":
            for epoch in range(n_epochs):
                assert len(np.unique(rows[epoch * n_items : (epoch + 1) * n_items])) == 8 * n_items
        else:  # sorting by length moves examples, but not out of their pool
            times = Counter(Counter(rows[:, 0].tolist()).values())
            assert times == Counter({n_epochs: n_items - more}) + Counter({n_epochs + 1: more})


def test_a_mixture_of_examples_takes_each_piece_of_each_source() -> None:
    split = documents(20, 3, 9, 1, 30, 8, n_sources=2)
    batches = train_batches(split, batch_size=10, n_batches=100, mode="examples", weights=[1, 4])
    seen = Counter(row for i in range(100) for row in examples(batches[i]))
    first, second = (Counter(rows) for rows in (all_examples(split, 8)[:6], all_examples(split, 8)[6:]))
    assert first.keys() | second.keys() == seen.keys()
    assert sum(seen[row] for row in first) == 200
    assert sum(seen[row] for row in second) == 800


def test_shares_tell_how_often_a_run_goes_through_each_source() -> None:
    split = documents(*[8] * 10, *[8] * 5, *[8] * 5, *[3] * 20, n_sources=2)  # 20 documents each: 160 and 60 tokens
    weighted = train_batches(split, mode="examples", weights=[1, 4])
    for batches, n_items, expected in [
        (train_batches(split), 55, [(160 / 220, 2.0), (60 / 220, 2.0)]),
        (train_batches(split, mode="examples"), 120, [(0.5, 3.0), (0.5, 3.0)]),
        (weighted, 100, [(0.2, 1.0), (0.8, 4.0)]),
    ]:
        shares = batches.shares(n_items)
        assert [share.name for share in shares] == ["source 0", "source 1"]
        for share, (of_the_run, epochs) in zip(shares, expected, strict=True):
            assert (share.share, share.epochs) == pytest.approx((of_the_run, epochs))
    assert weighted.n_items == 40


# Validation


@settings(max_examples=60, deadline=None)
@given(
    n_tokens=st.integers(2, 200),
    context_length=st.integers(1, 33),
    batch_size=st.integers(1, 7),
    n_shards=st.integers(1, 5),
)
def test_validation_predicts_every_token_but_the_first_exactly_once(
    n_tokens: int, context_length: int, batch_size: int, n_shards: int
) -> None:
    batches = val_batches(counting(n_tokens, n_shards=n_shards), context_length, batch_size)
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
    assert batches.n_targets == len(predicted)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40),
    context_length=st.integers(1, 12),
    batch_size=st.integers(1, 7),
)
def test_validation_on_examples_predicts_every_stored_token_once(
    lengths: list[int], context_length: int, batch_size: int
) -> None:
    split = documents(*lengths)
    batches = val_batches(split, context_length, batch_size, mode="examples")
    seen = [row for i in range(len(batches)) for row in examples(batches[i])]
    assert Counter(seen) == Counter(all_examples(split, context_length))
    assert sum(len(row) - 1 for row in seen) == batches.n_targets == sum(lengths)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=40),
    context_length=st.integers(1, 12),
    max_tokens=st.integers(1, 300),
    mode=st.sampled_from(["packed", "examples"]),
)
def test_a_capped_validation_reads_rows_of_the_whole_one_that_are_spread_over_it(
    lengths: list[int], context_length: int, max_tokens: int, mode: str
) -> None:
    def rows(most: int | None) -> list[tuple[int, ...]]:
        batches = val_batches(documents(*lengths), context_length, 3, mode=mode, max_tokens=most)
        return [tuple(row[row != IGNORED].tolist()) for i in range(len(batches)) for row in batches[i][1]]

    whole, some = rows(None), rows(max_tokens)
    assert Counter(some) <= Counter(whole)
    n_tokens, longest = sum(map(len, some)), max(map(len, whole))
    assert n_tokens <= max_tokens or len(some) == 1
    assert len(some) == len(whole) or (len(some) + 1) * longest > max_tokens * 3 / 4 - longest


def test_the_rows_of_a_capped_validation_are_evenly_spaced() -> None:
    batches = val_batches(counting(401), context_length=4, max_tokens=40, batch_size=4)
    starts = torch.cat([batches[i][0][:, 0] for i in range(len(batches))]).tolist()
    assert starts == [*range(20, 400, 40)]


@pytest.mark.parametrize("mode", ["packed", "examples"])
def test_there_is_no_val_batch_beyond_the_last(mode: str) -> None:
    batches = val_batches(counting(17), context_length=4, batch_size=2, mode=mode)
    assert len(batches) == len(list(batches)) > 1
    with pytest.raises(IndexError):
        batches[len(batches)]


@pytest.mark.parametrize(("n_tokens", "mode"), [(0, "packed"), (1, "packed"), (0, "examples")])
def test_a_val_split_with_nothing_to_predict_is_refused(n_tokens: int, mode: str) -> None:
    split = Split(Tokens([np.arange(n_tokens)]), np.zeros(n_tokens, dtype=np.int64), 0, ())
    with pytest.raises(UserError, match="val split is empty"):
        val_batches(split, mode=mode)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0]])
@pytest.mark.parametrize("mode", ["packed", "examples"])
def test_origins_say_where_rows_were_taken_from(mode: str, weights: list[float] | None) -> None:
    batches = train_batches(counting(200, n_sources=2), mode=mode, weights=weights)
    for index in range(40):
        for origin, tokens, targets in zip(batches.origins(index), *batches[index], strict=True):
            first = int(tokens[0] if mode == "packed" else targets[0])  # an example reads another token before its own
            last = int(targets[targets != IGNORED][-1])
            assert origin == (f"source {first // 100}", first, first // 10, last // 10)
