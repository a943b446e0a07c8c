"""Muon for the matrices inside blocks and AdamW for the rest, as one optimizer (Jordan et al. 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import UserError

BASE_WIDTH = 128
"""Width at which one learning rate changes logits equally through Muon, AdamW's matrices and the output head."""
COEFFICIENTS = {
    5: ((3.4445, -4.7750, 2.0315),) * 5,
    3: ((8.2872, -23.5959, 17.3004), (4.1071, -2.9478, 0.5448), (3.9487, -2.9089, 0.5518)),
}
"""Coefficients (a, b, c) of the quintic Newton-Schulz iteration, by number of steps. Five steps are Jordan's, chosen
for a steep slope at zero. Three are the first of Polar Express (Amsel et al. 2025, https://arxiv.org/abs/2505.16932),
which raises small singular values fastest: their range at the end is wider, at no measurable loss, and a small model's
step takes a seventh less time (docs/recipes.md)."""
LIKE_ADAMW = 0.2 * BASE_WIDTH**0.5
"""Scales entries of a square update to about 0.2 at BASE_WIDTH, like AdamW's (Liu et al. 2025, arXiv:2502.16982)."""


GRAM_FROM = 1.5
"""Columns to rows from which `orthogonalised` iterates on the Gram matrix: the two forms cost the same there."""


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration: keep the singular vectors and bring the singular values near 1.

    X <- aX + b(XX')X + c(XX')^2 X needs matrix products only, no SVD (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). All matrices take a step in one batched product. For oblong matrices
    the factor of X is found first, on the small Gram matrix alone, by a quarter (1024 x 384) less arithmetic.

    Args:
        matrices: (N, rows, columns). Matrices with a norm below 1e-7 vanish, so that noise does not become a full step.
        steps: iterations, 3 or 5.

    Returns:
        (N, rows, columns), singular values of 0.68 to 1.2 where they were above 0.3 % of the matrix's norm; after 3
        steps of 0.18 to 1.87 where they were above 0.2 %.
    """
    if matrices.shape[1] > matrices.shape[2]:  # XX' must be the smaller Gram matrix; a transposed view costs nothing
        return orthogonalised(matrices.mT, steps).mT
    # The iteration needs singular values of at most 1; the Frobenius norm bounds them.
    norm = matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    # A Gram matrix holds squares of singular values: 16 bits lose the small ones, unless X itself is iterated on.
    if matrices.shape[2] >= GRAM_FROM * matrices.shape[1] and matrices.element_size() > 2:
        return torch.bmm(_factor(torch.bmm(matrices, matrices.mT) / norm.square(), steps) / norm, matrices)
    x = matrices / norm
    for a, b, c in COEFFICIENTS[steps]:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _factor(gram: Tensor, steps: int) -> Tensor:
    """(N, rows, rows) Gram matrices XX' -> (N, rows, rows): what multiplies X in all steps together."""
    # A step multiplies X by P = a + bG + cG^2, hence G by P twice; P and G commute, being polynomials of one matrix.
    first, *others = COEFFICIENTS[steps]
    factor = polynomial = _polynomial(gram, *first)
    for coefficients in others:
        gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
        polynomial = _polynomial(gram, *coefficients)
        factor = torch.bmm(polynomial, factor)
    return factor


def _polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """The matrices a + bG + cG^2."""
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result


def update_scale(rows: int, columns: int) -> float:
    """The factor of an orthogonal update: a constant times max(1, sqrt(rows / columns)).

    An orthogonal update preserves the norm of its input at any width. So one learning rate serves all widths, if tall
    matrices change their longer output in proportion (spectral scaling, Yang et al. 2023,
    https://arxiv.org/abs/2310.17813; Jordan's max(1, rows / columns)).

    Args: rows are outputs, columns inputs.
    """
    return LIKE_ADAMW * max(1.0, rows / columns) ** 0.5


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups with `rows`, torch's fused AdamW for the others.

    Muon's groups have a `momentum` and `ns_steps`, AdamW's the `betas`.

    torch.optim.Muon exists, but it always computes in bfloat16, which CPUs without it emulate (16 times slower than
    this one, 128 wide on an AMD EPYC with AVX2), takes one matrix at a time and fused projections for one matrix, and
    leaves the other parameters to a second optimizer: automatic optimisation in Lightning steps only one.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        """Args: groups with `weight_decay`, which is decoupled; learning rate of all; AdamW's decays.

        `rows` has a list for each parameter of its group: the numbers of rows of the matrices that it is made of.

        Raises:
            UserError: a parameter with `rows` is only a part of its matrices, as when devices share them out.
        """
        for group in groups:
            for parameter, rows in zip(group["params"] if "rows" in group else [], group.get("rows", []), strict=True):
                # FSDP's first version flattens the parameters, its second one makes DTensors of them.
                if parameter.ndim != 2 or sum(rows) != len(parameter) or hasattr(parameter, "device_mesh"):
                    raise UserError(
                        "optimizer.name=muon: needs whole matrices on each device, and trainer.strategy divides them: "
                        "use ddp, or optimizer.name=adamw"
                    )
        self._adamw = torch.optim.AdamW([g for g in groups if "rows" not in g], lr=lr, betas=betas, fused=True)
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups; returns what closure does, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "rows" in group:
                self._step_matrices(group)
        # Loading a state replaces both, so they are handed on anew each time.
        self._adamw.param_groups = [group for group in self.param_groups if "rows" not in group]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        # Matrices with their gradients and momenta, by shape.
        alike: defaultdict[tuple[Any, ...], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for parameter, rows in zip(group["params"], group["rows"], strict=True):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            parts = (each.split(rows) for each in (parameter, parameter.grad, state["momentum"]))
            for matrix, gradient, momentum in zip(*parts, strict=True):
                alike[(*matrix.shape, matrix.device, matrix.dtype)].append((matrix, gradient, momentum))
        for (n_rows, n_columns, device, dtype), found in alike.items():
            # One call for a whole list: at these sizes a call costs as much as its arithmetic.
            matrices, gradients, momenta = map(list, zip(*found, strict=True))
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))  # Nesterov's
            updates = orthogonalised(directions.to(_precision(device, dtype)), group["ns_steps"]).to(dtype)
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, updates.unbind(), alpha=-group["lr"] * update_scale(n_rows, n_columns))


def _precision(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """bfloat16 is enough for the iteration where the device has it; float64 is somebody's wish to compare digits."""
    if device.type == "cuda" and dtype != torch.float64 and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.promote_types(dtype, torch.float32)
