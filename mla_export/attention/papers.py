"""What the papers say of a cache's size, beside which the measured figures stand.

DeepSeek-V2 (arXiv 2405.04434): elements a token and layer, section 2.1.4, table 1, with d_h channels a head;
and in the abstract "reduces the KV cache by 93.3%", against DeepSeek 67B (arXiv 2401.02954: 95 layers,
grouped queries with 8 groups of 128 channels). The elements alone are 82.2 % fewer. With the 6 bits of each
that DeepSeek-V2 was deployed with (section 3.2.3: on average), against 16, it is the 93.3 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mla_graphs.baselines import Kind, Shape

DEEPSEEK_67B = 2 * 8 * 128 * 95  # elements a token, all layers
DEEPSEEK_V2 = (512 + 64) * 60
BITS_67B, BITS_V2 = 16, 6
SAID = 0.933


def elements(shape: Shape, kind: Kind) -> int | None:
    """Give elements a token and layer by the paper's table 1, d_h = D; None for what it does not list."""
    size = shape.v_head_dim
    return {
        "mha": 2 * shape.num_attention_heads * size,
        "gqa": 2 * shape.groups * size,
        "mqa": 2 * size,
        "expanded": None,
        "mla": shape.kv_lora_rank + shape.qk_rope_head_dim,
    }[kind]


def elements_saved() -> float:
    """Give the share of elements that DeepSeek-V2 caches less than DeepSeek 67B."""
    return 1 - DEEPSEEK_V2 / DEEPSEEK_67B


def bits_saved() -> float:
    """Give the same share of bits, each model's elements as it had them."""
    return 1 - DEEPSEEK_V2 * BITS_V2 / (DEEPSEEK_67B * BITS_67B)
