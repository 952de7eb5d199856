"""Finding the value that a float16 graph cannot hold, before a device does.

ONNX Runtime's CPU provider computes float16 graphs in float32, so that what overflows on a card passes
here unseen. Asked for as outputs, the values are rounded to float16, and an overflow shows as infinity.
"""

from __future__ import annotations

from mla_export.canary import token_ids
from mla_export.layerwise import Call, Layerwise

# The step graph gathers experts for each.
TOKENS = 2


def check_range(model: Layerwise) -> None:
    """Run two tokens through the step graph's layers and look at what each operator gives.

    Raises `ExportError` naming the first operator whose result is not finite: its name says the layer.
    """
    tokens = min(TOKENS, model.plan.geometry.max_context)
    model.logits([Call("step", token_ids(tokens, model.plan.geometry.vocab_size), 0)], watched=True)
