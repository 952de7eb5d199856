"""Measure a bundle of mla-export through mla_runtime, in the loop that measures the peers."""

from __future__ import annotations

from collections.abc import Sequence

import measure
import numpy as np
import onnxruntime

import mla_runtime
from mla_runtime import Model


class Ours:
    """A model and a session of one sequence."""

    def __init__(self, model: Model, rows: int) -> None:
        self.session = model.session(max_context=rows)
        self.vocab_size = model.bundle.model.vocab_size

    def fill(self, depth: int) -> None:
        """Have `depth` random rows in the cache."""
        self.session.fill(depth)

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids` and give the last one's logits, [1, V]; a step needs a row to look at."""
        if len(ids) > 1 or self.session.lengths == (0,):
            return self.session.prefill([list(ids)])
        return self.session.step(list(ids))


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="their name in the results")
    parser.add_argument("--cache", required=True, help="its name in the results")
    args = parser.parse_args()
    with mla_runtime.open(args.model, threads=args.threads) as model:
        bundle = model.bundle
        about = measure.About(
            peer="mla-export",
            version=bundle.manifest.generator["mla-export"],
            build=f"onnxruntime {onnxruntime.__version__}",
            shape=args.shape,
            weights=args.weights,
            cache=args.cache,
            options=f"{bundle.manifest.absorb}, {bundle.manifest.target}",
            cache_bytes_per_token=sum(tensor.row_bytes for tensor in bundle.cache),
        )
        measure.run(Ours(model, measure.rows(args)), about, args)


if __name__ == "__main__":
    main()
