import io
import json
import zipfile

import numpy as np
import pytest

from minigpt.inspection import packing
from minigpt.inspection.snapshot import Snapshot, read_numbers


def random_weights(n_layer=2, n_head=3, n_tokens=7, seed=0):
    """Softmax of random scores over the tokens up to each one."""
    weights = np.exp(2 * np.random.default_rng(seed).normal(size=(n_layer, n_head, n_tokens, n_tokens)))
    weights = np.tril(weights)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


WORDS = ("Once", " upon", "\n", "\t", "", "\x00", "</script>\u2028 \U0001f98a\ud800")


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_saved_snapshot_comes_back(tmp_path):
    path = tmp_path / "new" / "folder" / "step.npz"
    weights = random_weights()
    Snapshot(step=40, tokens=WORDS, weights=weights).save(path)
    again = Snapshot.load(path)
    assert (again.step, again.tokens) == (40, WORDS)
    assert again.weights.dtype == np.float32
    assert np.abs(again.weights - weights).max() <= packing.MAX_ERROR + 1e-6
    assert names(path.parent) == ["step.npz"]


def test_saving_again_what_was_loaded_changes_nothing(tmp_path):
    Snapshot(1, WORDS, random_weights()).save(tmp_path / "a.npz")
    first = Snapshot.load(tmp_path / "a.npz")
    first.save(tmp_path / "b.npz")
    np.testing.assert_array_equal(Snapshot.load(tmp_path / "b.npz").weights, first.weights)


def test_a_long_probe_with_diffuse_heads_can_be_loaded_though_its_rows_are_rounded(tmp_path):
    n_tokens = 300
    uniform = np.tril(np.ones((1, 1, n_tokens, n_tokens))) / np.arange(1, n_tokens + 1)[:, None]
    Snapshot(0, ("x",) * n_tokens, uniform).save(tmp_path / "long.npz")
    assert Snapshot.load(tmp_path / "long.npz").weights.shape == (1, 1, n_tokens, n_tokens)


def test_the_name_of_the_file_is_the_one_that_was_asked_for(tmp_path):
    Snapshot(0, WORDS, random_weights()).save(str(tmp_path / "step.snapshot"))
    assert names(tmp_path) == ["step.snapshot"]


def test_a_save_that_fails_leaves_the_older_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "step.npz"
    Snapshot(1, WORDS, random_weights()).save(path)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(Exception, match="no space left"):
        Snapshot(2, WORDS, random_weights()).save(path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["step.npz"]


def test_lists_float64_and_numpy_integers_are_taken_and_given_their_type():
    snapshot = Snapshot(np.int64(3), ["a", "b"], [[[[1, 0], [0.5, 0.5]]]])  # type: ignore[arg-type]
    assert type(snapshot.step) is int
    assert snapshot.tokens == ("a", "b")
    assert snapshot.weights.dtype == np.float32


def future():
    weights = random_weights()
    weights[0, 0, 0, :2] = 0.5
    return weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "step must be 0 or more, got -1"),
        ({"tokens": ()}, "at least one token"),
        ({"tokens": (1, 2, 3, 4, 5, 6, 7)}, "decode token ids first"),
        ({"tokens": ("a",) * 6}, r"with T = 6 tokens, got \(2, 3, 7, 7\)"),
        ({"weights": random_weights()[0]}, r"got \(3, 7, 7\)"),
        ({"weights": random_weights(n_layer=0)}, r"got \(0, 3, 7, 7\)"),
        ({"weights": random_weights() * np.nan}, "finite"),
        ({"weights": random_weights() * 30 - 9}, "weights after softmax, not the scores"),
        ({"weights": future()}, "zero above the diagonal"),
        ({"weights": random_weights() / 2}, "each row of weights must sum to 1, got sums from 0.5 to 0.5"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_clear_line(changes, message):
    fields = {"step": 1, "tokens": ("a",) * 7, "weights": random_weights()} | changes
    with pytest.raises(ValueError, match=message) as refusal:
        Snapshot(**fields)
    assert "\n" not in str(refusal.value)


def damaged(path):
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("levels.npy")
    content = bytearray(path.read_bytes())
    for offset in range(60, 90):  # past the entry's own header, within its compressed bytes
        content[entry.header_offset + offset] ^= 0xFF
    path.write_bytes(content)


def of_another_kind(path):
    np.savez(path, other=np.zeros(3))


def of_a_later_format(path):
    np.savez(path, format=99)


def with_a_pickle(path):
    np.savez(path, format=np.array([{"a": 1}], dtype=object))


def with_array(name, value):
    def spoil(path):
        with np.load(path) as stored:
            arrays = dict(stored) | {name: value}
        np.savez(path, **arrays)

    return spoil


def with_bytes(name, content):
    """The entry of an array replaced by other bytes."""

    def spoil(path):
        with np.load(path) as stored:
            arrays = dict(stored)
        del arrays[name]
        np.savez(path, **arrays)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", content)

    return spoil


def of_a_size(n):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (n,), "fortran_order": False, "descr": "|u1"})
    return header.getvalue()


def of_a_later_zip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # the version needed to read the entry
    path.write_bytes(content)


def a_folder(path):
    path.unlink()
    path.mkdir()


DEEP = np.frombuffer(b"[" * 100_000, np.uint8)
HUGE = np.frombuffer(b'{"loss": 1' + b"0" * 400 + b"}", np.uint8)


