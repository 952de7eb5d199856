"""The reference: Hugging Face's own decoder layers, run one layer at a time from the shards.

A layer is built from transformers' in-library class (never from a model folder's code), its weights are read
from the checkpoint, every prompt passes through it, and it is freed: memory is one layer's, not the model's.
The same pass can run in several precisions. float64 is the yardstick; float32 and the 16-bit types are the
peers whose own rounding error says how much a bundle may have.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mla_export import progress
from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of, text_config
from mla_export.rounding import Precision, Rounded
from mla_runtime.errors import ConfigError

Lane = Precision | Rounded  # a way to compute a pass
Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

# where transformers keeps each family's classes, and the prefix of their names
CLASSES = {
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
    "minicpm3": "MiniCPM3",
    "youtu": "Youtu",
    "glm4_moe_lite": "Glm4MoeLite",
}
_NOT_FOR_CLASSES = ("model_type", "auto_map", "architectures", "quantization_config", "torch_dtype", "dtype")


class Widened(TorchFunctionMode):
    """Make the classes' float32 islands (norms, gates, rotary tables) float64.

    Hugging Face's layers cast to float32 there whatever their own dtype is, so that `.double()` alone would
    measure nothing below 1e-7.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` with float64 for every float32 among its arguments."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **wide)


@contextmanager
def precision_of(precision: Precision) -> Iterator[torch.dtype]:
    """Run the body without gradients, and in float64 with every island widened."""
    with torch.inference_mode():
        if precision == "float64":
            with Widened():
                yield torch.float64
        else:
            yield getattr(torch, precision)


@dataclass(frozen=True, slots=True)
class Routing:
    """What a gate saw and did: router logits [S, E], and the experts it took [S, k], in ascending order.

    The logits are [S, 0] where only choices were asked for: those of a long text would fill the memory.
    """

    logits: Array
    chosen: Array


@dataclass(frozen=True, slots=True)
class Pass:
    """What the reference computed for one row of token ids, in one precision.

    `logits` [n, V] of the kept positions; `routing` a layer (None: a dense one).
    """

    logits: Array
    routing: tuple[Routing | None, ...]


class Reference:
    """Teacher-forced, causal passes of a checkpoint through Hugging Face's classes.

    `max_context` fixes LongRoPE's factors as the export does; None takes the model's own limit.
    Raises ConfigError for a model whose family has no class in transformers, CheckpointError for tensors
    that are missing or left over.
    """

    def __init__(self, checkpoint: Checkpoint, max_context: int | None = None):
        family = family_of(checkpoint.config)
        if family.name not in CLASSES:
            raise ConfigError(
                f"{checkpoint.path}: transformers has no class for the family {family.name!r} to verify "
                f"against; known are {', '.join(CLASSES)}"
            )
        self.checkpoint = checkpoint
        self.geometry = family.geometry(checkpoint.config, max_context)
        self._names = account(checkpoint, family, self.geometry).names
        self._module = importlib.import_module(f"transformers.models.{family.name}.modeling_{family.name}")
        self._prefix = CLASSES[family.name]
        self._config_class = getattr(self._module, f"{self._prefix}Config")

    def forward(
        self,
        rows: Sequence[Sequence[int]],
        precisions: Sequence[Lane] = ("float32",),
        keep: Sequence[Sequence[int]] | None = None,
    ) -> dict[Lane, list[Pass]]:
        """Run every row of token ids; each of `precisions` gives one Pass a row.

        `keep` names the positions of each row whose logits are wanted (default: all).
        """
        lanes = self.passages(rows, precisions)
        kept = [range(len(row)) for row in rows] if keep is None else keep
        return {
            p: [Pass(lane.logits(i, at), tuple(lane.routing[i])) for i, at in enumerate(kept)]
            for p, lane in lanes.items()
        }

    def passages(
        self,
        rows: Sequence[Sequence[int]],
        precisions: Sequence[Lane] = ("float32",),
        *,
        choices_only: bool = False,
    ) -> dict[Lane, Passage]:
        """Run every row of token ids through all layers, and leave the head to who asks for logits.

        `choices_only` keeps of the gates what they chose, and not their logits.
        """
        lanes = {p: Passage(self, p, rows, choices_only=choices_only) for p in precisions}
        layers = self.geometry.num_hidden_layers
        with progress.task("reference, layer by layer", layers * len(lanes)) as advance:
            for layer in range(layers):
                weights = dict(self.tensors(layer))
                for lane in lanes.values():
                    lane.apply(layer, weights)
                    advance(1)
        return lanes

    def config(self, **changes: Any) -> Any:
        """Give the model's configuration as transformers' own class."""
        found = text_config(self.checkpoint.config)
        values = {k: v for k, v in found.items() if k not in _NOT_FOR_CLASSES}
        config = self._config_class(**{**values, **changes})
        config._attn_implementation = "sdpa"
        config._experts_implementation = "eager"  # the only one that takes float64
        return config

    def read(self, logical: str) -> torch.Tensor:
        """Read one tensor by its logical name, as it is stored (block-scaled fp8: float32)."""
        return self.checkpoint.read(self._names[logical])

    def hf_class(self, name: str) -> Any:
        """Give the family's class of transformers by the end of its name, like `DecoderLayer`."""
        return getattr(self._module, self._prefix + name)

    def tensors(self, layer: int) -> Mapping[str, torch.Tensor]:
        """Give a layer's tensors by their names within it; each is read when it is asked for."""
        prefix = f"model.layers.{layer}."
        return _Tensors(self, {n.removeprefix(prefix): n for n in self._names if n.startswith(prefix)})

    def layer(self, index: int, weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
        """Build one decoder layer of the model from its weights."""
        with torch.device("meta"):
            module = self.hf_class("DecoderLayer")(self.config(), index)
        state = {}
        for name, parameter in module.state_dict().items():
            state[name] = (
                _fused(name, parameter.shape, weights, dtype)
                if ".experts." in name
                else weights[name].to(dtype)
            )
        module.load_state_dict(state, assign=True)
        return module.eval()  # type: ignore[no-any-return]

    def rotary(self) -> nn.Module:
        """Build the rotary embedding; LongRoPE with the factors of the export's context, at every length."""
        config = self.config()
        module = self.hf_class("RotaryEmbedding")(config)
        if module.rope_type == "longrope":
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            chosen, _ = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=self.geometry.max_context)
            module.original_inv_freq.copy_(chosen)
            module.long_inv_freq = chosen
        return module  # type: ignore[no-any-return]

    def embedding(self, dtype: torch.dtype) -> Any:
        """Build the module that turns token ids into hidden states."""
        module = self._without_layers(dtype).model.embed_tokens
        module.weight = _frozen(self.read("model.embed_tokens.weight"), dtype)
        return module

    def head(self, dtype: torch.dtype) -> Any:
        """Build what turns hidden states (`inputs_embeds`) into logits: the last norm and the head."""
        module = self._without_layers(dtype)
        name = "model.embed_tokens" if self.geometry.tie_word_embeddings else "lm_head"
        module.model.norm.weight = _frozen(self.read("model.norm.weight"), dtype)
        module.lm_head.weight = _frozen(self.read(f"{name}.weight"), dtype)
        return module

    def _without_layers(self, dtype: torch.dtype) -> Any:
        # a vocabulary of one, so that no second embedding is allocated before the real one is put in
        special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        config = self.config(num_hidden_layers=0, vocab_size=1, **special)
        return self.hf_class("ForCausalLM")(config).to(dtype).eval()


class _Tensors(Mapping[str, torch.Tensor]):
    """Tensors of a checkpoint by shorter names, none of them kept."""

    def __init__(self, reference: Reference, logical: Mapping[str, str]):
        self._reference, self._logical = reference, logical

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._reference.read(self._logical[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._logical)

    def __len__(self) -> int:
        return len(self._logical)


def _frozen(tensor: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.to(dtype), requires_grad=False)


def _fused(
    name: str, shape: torch.Size, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """Stack the experts' matrices as transformers 5 holds them: gate over up [E, 2I, H], down [E, H, I]."""
    path, kind = name.rsplit(".", 1)
    fused = torch.empty(shape, dtype=dtype)
    for expert in range(shape[0]):
        if kind == "down_proj":
            fused[expert] = weights[f"{path}.{expert}.down_proj.weight"]
        else:
            inner = shape[1] // 2
            fused[expert, :inner] = weights[f"{path}.{expert}.gate_proj.weight"]
            fused[expert, inner:] = weights[f"{path}.{expert}.up_proj.weight"]
    return fused


class Passage:
    """The hidden states of all rows on their way through the layers, in one precision.

    `routing[row]` has what the gate of each layer did, None for a dense one.
    """

    def __init__(
        self, reference: Reference, lane: Lane, rows: Sequence[Sequence[int]], *, choices_only: bool
    ):
        self.reference = reference
        self._choices_only = choices_only
        self.rounded = lane if isinstance(lane, Rounded) else None
        self.precision: Precision = lane.precision if isinstance(lane, Rounded) else lane
        precision = self.precision
        self.routing: list[list[Routing | None]] = [[] for _ in rows]
        with precision_of(precision) as dtype:
            self.rotary = reference.rotary()
            embed = reference.embedding(dtype)
            if self.rounded:
                self._round("embed.weight", embed)
            self.hidden = [embed(torch.tensor([list(row)])) for row in rows]  # [1, S, H]

    def apply(self, index: int, weights: dict[str, torch.Tensor]) -> None:
        """Pass every row through layer `index`."""
        geometry = self.reference.geometry
        with precision_of(self.precision) as dtype:
            if self.rounded:
                weights = {n: self.rounded.weight(index, n, t, geometry) for n, t in weights.items()}
            module = self.reference.layer(index, weights, dtype)
            if self.rounded:
                self.rounded.install(module, geometry)
            seen: list[Routing] = []

            def watch(_module: nn.Module, _inputs: Any, out: tuple[torch.Tensor, ...]) -> None:
                logits, _, chosen = out
                kept = logits[:, :0] if self._choices_only else logits
                seen.append(Routing(kept.double().numpy(), chosen.sort(dim=-1).values.numpy()))

            gate = getattr(module.mlp, "gate", None)
            if gate is not None:
                gate.register_forward_hook(watch)
            inputs = self.rounded.inputs(index, module, geometry) if self.rounded else nullcontext()
            with inputs:
                for row, hidden in enumerate(self.hidden):
                    self.hidden[row] = causal(module, self.rotary, hidden)
                    self.routing[row].append(seen.pop() if seen else None)

    def logits(self, row: int, at: Sequence[int]) -> Array:
        """Give the logits [n, V] of a row at the positions `at`, once it has passed all layers."""
        head, geometry = self._head, self.reference.geometry
        inputs = self.rounded.head(head, geometry) if self.rounded else nullcontext()
        with precision_of(self.precision), inputs:
            hidden = self.hidden[row][:, list(at)]
            return head(inputs_embeds=hidden, use_cache=False).logits[0].double().numpy()  # type: ignore[no-any-return]

    @cached_property
    def _head(self) -> Any:
        with precision_of(self.precision) as dtype:
            head = self.reference.head(dtype)
            if self.rounded:
                self._round("head.weight", head.lm_head)
        return head

    def _round(self, parameter: str, module: Any) -> None:
        assert self.rounded is not None  # noqa: S101 - the caller's to know
        rounded = self.rounded.matrix(parameter, module.weight, self.reference.geometry)
        module.weight = nn.Parameter(rounded, requires_grad=False)


def causal(layer: nn.Module, rotary: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Run a decoder layer over hidden states [1, S, H] from position 0 on."""
    positions = torch.arange(hidden.shape[1])[None]
    # no mask: scaled_dot_product_attention is causal by itself then
    found: torch.Tensor = layer(
        hidden,
        attention_mask=None,
        position_ids=positions,
        position_embeddings=rotary(hidden, positions),
    )
    return found


def parameters(checkpoint: Checkpoint) -> int:
    """Count the checkpoint's stored elements."""
    return sum(math.prod(info.shape) for info in checkpoint.tensors.values())


def whole_model(
    reference: Reference, rows: Sequence[Sequence[int]], keep: Sequence[Sequence[int]] | None = None
) -> list[Array]:
    """Run Hugging Face's whole class as it stands, loaded by its own loader, in float32: logits [n, V] a row.

    Loads the model at once: for small models. LongRoPE's factors are fixed as in the export.
    """
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = reference.hf_class("ForCausalLM").from_pretrained(
            reference.checkpoint.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    model.model.rotary_emb = reference.rotary()
    kept = [range(len(row)) for row in rows] if keep is None else keep
    with torch.inference_mode():
        return [
            model(torch.tensor([list(row)]), use_cache=False).logits[0, list(at)].double().numpy()
            for row, at in zip(rows, kept, strict=True)
        ]
