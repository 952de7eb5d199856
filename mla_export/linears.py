"""Hugging Face's linear layers: which parameter of the graph each becomes, and what each is fed with.

The one place that ties the layers' names to the graph's. Names on both sides are those within a layer. The
graph orders some outputs otherwise than the checkpoint does, inputs never: what a linear layer is fed with
here is what the parameter is multiplied with there. But for o_proj in the merged form, which is fed with
latents a head, as no layer of Hugging Face's is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mla_graphs.geometry import Absorb, Geometry

# The parameter that a linear layer of the checkpoint is, or is a part of.
_PARAMETERS = {
    "self_attn.q_a_proj": "attention.q_down.weight",
    "self_attn.q_proj": "attention.q_up.weight",
    "self_attn.q_b_proj": "attention.q_up.weight",
    "self_attn.kv_a_proj_with_mqa": "attention.kv_down.weight",
    "self_attn.o_proj": "attention.o_proj.weight",
    "mlp.gate_proj": "mlp.gate_up.weight",
    "mlp.up_proj": "mlp.gate_up.weight",
    "mlp.down_proj": "mlp.down.weight",
    "mlp.shared_experts.gate_proj": "moe.shared.gate_up.weight",
    "mlp.shared_experts.up_proj": "moe.shared.gate_up.weight",
    "mlp.shared_experts.down_proj": "moe.shared.down.weight",
    "mlp.experts.gate_proj": "moe.experts.gate_up",
    "mlp.experts.up_proj": "moe.experts.gate_up",
    "mlp.experts.gate_up_proj": "moe.experts.gate_up",
    "mlp.experts.down_proj": "moe.experts.down",
}
# The linear layer that is fed with the rows which a parameter is multiplied with. The gate stands for all
# that reads the norm before it: over all experts, each row comes as often as a token has experts.
_FED_AS = {
    "attention.q_down.weight": "self_attn.kv_a_proj_with_mqa",
    "attention.q_up.weight": "self_attn.q_b_proj",
    "attention.kv_down.weight": "self_attn.kv_a_proj_with_mqa",
    "attention.k_up.weight": "self_attn.kv_b_proj",
    "attention.v_up.weight": "self_attn.kv_b_proj",
    "attention.o_proj.weight": "self_attn.o_proj",
    "mlp.gate_up.weight": "mlp.gate_proj",
    "mlp.down.weight": "mlp.down_proj",
    "moe.shared.gate_up.weight": "mlp.gate",
    "moe.shared.down.weight": "mlp.shared_experts.down_proj",
    "moe.experts.gate_up": "mlp.gate",
    "moe.experts.down": "mlp.experts.down_proj",
}


def parameter_of(linear: str) -> str | None:
    """Give the parameter that the checkpoint's `linear` is part of; None for gate and kv_b_proj."""
    return _PARAMETERS.get(re.sub(r"\.experts\.\d+\.", ".experts.", linear))


def fed_as(parameter: str, geometry: Geometry, absorb: Absorb) -> str | None:
    """Give the linear layer that is fed as `parameter` is; None where there is none."""
    if parameter == "attention.o_proj.weight" and absorb == "merged":
        return None
    if parameter == "attention.q_up.weight" and geometry.q_lora_rank is None:
        parameter = "attention.q_down.weight"  # straight from the norm, as what goes down is
    return _FED_AS.get(parameter)


class Linears(TorchFunctionMode):
    """Shows what the linear layers of `module` are fed with, while they run.

    `see` is given a layer's name, the expert whose it is (None: no expert's) and its inputs [..., in], and
    gives the inputs to go on with. Experts are told by their place in the stack that transformers 5 holds.
    """

    def __init__(self, module: nn.Module, see: Callable[[str, int | None, Tensor], Tensor]) -> None:
        super().__init__()
        self._see = see
        self._places: dict[int, tuple[str, int | None]] = {}
        for name, parameter in module.named_parameters():
            if parameter.ndim == 3:
                places = {matrix.data_ptr(): (name, expert) for expert, matrix in enumerate(parameter)}
                self._places.update(places)
            elif parameter.ndim == 2:
                self._places[parameter.data_ptr()] = (name.removesuffix(".weight"), None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`; a product with a matrix of the module's with the inputs that `see` gives."""
        if func is torch.nn.functional.linear and (place := self._places.get(args[1].data_ptr())):
            args = (self._see(*place, args[0]), *args[1:])
        return func(*args, **(kwargs or {}))
