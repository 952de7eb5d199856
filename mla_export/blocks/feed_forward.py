"""Feed-forward networks: the dense SwiGLU and DeepSeekMoE."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mla_export.blocks.basic import Linear, emit, weight
from mla_graphs.geometry import Geometry, Moe


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)); gate and up stand in the graph as one matrix."""

    def __init__(
        self, name: str, hidden: int, intermediate: int, dtype: torch.dtype, bias: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        self.gate_up = Linear(f"{name}.gate_up", hidden, 2 * intermediate, dtype, bias)
        self.down = Linear(f"{name}.down", intermediate, hidden, dtype, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        gate_up = self.gate_up(x)
        shape = (*x.shape[:-1], self.down.weight.shape[0])
        (hidden,) = emit("SwiGLU", (gate_up,), f"{self.name}.swiglu", (x.dtype, shape))
        return self.down.forward(hidden)


class Router(nn.Module):
    """The gate's weights; float32 whatever the rest is, as the references compute it."""

    def __init__(self, hidden: int, moe: Moe) -> None:
        super().__init__()
        self.weight = weight(hidden, moe.n_routed_experts, dtype=torch.float32)
        self.correction_bias = (
            weight(moe.n_routed_experts, dtype=torch.float32) if moe.correction_bias else None
        )


class Experts(nn.Module):
    """The routed experts' weights, stacked."""

    def __init__(self, hidden: int, moe: Moe, dtype: torch.dtype) -> None:
        super().__init__()
        experts, width = moe.n_routed_experts, moe.moe_intermediate_size
        self.gate_up = weight(experts, hidden, 2 * width, dtype=dtype)
        self.down = weight(experts, width, hidden, dtype=dtype)


class MixtureOfExperts(nn.Module):
    """DeepSeekMoE: routed experts chosen by a gate, and shared experts that take every token."""

    def __init__(self, geometry: Geometry, moe: Moe, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = geometry.hidden_size
        self.moe = moe
        self.router = Router(hidden, moe)
        self.experts = Experts(hidden, moe, dtype)
        self.shared = SwiGLU("moe.shared", hidden, moe.shared_intermediate_size, dtype, geometry.mlp_bias)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """[B,S,hidden] to the same; rows where `counts` is false reach no expert."""
        m = self.moe
        b, s, hidden = x.shape
        rows = emit("Rows", (x,), "moe.rows", (x.dtype, (b * s, hidden)), width=hidden)[0]
        bias = self.router.correction_bias
        chosen = (b * s, m.num_experts_per_tok)
        ids, weights = emit(
            "Route",
            (rows, self.router.weight) if bias is None else (rows, self.router.weight, bias),
            "moe.router",
            (torch.int64, chosen),
            (torch.float32, chosen),
            scoring=m.scoring,
            experts=m.n_routed_experts,
            top_k=m.num_experts_per_tok,
            groups=m.n_group if m.group_score else 0,
            top_groups=m.topk_group if m.group_score else 0,
            group_score=m.group_score or "none",
            normalize=int(m.norm_topk_prob),
            scaling=m.routed_scaling_factor,
        )
        routed = emit(
            "Experts",
            (rows, ids, weights, counts, self.experts.gate_up, self.experts.down),
            "moe.experts",
            (x.dtype, (b * s, hidden)),
            experts=m.n_routed_experts,
            top_k=m.num_experts_per_tok,
        )[0]
        routed = emit("Unrows", (routed, x), "moe.unrows", (x.dtype, x.shape))[0]
        return emit("Residual", (routed, self.shared(x)), "moe.sum", (x.dtype, x.shape), scale=1.0)[0]
