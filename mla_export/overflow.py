"""Finding the value that a float16 graph cannot hold, before a device does.

ONNX Runtime's CPU provider computes float16 graphs in float32, so that what overflows on a card passes
here unseen. Asked for as outputs, the values are rounded to float16, and an overflow shows as infinity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from mla_graphs.contract import Contract
from mla_runtime.errors import ExportError

# The step graph gathers experts for each.
TOKENS = 2


def check_range(step: Path, signature: Contract, vocab_size: int) -> None:
    """Run two tokens through the float16 graph `step` and look at what each operator gives.

    Raises `ExportError` naming the first operator whose result is not finite: its name says the layer.
    """
    import onnxruntime

    model = ir.load(step)
    graph = model.graph
    taken = {value.name for value in graph.outputs}
    halves = [
        value
        for node in graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT16 and value.name not in taken
    ]
    graph.outputs.extend(halves)
    probe = step.with_name("range.onnx")
    probe.write_bytes(ir.to_proto(model).SerializeToString())
    try:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])
        names = [str(value.name) for value in halves]
        for name, result in zip(names, session.run(names, _feeds(signature, vocab_size)), strict=True):
            if not np.isfinite(result).all():
                msg = (
                    f"{name}: its result is not finite in float16 (limit {np.finfo(np.float16).max:.0f}) for "
                    f"the first tokens of a text; export with --dtype fp32"
                )
                raise ExportError(msg)
    finally:
        probe.unlink()


def _feeds(signature: Contract, vocab_size: int) -> dict[str, np.ndarray]:
    ids = np.array([[(7919 * i + 17) % vocab_size for i in range(TOKENS)]], dtype=np.int64)
    feeds = {
        "input_ids": ids,
        "position_ids": np.arange(TOKENS, dtype=np.int64)[None],
        "past_lengths": np.array([0], dtype=np.int64),
        "new_lengths": np.array([TOKENS], dtype=np.int64),
        "logit_rows": np.array([TOKENS - 1], dtype=np.int64),
    }
    for spec in signature.cache:
        row = [size for size in spec.past.shape[2:] if isinstance(size, int)]
        feeds[spec.past.name] = np.zeros((1, 1, *row), dtype=spec.past.dtype)
    return feeds
