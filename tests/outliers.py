"""The trained sample with a massive activation: a latent channel in which one token outdoes all others.

As large models have it (Sun et al., Massive Activations in Large Language Models, arXiv 2402.17762). A
channel of the residual stream is kept for that token, a channel of each layer's latent reads nothing else,
and the latent norm's weight makes it large. W_UK and W_UV are smaller there by as much, so that what
attention computes is of ordinary size, and the model as good as without.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.checkpoints import read_tensors, write_tensors
from tests.oracle import rms_norm
from tests.parity.witness import Witness

RESIDUAL, LATENT = 0, 0  # the channels that are kept for the token
SHARE = 1 / 8  # of the energy of its latent, before the norm


def with_outliers(sample: Path, out: Path, token: int, factor: float) -> Path:
    """Copy `sample` to `out`, with latents of `token` about `factor` times as large as others."""
    shutil.copytree(sample, out)
    tensors = {name: tensor.float() for name, tensor in read_tensors(out).items()}
    embed = tensors["model.embed_tokens.weight"]
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[RESIDUAL] = 0  # nothing is added to the channel
        elif tensor.ndim == 2 and tensor.shape[1] == embed.shape[1]:
            tensor[:, RESIDUAL] = 0  # nothing reads it, and no embedding has it
    embed[token, RESIDUAL] = embed[token].square().mean().sqrt()
    write_tensors(out, tensors)

    w = Witness(out)
    # as the token is by itself, at position 0; behind others it is much the same
    states = [embed[token].double().numpy(), *(block[0] for block in w.oracle([token]).blocks)]
    for layer in range(w.geometry.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        norms = w.tensors[f"{prefix}input_layernorm.weight"]
        x = rms_norm(states[layer], norms, w.geometry.rms_norm_eps)
        down, norm, up = (
            tensors[f"{prefix}self_attn.{name}.weight"]
            for name in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
        )
        down[LATENT] = 0
        others = down[: w.geometry.kv_lora_rank].double().numpy() @ x
        down[LATENT, RESIDUAL] = float(np.sqrt(SHARE / (1 - SHARE) * (others**2).sum()) / x[RESIDUAL])
        gain = factor * norm.abs().max() / norm[LATENT]
        norm[LATENT] *= gain
        up[:, LATENT] /= gain
    write_tensors(out, tensors)
    return out
