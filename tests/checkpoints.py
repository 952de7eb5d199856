"""Small random checkpoints of every family, in the file layout and tensor names of the published ones.

The configuration and the modules come from transformers' own classes, so that the library's model can
be loaded back from the folder and stand as a witness. The weights are drawn here: large enough that
logits and routing are not flat, with norms that are not one and router biases that are not zero.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FAMILIES = ("deepseek_v2", "deepseek_v3", "minicpm3", "youtu", "glm4_moe_lite")

# Every width is different from every other, so that a swapped axis is a wrong shape.
_SHARED: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 2.5,
}


def yarn(**changes: Any) -> dict[str, Any]:
    """YaRN as DeepSeek-V3 publishes it, at a size where its three bands all show; None takes a key out."""
    parameters: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 8.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    parameters.update(changes)
    return {key: value for key, value in parameters.items() if value is not None}


def longrope(dim: int = 8, **changes: Any) -> dict[str, Any]:
    """LongRoPE as MiniCPM3 publishes it, with long factors that are not the short ones."""
    parameters: dict[str, Any] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.25 * i for i in range(dim // 2)],
        "long_factor": [1.5 + 1.75 * i for i in range(dim // 2)],
        "original_max_position_embeddings": 128,
    }
    parameters.update(changes)
    return {key: value for key, value in parameters.items() if value is not None}


_OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        **_EXPERTS,
        "q_lora_rank": None,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707),
    },
    "deepseek_v3": {
        **_EXPERTS,
        "q_lora_rank": 40,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "num_mtp_layers": 0,
        "rope_parameters": yarn(),
    },
    "minicpm3": {
        "q_lora_rank": 40,
        "scale_emb": 3,
        "scale_depth": 1.4,
        "dim_model_base": 32,
        "rope_parameters": longrope(),
    },
    "youtu": {"q_lora_rank": 40, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}},
    "glm4_moe_lite": {
        **_EXPERTS,
        "q_lora_rank": 40,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    },
}

# What each family can be asked for beyond its usual form: name -> (family, overrides).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2_q_lora_group_limited": (
        "deepseek_v2",
        {"q_lora_rank": 40, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "v2_biases": ("deepseek_v2", {"q_lora_rank": 40, "attention_bias": True}),
    "v2_plain_rope": ("deepseek_v2", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "v3_no_q_lora": ("deepseek_v3", {"q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "v3_biases": ("deepseek_v3", {"attention_bias": True}),
    "v3_tied": ("deepseek_v3", {"tie_word_embeddings": True}),
    "v3_halves": ("deepseek_v3", {"rope_interleave": False}),
    "v3_no_norm": ("deepseek_v3", {"norm_topk_prob": False}),
    "v3_all_dense": ("deepseek_v3", {"first_k_dense_replace": 3}),
    "v3_all_moe": ("deepseek_v3", {"first_k_dense_replace": 0}),
    "v3_yarn_unequal": ("deepseek_v3", {"rope_parameters": yarn(mscale=0.707, mscale_all_dim=1.0)}),
    "v3_yarn_zero": ("deepseek_v3", {"rope_parameters": yarn(mscale=0, mscale_all_dim=0)}),
    "v3_yarn_absent": ("deepseek_v3", {"rope_parameters": yarn(mscale=None, mscale_all_dim=None)}),
    "v3_linear": (
        "deepseek_v3",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "minicpm3_biases": ("minicpm3", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "youtu_untied_halves": (
        "youtu",
        {"tie_word_embeddings": False, "rope_interleave": False, "q_lora_rank": None},
    ),
    "glm_two_dense": ("glm4_moe_lite", {"mlp_layer_types": ["dense", "dense", "sparse"]}),
}


def hf_config(family: str, **overrides: Any) -> Any:
    """Give transformers' configuration object of a small model of `family`."""
    from transformers import AutoConfig

    # The library completes rope_parameters in place: give it a copy.
    return AutoConfig.for_model(family, **json.loads(json.dumps({**_SHARED, **_OWN[family], **overrides})))


def hf_class(family: str, part: str) -> Any:
    """Give a class of transformers' module for `family` by the end of its name, such as "Attention"."""
    prefix = {
        "deepseek_v2": "DeepseekV2",
        "deepseek_v3": "DeepseekV3",
        "minicpm3": "MiniCPM3",
        "youtu": "Youtu",
        "glm4_moe_lite": "Glm4MoeLite",
    }[family]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    return getattr(module, prefix + part)


