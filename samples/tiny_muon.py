"""Muon: momentum whose every update is replaced by the nearest orthogonal matrix.

Jordan et al. (2024), https://kellerjordan.github.io/posts/muon, with the update scale of Liu et al., "Muon is
scalable for LLM training" (2025), which gives an update the size that AdamW's has at the same learning rate.
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalise(matrix: Tensor) -> Tensor:
    """Take [..., A, B] (nearly) to its polar factor by 5 Newton-Schulz steps with Jordan's coefficients."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices, and for stacks of them such as a layer's experts, each matrix on its own."""

    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Move every parameter against its momentum, the update's entries 0.2 lr in root mean square."""
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                buffer = state["momentum"]
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonalise(param.grad.lerp(buffer, group["momentum"]))
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-0.2 * max(param.shape[-2:]) ** 0.5 * group["lr"])
