"""Sessions whose memory, kernels and copies are a device's, with ONNX Runtime in place of the engines.

It needs no TensorRT, so that it runs on cards that a flavour does not take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_runtime.sampling import Sampling
from tests.runtime.rig import make_rig, same_logits, same_rows


@pytest.mark.parametrize("name", ["float", "int8"])
@pytest.mark.parametrize("batch", [1, 4])
def test_sessions_equal_onnx_runtime(
    device: Any, bundles: dict[str, Path], tmp_path: Path, name: str, batch: int
) -> None:
    rig = make_rig(bundles[name], tmp_path / "engines", device=device)
    rig.trt.capturable = False  # ONNX Runtime computes on the processor
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 60, count).tolist() for count in (240, 3, 17, 90)[:batch]]
    with rig.ort.session(batch, 400) as want, rig.model.session(batch, 400) as found:
        same_logits(found.prefill(prompts), want.prefill(prompts), name)
        for step in range(20):  # past 256 rows
            ids = [7 + step, None if step % 3 == 1 else 9, 3, 11][:batch]
            same_logits(found.step(ids), want.step(ids), name)
        same_rows(want, found, name)
    for sampling in (Sampling(), Sampling(0.9, top_k=5, seed=2)):
        one, other = (
            model.complete(prompts, max_tokens=12, sampling=sampling, stop_ids=[])
            for model in (rig.ort, rig.model)
        )
        assert one == other
    rig.model.close()
