"""The reference: Hugging Face's own decoder layers, run one layer at a time from the shards.

A layer is built from transformers' in-library class (never from a model folder's code), its weights are read
from the checkpoint, every prompt passes through it, and it is freed: memory is one layer's, not the model's.
The same pass can run in several precisions. float64 is the yardstick; float32 and the 16-bit types are the
peers whose own rounding error says how much a bundle may have.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from mla_export import progress
from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of, text_config
from mla_export.passage import Lane, Pass, Passage
from mla_runtime.errors import ConfigError

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
        after: Callable[[int, dict[Lane, Passage]], None] | None = None,
    ) -> dict[Lane, Passage]:
        """Run every row of token ids through all layers, and leave the head to who asks for logits.

        `choices_only` keeps of the gates what they chose, and not their logits. `after` is called behind each
        layer, with its number: the passages then have what it gave and wrote to its cache.
        """
        cached = after is not None
        lanes = {p: Passage(self, p, rows, choices_only=choices_only, cached=cached) for p in precisions}
        layers = self.geometry.num_hidden_layers
        with progress.task("reference, layer by layer", layers * len(lanes)) as advance:
            for layer in range(layers):
                weights = dict(self.tensors(layer))
                for lane in lanes.values():
                    lane.apply(layer, weights)
                    advance(1)
                if after is not None:
                    after(layer, lanes)
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
