"""Measure a graph of mobius-onnx on ONNX Runtime: attention expanded, keys and values a head cached."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import measure
import numpy as np
import onnxruntime


class Mobius:
    """A session, and the cache of one sequence as the graph's own outputs, handed back as inputs."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # every step has other shapes: a memory plan a shape would only pile up
        options.enable_mem_pattern = False
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.past = {i.name: i.shape for i in self.session.get_inputs() if i.name.startswith("past_key")}
        outputs = [o.name for o in self.session.get_outputs()]
        self.present = {name: name.replace("past_key_values", "present") for name in self.past}
        self.logits = next(name for name in outputs if name not in self.present.values())
        self.vocab_size = int(self.session.get_outputs()[outputs.index(self.logits)].shape[-1])
        self.cache: dict[str, onnxruntime.OrtValue] = {}
        self.length = 0

    def row_bytes(self) -> int:
        """Bytes of one token in the cache, all layers, in float32."""
        return sum(4 * int(shape[1]) * int(shape[3]) for shape in self.past.values())

    def fill(self, depth: int) -> None:
        """Have `depth` random rows in every layer's keys and values."""
        random = np.random.default_rng(0)
        self.cache = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(
                random.standard_normal((1, shape[1], depth, shape[3]), dtype=np.float32)
            )
            for name, shape in self.past.items()
        }
        self.length = depth

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids` and give the last one's logits, [V]."""
        binding = self.session.io_binding()
        new, total = len(ids), self.length + len(ids)
        binding.bind_cpu_input("input_ids", np.array([ids], dtype=np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, total), dtype=np.int64))
        binding.bind_cpu_input("position_ids", np.arange(self.length, total, dtype=np.int64)[None])
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in (self.logits, *self.present.values()):
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        self.cache = dict(zip(self.past, presents, strict=True))
        self.length = total
        row: np.ndarray = logits.numpy()[0, new - 1 if logits.shape()[1] == new else -1]
        return row


def main() -> None:
    args = measure.parser(__doc__.splitlines()[0]).parse_args()
    engine = Mobius(args.model, args.threads)
    about = measure.About(
        peer="mobius-onnx",
        version=version("mobius-onnx"),
        build=f"onnxruntime {onnxruntime.__version__}",
        shape=args.shape,
        weights="float32",
        cache="float32",
        options="expanded",
        cache_bytes_per_token=engine.row_bytes(),
    )
    measure.run(engine, about, args)


if __name__ == "__main__":
    main()
