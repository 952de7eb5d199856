"""Measure transformers, eager: PyTorch's own kernels, its latent cache expanded anew every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import measure
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


class Eager:
    """A model and a cache of one sequence."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="eager", local_files_only=True
        ).eval()
        self.config = self.model.config
        self.vocab_size: int = self.config.vocab_size
        self.cache = DynamicCache(config=self.config)

    def fill(self, depth: int) -> None:
        """Put `depth` random rows into every layer's cache: the latent, and the rotary key."""
        self.cache = DynamicCache(config=self.config)
        generator = torch.Generator().manual_seed(0)
        for layer in range(self.config.num_hidden_layers if depth else 0):
            latent, rope = (
                torch.randn((1, 1, depth, width), generator=generator).to(self.model.dtype)
                for width in (self.config.kv_lora_rank, self.config.qk_rope_head_dim)
            )
            self.cache.update(latent, rope, layer)

    def decode(self, ids: Sequence[int]) -> torch.Tensor:
        """Append `ids` and give the last one's logits, [V]."""
        with torch.inference_mode():
            out = self.model(
                torch.tensor([list(ids)]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        logits: torch.Tensor = out.logits[0, -1]
        return logits


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Eager(args.model, getattr(torch, args.dtype))
    config = engine.config
    row = config.kv_lora_rank + config.qk_rope_head_dim
    about = measure.About(
        peer="transformers",
        version=transformers.__version__,
        build=f"torch {torch.__version__}",
        shape=args.shape,
        weights=args.dtype,
        cache=args.dtype,
        options="eager",
        cache_bytes_per_token=config.num_hidden_layers * row * engine.model.dtype.itemsize,
    )
    measure.run(engine, about, args)


if __name__ == "__main__":
    main()
