"""Zero and mean ablation of an exported model are those of TransformerLens on the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge import in_transformer_lens
from small_runs import GPT2, small_settings

from minigpt.inspection.ablation import ablation
from minigpt.runs.loading import load_model
from minigpt.training.run import train

MODELS: dict[str, dict[str, Any]] = {
    "modern": {"n_kv_head": 1, "head_dim": 12},
    "GPT-2's": GPT2,
}


@pytest.mark.slow  # TransformerLens takes six seconds to import
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_each_token_without_a_head_or_an_mlp_is_the_same_in_transformer_lens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"context_length": 64} | MODELS[name]
    run = train(small_settings(tmp_path, model=settings, attention={"enabled": False}))
    theirs = in_transformer_lens(run.path)
    model = load_model(run.path).model
    tokens = torch.tensor([list(f"{i} plus {i + 3} is {2 * i + 3}; {i} plus".encode())[:20] for i in range(10, 14)])

    def their_losses(hooks: list[Any]) -> torch.Tensor:
        with torch.no_grad():
            logits = theirs.run_with_hooks(tokens[:, :-1], fwd_hooks=hooks)
        return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]

    whole = their_losses([])
    D = model.config.width_per_head

    def change(layer: int, head: int, *, mean: bool) -> torch.Tensor:
        def ablate(z: torch.Tensor, hook: object) -> torch.Tensor:
            z = z.clone()
            own = z[..., head, :] if z.ndim == 4 else z[..., head * D : (head + 1) * D]
            own[:] = own.mean(dim=(0, 1)) if mean else 0.0
            return z

        return their_losses([(f"blocks.{layer}.attn.hook_z", ablate)]) - whole

    for kind in ("zero", "mean"):
        found = ablation(model, tokens, kind=kind)
        expected = [change(layer, head, mean=kind == "mean") for layer in range(2) for head in range(2)]
        torch.testing.assert_close(found.changes, torch.stack(expected), rtol=0, atol=2e-5)
        assert found.changes.abs().max() > 1e-3
    (mlp,) = ablation(model, tokens, parts=["mlp1"]).changes
    no_mlp = their_losses([("blocks.1.hook_mlp_out", lambda out, hook: torch.zeros_like(out))]) - whole
    torch.testing.assert_close(mlp, no_mlp, rtol=0, atol=2e-5)