@pytest.mark.parametrize(
    "spoil",
    [
        damaged,
        *(with_array(name, DEEP) for name in ("tokens", "score_names", "next_tokens", "numbers")),
        with_array("numbers", HUGE),
        with_array("step", np.inf),
        with_array("format", np.inf),
        with_array("token_ids", np.full(7, np.inf)),
        with_bytes("levels", of_a_size(10**14)),
        with_bytes("levels", of_a_size(10**30)),
        with_bytes("levels", b"\x93NUMPY\x01\x00\x10\x00{((((((((((((((("),
        of_a_later_zip,
        a_folder,
        of_another_kind,
        of_a_later_format,
        with_a_pickle,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"hello"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
    ],
)
def test_a_file_that_is_not_a_snapshot_is_refused_by_name(tmp_path, spoil):
    path = tmp_path / "step.npz"
    Snapshot(1, WORDS, random_weights()).save(path)
    spoil(path)
    with pytest.raises(ValueError, match=r"step\.npz is not a snapshot that can be read: \S") as refusal:
        Snapshot.load(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500 + len(str(path))


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Snapshot.load(tmp_path / "nothing.npz")


def whole_fields():
    """Every optional field, with the texts and numbers that are hardest to keep."""
    scores = {"induction": np.linspace(0, 1, 6).reshape(2, 3), "relation: </script>\x00": np.full((2, 3), np.nan)}
    expected = [[(word, 0.5), ("\x00", 0.1 + 0.2)][:n] for n, word in zip((2, 1, 0, 2, 2, 1, 2), WORDS, strict=True)]
    for ranking in expected:
        ranking.sort(key=lambda pair: -pair[1])
    return {
        "scores": scores,
        "value_norms": np.random.default_rng(0).random((2, 3, 7)),
        "next_tokens": tuple(map(tuple, expected)),
        "numbers": {"icl_score": -0.1, "\x00": 1e-300},
    }


def test_scores_value_norms_and_next_tokens_come_back_exactly(tmp_path):
    snapshot = Snapshot(1, WORDS, random_weights(), **whole_fields())
    snapshot.save(tmp_path / "step.npz")
    again = Snapshot.load(tmp_path / "step.npz")
    assert list(again.scores) == ["induction", "relation: </script>\x00"]
    for name, values in snapshot.scores.items():
        np.testing.assert_array_equal(again.scores[name], values)
        assert again.scores[name].dtype == np.float32
    np.testing.assert_array_equal(again.value_norms, snapshot.value_norms)
    assert again.next_tokens == snapshot.next_tokens
    assert again.numbers == {"icl_score": -0.1, "\x00": 1e-300}
    assert read_numbers(tmp_path / "step.npz") == (1, again.numbers)


def test_a_snapshot_without_them_comes_back_without_them(tmp_path):
    Snapshot(1, WORDS, random_weights()).save(tmp_path / "step.npz")
    again = Snapshot.load(tmp_path / "step.npz")
    assert (again.scores, again.value_norms, again.next_tokens, again.numbers) == ({}, None, (), {})


def test_a_file_of_the_first_format_can_still_be_read(tmp_path):
    weights = random_weights()
    tokens = np.frombuffer(json.dumps(WORDS).encode(), dtype=np.uint8)
    np.savez_compressed(tmp_path / "old.npz", format=1, step=40, tokens=tokens, levels=packing.pack(weights))
    old = Snapshot.load(tmp_path / "old.npz")
    assert (old.step, old.tokens, old.scores, old.value_norms, old.next_tokens) == (40, WORDS, {}, None, ())
    assert read_numbers(tmp_path / "old.npz") == (40, {})
    assert np.abs(old.weights - weights).max() <= packing.MAX_ERROR + 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"induction": np.zeros((3, 2))}}, r"scores\['induction'\] must have shape .* = \(2, 3\), got"),
        ({"scores": {"induction": np.full((2, 3), np.inf)}}, "or NaN where there is none, got infinity"),
        ({"scores": {"": np.zeros((2, 3))}}, "names of scores must be text"),
        ({"scores": {3: np.zeros((2, 3))}}, "names of scores must be text"),
        ({"value_norms": np.zeros((2, 3))}, r"value_norms must have shape .* = \(2, 3, 7\), got \(2, 3\)"),
        ({"value_norms": np.full((2, 3, 7), -1)}, "they are lengths"),
        ({"value_norms": np.full((2, 3, 7), np.nan)}, "they are lengths"),
        ({"next_tokens": [[("a", 0.5)]]}, "one entry for each of the 7 tokens, got 1"),
        ({"next_tokens": [[]] * 6 + [[(4, 0.5)]]}, r"next_tokens\[6\] must hold the texts"),
        ({"next_tokens": [[("a", 0.1), ("b", 0.2)]] + [[]] * 6}, r"next_tokens\[0\] .* best first, got \[0.1, 0.2\]"),
        ({"next_tokens": [[("a", 1.5)]] * 7}, "probabilities from 0 to 1"),
        ({"next_tokens": [[("a", float("nan"))]] * 7}, "probabilities from 0 to 1"),
        ({"numbers": {"loss": float("nan")}}, "numbers must be finite and have names .* got 'loss': nan"),
        ({"numbers": {3: 1.0}}, "numbers must be finite and have names .* got 3: 1.0"),
    ],
)
def test_what_is_known_of_the_heads_must_fit_too(changes, message):
    with pytest.raises(ValueError, match=message) as refusal:
        Snapshot(1, WORDS, random_weights(), **changes)
    assert "\n" not in str(refusal.value)
