"""Show that the peers compute what the checkpoint says, so that what is timed is the same model.

    python benchmarks/peers/check.py

Small random models, every weight drawn, norms that are not one. A prompt goes in at once and further
tokens one by one; the logits after the prompt and after each token are compared with transformers' in
float32. llama.cpp is then asked for the same with quantised weights as the file has them and laid out
anew for the processor, which are other kernels.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf_file
import numpy as np
import torch
from llama import Llama
from measure import Engine
from run_mobius import Mobius
from transformers import AutoModelForCausalLM

from mla_export.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
PROMPT, STEPS, ROWS = 40, 24, 256
# greatest difference, of the logits' spread: float32 sums of some hundred products in another order
LIMIT = 2e-4
# root mean square, likewise: both kernels round activations to 8 bits, but not always the same way, as
# their sums differ in the last bit; that noise alone is 0.04 to 0.1 of these models' logits against the
# same weights in float32, and a wrong kernel gives 1.4
QUANTISED_LIMIT = 0.05
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "youtu": ("youtu", {"tie_word_embeddings": False}),
    "deepseek_v2": ("deepseek_v2", {}),
    "deepseek_v3 without groups": ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
}
# widths that quantised blocks of 32 and the kernels of laid-out weights take
WIDE: dict[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
}
WIDE_CASES: dict[str, tuple[str, dict[str, object]]] = {
    "youtu": ("youtu", WIDE | {"tie_word_embeddings": False, "q_lora_rank": 128}),
    "deepseek_v2": ("deepseek_v2", WIDE | {"moe_intermediate_size": 128}),
}


def logits(engine: Engine, ids: Sequence[int]) -> np.ndarray:
    """Give the logits after the prompt and after each further token, [1 + STEPS, V]."""
    engine.fill(0)
    found = [np.array(engine.decode(ids[:PROMPT]))]
    found += [np.array(engine.decode([token])) for token in ids[PROMPT:]]
    return np.stack(found)


def reference(checkpoint: Path, ids: Sequence[int]) -> np.ndarray:
    """Give what transformers says, in float32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([list(ids)])).logits[0, PROMPT - 1 :].numpy()
    return found


def against_reference(checkpoint: Path, name: str, threads: int) -> Iterator[tuple[str, float, float]]:
    """Compare every engine that can do the model with transformers."""
    model = Checkpoint.open(checkpoint)
    ids = np.random.default_rng(0).integers(model.config["vocab_size"], size=PROMPT + STEPS).tolist()
    expected = reference(checkpoint, ids)
    gguf = checkpoint / "f32.gguf"
    gguf_file.write(model, gguf, "f32")
    with Llama(gguf, rows=ROWS, threads=threads, cache="f32", flash=False) as llama:
        yield f"llama.cpp, {name}, float32", greatest(logits(llama, ids), expected), LIMIT
    if model.config["model_type"] == "youtu":
        command = [sys.executable, "-m", "mobius", "build", "--config", str(checkpoint), "--dtype", "f32"]
        subprocess.run([*command, str(checkpoint / "mobius")], check=True, capture_output=True)
        mobius = Mobius(checkpoint / "mobius" / "model.onnx", threads)
        yield f"mobius-onnx, {name}, float32", greatest(logits(mobius, ids), expected), LIMIT


def against_itself(checkpoint: Path, name: str, threads: int) -> Iterator[tuple[str, float, float]]:
    """Compare llama.cpp's quantised weights as stored with the same laid out anew."""
    model = Checkpoint.open(checkpoint)
    ids = np.random.default_rng(0).integers(model.config["vocab_size"], size=PROMPT + STEPS).tolist()
    for weights in ("q8_0", "q4_0"):
        gguf = checkpoint / f"{weights}.gguf"
        gguf_file.write(model, gguf, weights)
        found = []
        for repack in (False, True):
            with Llama(gguf, rows=ROWS, threads=threads, repack=repack) as llama:
                found.append(logits(llama, ids))
        square = float(np.sqrt(np.mean((found[1] - found[0]) ** 2)) / found[0].std())
        yield f"llama.cpp, {name}, {weights} laid out anew", square, QUANTISED_LIMIT


def greatest(found: np.ndarray, expected: np.ndarray) -> float:
    """Give the greatest difference, in units of the expected logits' standard deviation."""
    return float(np.abs(found - expected).max() / expected.std())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.checkpoints import make_checkpoint  # type: ignore[import-untyped]

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for compare, cases in ((against_reference, CASES), (against_itself, WIDE_CASES)):
            for name, (family, changes) in cases.items():
                checkpoint = Path(folder) / compare.__name__ / family
                make_checkpoint(checkpoint, family, **changes)
                for what, found, limit in compare(checkpoint, name, args.threads):
                    print(f"{what}: {found:.1e} of the logits' spread, {limit:.0e} allowed", flush=True)
                    failed += found > limit
    print(f"{failed} FAILED" if failed else "all passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
