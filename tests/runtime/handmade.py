"""A tiny bundle written by hand, in the contract of design.md: one attention head over latent and rope.

It needs neither torch nor the exporter, so that the runtime is tested apart from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import parser

from mla_runtime.manifest import digest

V, H, C, R, L, POSITIONS = 61, 16, 12, 4, 2, 512
CHUNK = 7


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embed": (V, H), "position": (POSITIONS, H), "head": (H, V)}
    for i in range(L):
        shapes |= {f"wl{i}": (H, C), f"wr{i}": (H, R), f"ql{i}": (H, C), f"qr{i}": (H, R), f"wo{i}": (C, H)}
    made = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, array in made.items():
        if name not in ("embed", "position"):
            array /= np.float32(array.shape[0] ** 0.5)
    return made


def graph_text(dtype: str = "float") -> str:
    """The graph in ONNX's text form. `dtype` is that of the cache rows."""
    past = "".join(f", {dtype}[B,T,{C}] past_{i}_latent, {dtype}[B,T,{R}] past_{i}_rope" for i in range(L))
    present = "".join(
        f", {dtype}[B,S,{C}] present_{i}_latent, {dtype}[B,S,{R}] present_{i}_rope" for i in range(L)
    )
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    model (int64[B,S] input_ids, int64[B,S] position_ids, int64[B] past_lengths, int64[B] new_lengths,
           int64[N] logit_rows{past}) => (float[N,{V}] logits{present})
    {{
      zero = Constant<value = int64[1] {{0}}>()
      one = Constant<value = int64[1] {{1}}>()
      zero0 = Constant<value = int64 {{0}}>()
      one0 = Constant<value = int64 {{1}}>()
      low = Constant<value = float {{-1e30}}>()
      nothing = Constant<value = float {{0.0}}>()
      S1 = Shape<start = 1, end = 2>(input_ids)
      T1 = Shape<start = 1, end = 2>(past_0_latent)
      S0 = Squeeze(S1)
      T0 = Squeeze(T1)
      s = Range(zero0, S0, one0)
      t = Range(zero0, T0, one0)
      past_count = Unsqueeze(past_lengths, one)
      past_seen2 = Less(t, past_count)
      past_seen = Unsqueeze(past_seen2, one)
      new_count = Unsqueeze(new_lengths, one)
      new_seen2 = Less(s, new_count)
      new_seen3 = Unsqueeze(new_seen2, one)
      s_column = Unsqueeze(s, one)
      causal = LessOrEqual(s, s_column)
      new_seen = And(new_seen3, causal)
      e = Gather(embed, input_ids)
      p = Gather(position, position_ids)
      x0 = Add(e, p)
    """
    for i in range(L):
        text += f"""
      latent{i} = MatMul(x{i}, wl{i})
      rope{i} = MatMul(x{i}, wr{i})
      present_{i}_latent = Cast<to = {_onnx(dtype)}>(latent{i})
      present_{i}_rope = Cast<to = {_onnx(dtype)}>(rope{i})
      old_latent{i} = Cast<to = 1>(past_{i}_latent)
      old_rope{i} = Cast<to = 1>(past_{i}_rope)
      new_latent{i} = Cast<to = 1>(present_{i}_latent)
      new_rope{i} = Cast<to = 1>(present_{i}_rope)
      ql_{i} = MatMul(x{i}, ql{i})
      qr_{i} = MatMul(x{i}, qr{i})
      past_latent_t{i} = Transpose<perm = [0, 2, 1]>(old_latent{i})
      past_rope_t{i} = Transpose<perm = [0, 2, 1]>(old_rope{i})
      new_latent_t{i} = Transpose<perm = [0, 2, 1]>(new_latent{i})
      new_rope_t{i} = Transpose<perm = [0, 2, 1]>(new_rope{i})
      a{i} = MatMul(ql_{i}, past_latent_t{i})
      b{i} = MatMul(qr_{i}, past_rope_t{i})
      c{i} = MatMul(ql_{i}, new_latent_t{i})
      d{i} = MatMul(qr_{i}, new_rope_t{i})
      past_scores_raw{i} = Add(a{i}, b{i})
      new_scores_raw{i} = Add(c{i}, d{i})
      past_scores{i} = Where(past_seen, past_scores_raw{i}, low)
      new_scores{i} = Where(new_seen, new_scores_raw{i}, low)
      scores{i} = Concat<axis = -1>(past_scores{i}, new_scores{i})
      probabilities{i} = Softmax<axis = -1>(scores{i})
      sizes{i} = Concat<axis = 0>(T1, S1)
      past_p{i}, new_p{i} = Split<axis = -1>(probabilities{i}, sizes{i})
      past_out{i} = MatMul(past_p{i}, old_latent{i})
      new_out{i} = MatMul(new_p{i}, new_latent{i})
      out{i} = Add(past_out{i}, new_out{i})
      projected{i} = MatMul(out{i}, wo{i})
      squashed{i} = Tanh(projected{i})
      x{i + 1} = Add(x{i}, squashed{i})
        """
    return (
        text
        + f"""
      flat_shape = Constant<value = int64[2] {{-1, {H}}}>()
      flat = Reshape(x{L}, flat_shape)
      chosen = Gather(flat, logit_rows)
      logits = MatMul(chosen, head)
    }}
    """
    )


def _onnx(dtype: str) -> int:
    return {"float": 1, "float16": 10}[dtype]


def _save_graph(folder: Path, name: str, arrays: dict[str, np.ndarray], dtype: str) -> None:
    model = parser.parse_model(graph_text(dtype))
    offset = 0
    for key, array in arrays.items():
        tensor = onnx.TensorProto(
            name=key, data_type=1, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL
        )
        for entry, value in (("location", "weights.data"), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=entry, value=str(value))
        model.graph.initializer.append(tensor)
        offset += array.nbytes
    (folder / name).write_bytes(model.SerializeToString())


def make_bundle(
    folder: Path, *, cache: str = "float32", files: Mapping[str, str] | None = None, **changes: Any
) -> Path:
    """Write the bundle and `files` into `folder`; `changes` replace top-level entries of the manifest."""
    folder.mkdir(parents=True)
    for name, text in (files or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    arrays = weights()
    (folder / "weights.data").write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    dtype = {"float32": "float", "float16": "float16"}[cache]
    for name in ("step.onnx", "prompt.onnx"):
        _save_graph(folder, name, arrays, dtype)
    write_manifest(folder, manifest(cache) | changes)
    return folder


def manifest(cache: str = "float32") -> dict[str, Any]:
    scalars = [("input_ids", ["B", "S"]), ("position_ids", ["B", "S"]), ("past_lengths", ["B"])]
    scalars += [("new_lengths", ["B"]), ("logit_rows", ["N"])]
    return {
        "format": 1,
        "generator": {"mla-export": "0.1.0"},
        "model": {
            "name": "handmade",
            "family": "none",
            "layers": L,
            "vocab_size": V,
            "max_context": POSITIONS,
            "parameters": 1000,
            "geometry": {},
        },
        "target": "portable",
        "opset": 20,
        "absorb": "factored",
        "precision": {
            "compute": "float32",
            "weights": "float32",
            "head": "float32",
            "group": None,
            "method": None,
            "activations": "float32",
            "cache": cache,
            "rope": cache,
        },
        "graphs": {"step": {"file": "step.onnx"}, "prompt": {"file": "prompt.onnx", "chunk": CHUNK}},
        "inputs": [{"name": name, "dtype": "int64", "shape": shape} for name, shape in scalars],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", V]}],
        "cache": [
            {
                "layer": i,
                "kind": "append",
                "holds": holds,
                "past": f"past_{i}_{holds}",
                "present": f"present_{i}_{holds}",
                "dtype": cache,
                "row": [width],
                "row_format": holds,
            }
            for i in range(L)
            for holds, width in (("latent", C), ("rope", R))
        ],
        "text": {
            "tokenizer": None,
            "chat_template": None,
            "tokens": {},
            "bos_id": None,
            "add_bos": False,
            "stop_ids": [0],
        },
        "source": {},
        "calibration": None,
        "canary": None,
        "files": {},
    }


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write `content` as bundle.json, with sizes and hashes of the files that lie there."""
    content["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != "bundle.json"
    }
    content["sha256"] = digest(content)
    (folder / "bundle.json").write_text(json.dumps(content))


def canary(prompt: list[int], steps: list[int]) -> dict[str, Any]:
    """A canary with the logits that the bundle must give, for `make_bundle`."""
    logits = reference([*prompt, *steps])[len(prompt) - 1 :]
    tops = [[[int(i), float(row[i])] for i in np.argsort(row)[::-1][:4]] for row in logits]
    return {"prompt_ids": prompt, "step_ids": steps, "top": tops}


def reference(ids: list[int]) -> np.ndarray:
    """Logits [S, V] after every id of one sequence, in float64 and without a cache."""
    w = {name: array.astype(np.float64) for name, array in weights().items()}
    x = w["embed"][ids] + w["position"][: len(ids)]
    seen = np.tril(np.ones((len(ids), len(ids)), dtype=bool))
    for i in range(L):
        latent, rope = x @ w[f"wl{i}"], x @ w[f"wr{i}"]
        scores = (x @ w[f"ql{i}"]) @ latent.T + (x @ w[f"qr{i}"]) @ rope.T
        scores = np.where(seen, scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.tanh((p @ latent) @ w[f"wo{i}"])
    return x @ w["head"]
