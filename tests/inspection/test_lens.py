"""The logit lens: its last row is the model's output, and each row is what a model that ends there would predict."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.inspection import lens
from minigpt.inspection.lens import logit_lens, residual_streams
from minigpt.model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "post-norm": {"block": "post_norm", "tie_embeddings": True},
    "NeoX": {"block": "parallel", "norm": "layernorm", "bias": True},
    "GPT-2": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(**kind: Any) -> tuple[GPT, Tensor]:
    """A model whose layers matter, and (2, 13) ids."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(TINY | kind)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 5
    return model.eval(), torch.randint(61, (2, 13))


@each_kind
def test_the_lens_at_the_last_layer_is_the_models_output(kind: str) -> None:
    model, tokens = tiny(**KINDS[kind])
    read, targets = logit_lens(model, tokens), tokens.roll(-1, 1)
    with torch.no_grad():
        logits = model(tokens)
    expected = -F.cross_entropy(logits.mT, targets, reduction="none")
    torch.testing.assert_close(read.log_probabilities(targets)[-1], expected, rtol=0, atol=1e-5)
    ids, p = read.top(4)
    assert torch.equal(ids[-1], logits.topk(4).indices)
    torch.testing.assert_close(p[-1], logits.softmax(-1).topk(4).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(read.kl()[-1], torch.zeros(2, 13), rtol=0, atol=1e-5)


@each_kind
def test_each_row_is_the_prediction_of_a_model_without_the_later_layers(kind: str) -> None:
    model, tokens = tiny(**KINDS[kind])
    read, targets = logit_lens(model, tokens), tokens.roll(-1, 1)
    found, best, kl = read.log_probabilities(targets), read.top(3), read.kl()
    assert found.shape == kl.shape == (3, 2, 13)
    assert best[0].shape == best[1].shape == (3, 2, 13, 3)
    with torch.no_grad():
        output = model(tokens).log_softmax(-1)
        for n_layer in range(3):
            short = GPT(GPTConfig(**(TINY | KINDS[kind] | {"n_layer": max(n_layer, 1)})))
            short.load_state_dict(model.state_dict(), strict=False)
            short.blocks = short.blocks[:n_layer]
            short.windows = short.windows[:n_layer]
            logits = short.eval()(tokens)
            expected = -F.cross_entropy(logits.mT, targets, reduction="none")
            torch.testing.assert_close(found[n_layer], expected, rtol=0, atol=1e-5)
            assert torch.equal(best[0][n_layer], logits.topk(3).indices)
            divergence = F.kl_div(logits.log_softmax(-1), output, log_target=True, reduction="none").sum(-1)
            torch.testing.assert_close(kl[n_layer], divergence, rtol=0, atol=1e-5)
    assert (kl[0] > 0.01).any(), "later layers change this model's prediction"


def test_logits_are_written_out_for_some_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny()
    read, targets = logit_lens(model, tokens), tokens.roll(-1, 1)
    whole = read.log_probabilities(targets), *read.top(2), read.kl()
    shapes = list[tuple[int, ...]]()
    compute = model.logits

    def logits(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return compute(x)

    monkeypatch.setattr(model, "logits", logits)
    monkeypatch.setattr(lens, "CHUNK_LOGITS", 61 * 7)
    chunked = read.log_probabilities(targets), *read.top(2), read.kl()
    assert max(shape[0] for shape in shapes) == 7  # of 26
    for ours, theirs in zip(chunked, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_one_pass_reads_all_that_the_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny()
    read, targets = logit_lens(model, tokens), tokens.roll(-1, 1)
    apart = read.log_probabilities(targets), *read.top(2), read.kl()
    compute, n_positions = model.logits, list[int]()

    def logits(x: Tensor) -> Tensor:
        n_positions.append(len(x))
        return compute(x)

    monkeypatch.setattr(model, "logits", logits)
    for ours, theirs in zip(read.read(targets, 2), apart, strict=True):
        assert torch.equal(ours, theirs)
    assert sum(n_positions) == 3 * tokens.numel()


def test_no_more_tokens_are_asked_for_than_the_vocabulary_has() -> None:
    model, tokens = tiny()
    assert logit_lens(model, tokens).top(100)[0].shape == (3, 2, 13, 61)
    assert logit_lens(model, tokens).read(tokens, 100).ids.shape == (3, 2, 13, 61)


def test_documents_are_read_apart() -> None:
    model, tokens = tiny(position="learned")
    document_ids = torch.tensor([[0] * 5 + [1] * 8] * 2)
    targets = tokens.roll(-1, 1)
    together = logit_lens(model, tokens, document_ids).log_probabilities(targets)
    torch.testing.assert_close(together[..., 5:], logit_lens(model, tokens[:, 5:]).log_probabilities(targets[:, 5:]))


def test_the_model_is_left_as_it_was() -> None:
    model, tokens = tiny(dropout=0.5)
    model.train()
    first = logit_lens(model, tokens)
    assert torch.equal(first.stream, logit_lens(model, tokens).stream), "no dropout while looking"
    assert model.training
    assert not first.stream.requires_grad
    with pytest.raises(ValueError, match="do not fit the context"):
        residual_streams(model, torch.zeros(1, 17, dtype=torch.int64))
    assert not any(module._forward_pre_hooks for module in model.modules())