def draw(name: str, shape: tuple[int, ...], tied: bool, generator: torch.Generator) -> torch.Tensor:
    """Draw one float32 tensor by the role that its name tells."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    if name.endswith("e_score_correction_bias"):
        return 0.3 * noise
    if name.endswith(".bias"):
        return 0.2 * noise
    if name.endswith("embed_tokens.weight") and not tied:
        return noise
    gain = 3.0 if name.endswith(("lm_head.weight", "embed_tokens.weight", "mlp.gate.weight")) else 1.5
    return noise * gain / math.sqrt(shape[-1])


def make_checkpoint(
    path: str | Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shards: int = 1,
    **overrides: Any,
) -> Path:
    """Write a random checkpoint of `family` and give its folder.

    `overrides` are keys of the family's configuration. With `shards` > 1 the tensors are dealt onto
    that many files with an index. The router's correction bias stays float32, as published.
    """
    from transformers import AutoModelForCausalLM

    path = Path(path)
    config = hf_config(family, **overrides)
    # saved once for the names and shapes that the library publishes under, then drawn anew
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(path, max_shard_size="1TB")
    with safe_open(path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: draw(name, shape, config.tie_word_embeddings, generator).to(
            torch.float32 if name.endswith("e_score_correction_bias") else dtype
        )
        for name, shape in shapes.items()
    }
    write_tensors(path, tensors, shards)
    return path


def edit_config(path: str | Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the folder's config.json in place."""
    file = Path(path) / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config, indent=2))


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a folder with the safetensors library."""
    return {
        name: t for file in sorted(Path(path).glob("*.safetensors")) for name, t in load_file(file).items()
    }


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """Replace the folder's weights by `tensors`, in one file or in `shards` files with an index."""
    path = Path(path)
    for old in [*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")]:
        old.unlink()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def append_mtp(path: str | Path, shards: int = 1) -> None:
    """Add one multi-token-prediction layer after the last, in the names of DeepSeek-V3 and GLM."""
    path = Path(path)
    config = json.loads((path / "config.json").read_text())
    last, hidden = config["num_hidden_layers"], config["hidden_size"]
    tensors = read_tensors(path)
    start = f"model.layers.{last - 1}."
    layer = {
        n.replace(start, f"model.layers.{last}."): t.clone()
        for n, t in tensors.items()
        if n.startswith(start)
    }
    head = f"model.layers.{last}"
    layer |= {
        f"{head}.eh_proj.weight": torch.zeros(hidden, 2 * hidden),
        f"{head}.enorm.weight": torch.ones(hidden),
        f"{head}.hnorm.weight": torch.ones(hidden),
        f"{head}.shared_head.norm.weight": torch.ones(hidden),
        f"{head}.shared_head.head.weight": torch.zeros(config["vocab_size"], hidden),
        f"{head}.embed_tokens.weight": torch.zeros(config["vocab_size"], hidden),
    }
    edit_config(path, lambda c: c.update(num_nextn_predict_layers=1))
    write_tensors(path, tensors | layer, shards)


def to_fp8(path: str | Path, shards: int = 1) -> dict[str, torch.Tensor]:
    """Store the linear weights as DeepSeek-V3 does and give what a reader must get back, in float32.

    Each block of 128 x 128 (ragged at the edges) is divided by its scale, the scale stands beside
    the weight as `weight_scale_inv`; embedding, head, norms and the router stay as they are.
    """
    tensors, expected = read_tensors(path), {}
    for name, weight in list(tensors.items()):
        if not name.endswith("_proj.weight") and not name.endswith("_with_mqa.weight"):
            expected[name] = weight
            continue
        rows, columns = weight.shape
        grid = (-(-rows // 128), -(-columns // 128))
        scale = torch.empty(grid, dtype=torch.float32)
        stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        for i in range(grid[0]):
            for j in range(grid[1]):
                block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
                scale[i, j] = weight[block].float().abs().max() / 448.0
                stored[block] = (weight[block].float() / scale[i, j]).to(torch.float8_e4m3fn)
        spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        tensors[name], tensors[f"{name}_scale_inv"] = stored, scale
        expected[name] = stored.float() * spread
    fp8 = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    edit_config(path, lambda c: c.update(quantization_config=fp8))
    write_tensors(path, tensors, shards)
    return expected
