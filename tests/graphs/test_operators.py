"""Single operators, lowered to `portable`, run by ONNX Runtime and held against plain NumPy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_graphs import ops
from mla_graphs.lowering import lower

RNG = np.random.default_rng(7)


def run(
    op_type: str, phase: str, inputs: dict[str, np.ndarray], outputs: int = 1, **attributes
) -> list[np.ndarray]:
    """Lower one operator in a graph of its own and run it."""
    values = {
        name: ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype))
        )
        for name, array in inputs.items()
    }
    made = [ir.Value(name=f"out.{i}") for i in range(outputs)]
    node = ir.node(
        op_type, list(values.values()), {"name": "x", **attributes}, domain=ops.DOMAIN, outputs=made
    )
    graph = ir.Graph(
        list(values.values()), made, nodes=[node], opset_imports={"": 20, ops.DOMAIN: 1}, name="one"
    )
    model = lower(ir.Model(graph, ir_version=10), "portable", phase)
    proto = ir.to_proto(model)
    types = {"x.expert_ids": 7}
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = types.get(
            output.name, 7 if outputs == 2 and output.name == "out.0" else 1
        )
    return ort.InferenceSession(proto.SerializeToString()).run(None, inputs)


def route(x, weight, bias, *, scoring, groups, top_groups, group_score, top_k, normalize, scaling):
    """DeepSeek's gate, a token at a time."""
    ids, weights = [], []
    for row in x.astype(np.float64):
        logits = row @ weight.astype(np.float64)
        scores = 1 / (1 + np.exp(-logits)) if scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
        choice = scores + (0 if bias is None else bias)
        if groups:
            grouped = choice.reshape(groups, -1)
            ranks = grouped.max(1) if group_score == "max" else np.sort(grouped, 1)[:, -2:].sum(1)
            closed = np.argsort(-ranks)[top_groups:]
            grouped[closed] = -np.inf
            choice = grouped.reshape(-1)
        chosen = np.argsort(-choice)[:top_k]
        w = scores[chosen]
        ids.append(chosen)
        weights.append((w / w.sum() if normalize else w) * scaling)
    return np.array(ids), np.array(weights)


@pytest.mark.parametrize(
    ("scoring", "bias", "groups", "top_groups", "group_score", "normalize"),
    [
        ("softmax", False, 0, 0, "none", 0),
        ("softmax", False, 4, 2, "max", 0),
        ("sigmoid", True, 4, 2, "top2", 1),
        ("sigmoid", True, 0, 0, "none", 1),
        ("sigmoid", False, 4, 1, "top2", 0),
    ],
)
def test_route(scoring, bias, groups, top_groups, group_score, normalize):
    x = RNG.normal(size=(40, 10)).astype(np.float32)
    weight = RNG.normal(size=(10, 12)).astype(np.float32)
    correction = (RNG.normal(size=12) * 0.5).astype(np.float32)
    rest = {
        "scoring": scoring, "groups": groups, "top_groups": top_groups, "group_score": group_score,
        "top_k": 3, "normalize": normalize, "scaling": 2.5,
    }  # fmt: skip
    inputs = {"x": x, "weight": weight, **({"correction_bias": correction} if bias else {})}
    ids, weights = run("Route", "step", inputs, outputs=2, experts=12, **rest)
    wanted_ids, wanted = route(x, weight, correction if bias else None, **rest)
    assert (ids == wanted_ids).all()
    # ONNX Runtime computes Sigmoid by a rational approximation, right to 1e-7 of its range, not of its value.
    np.testing.assert_allclose(weights, wanted, rtol=1e-5, atol=2.5 * 2e-7)


def experts(x, ids, weights, counts, gate_up, down):
    y = np.zeros_like(x, dtype=np.float64)
    for n in np.flatnonzero(counts):
        for e, w in zip(ids[n], weights[n], strict=True):
            gate, up = np.split(x[n].astype(np.float64) @ gate_up[e], 2)
            y[n] += w * ((gate / (1 + np.exp(-gate)) * up) @ down[e])
    return y


@pytest.mark.parametrize("phase", ["step", "prompt"])
@pytest.mark.parametrize("tokens", [1, 3, 33, 200])
@pytest.mark.parametrize("padding", ["none", "some", "all"])
@pytest.mark.parametrize("spread", ["even", "one expert"])
def test_experts(phase, tokens, padding, spread):
    top_k, number, hidden, width = 3, 8, 12, 6
    x = RNG.normal(size=(tokens, hidden)).astype(np.float32)
    ids = np.array([RNG.permutation(number)[:top_k] for _ in range(tokens)])
    if spread == "one expert":  # all in the last expert's tiles, but for what must differ within a token
        ids[:] = [number - 1, 0, 1]
    weights = RNG.random((tokens, top_k)).astype(np.float32)
    counts = {"none": np.ones(tokens, bool), "some": RNG.random(tokens) < 0.6, "all": np.zeros(tokens, bool)}[
        padding
    ]
    inputs = {
        "x": x, "ids": ids, "weights": weights, "counts": counts,
        "gate_up": RNG.normal(size=(number, hidden, 2 * width)).astype(np.float32),
        "down": RNG.normal(size=(number, width, hidden)).astype(np.float32),
    }  # fmt: skip
    x[~counts] = 1e30  # a padding row that reached an expert would show as inf or NaN, and 0 · inf as NaN
    if phase == "step":
        x[~counts] = 1e3
    (y,) = run("Experts", phase, inputs, experts=number, top_k=top_k)
    wanted = experts(**inputs)
    assert (y[~counts] == 0).all()
    np.testing.assert_allclose(y[counts], wanted[counts], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", [1e30, -3e38])
def test_attention_selects_what_it_sees(poison):
    """Rows that do not count may hold anything finite: the result is the same to the last bit."""
    b, h, s, t, c, r = 2, 3, 4, 9, 16, 8
    past_lengths, new_lengths = np.array([5, 0]), np.array([4, 2])

    def visible():
        shape = {
            "input_ids": np.zeros((b, s), np.int64),
            "past_lengths": past_lengths,
            "new_lengths": new_lengths,
        }
        past = np.zeros((b, t, c), np.float32)
        y = np.zeros((b, 1, s, t + s), bool)
        for i in range(b):
            for q in range(s):
                y[i, 0, q, : past_lengths[i]] = True
                y[i, 0, q, t : t + min(q + 1, new_lengths[i])] = True
        return shape, past, y

    _, _, seen = visible()
    shapes = {
        "q_latent": (b, h, s, c),
        "q_rope": (b, h, s, r),
        "past_latent": (b, t, c),
        "past_rope": (b, t, r),
    }
    shapes |= {"latent": (b, s, c), "rope": (b, s, r)}
    inputs = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    masks = {
        "visible": seen, "split": np.array([t]),
        "fold": np.array([0, h * s, -1]), "unfold": np.array([0, h, s, -1]),
    }  # fmt: skip
    clean = run("LatentAttention", "step", inputs | masks, scale=0.3, heads=h)[0]
    for i in range(b):
        inputs["past_latent"][i, past_lengths[i] :] = poison
        inputs["past_rope"][i, past_lengths[i] :] = poison
        inputs["latent"][i, new_lengths[i] :] = poison
        inputs["rope"][i, new_lengths[i] :] = poison
    poisoned = run("LatentAttention", "step", inputs | masks, scale=0.3, heads=h)[0]
    for i in range(b):
        rows = slice(0, new_lengths[i])
        np.testing.assert_array_equal(clean[i, :, rows], poisoned[i, :, rows])
        q = np.concatenate([inputs["q_latent"][i], inputs["q_rope"][i]], -1).astype(np.float64)
        keys = np.concatenate(
            [
                np.concatenate([inputs["past_latent"][i], inputs["past_rope"][i]], -1)[: past_lengths[i]],
                np.concatenate([inputs["latent"][i], inputs["rope"][i]], -1)[: new_lengths[i]],
            ]
        ).astype(np.float64)
        scores = 0.3 * q[:, rows] @ keys.T
        mask = seen[i, 0][rows][:, np.r_[0 : past_lengths[i], t : t + new_lengths[i]]]
        scores = np.where(mask, scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        np.testing.assert_allclose(clean[i, :, rows], p @ keys[:, :c], rtol=1e-4, atol=1e-5)
    assert np.isfinite(clean).all()


@pytest.mark.parametrize("queries", [1, 23, 24, 60])
def test_prompt_attention_is_the_same_whichever_way_it_takes(queries):
    """C = 32, P + D = 28: up to 23 queries attend to the latent rows, from 24 on to what is rebuilt."""
    b, h, t, c, r, p, d = 2, 3, 9, 32, 8, 16, 12
    shapes = {"q_nope": (b, h, queries, p), "q_rope": (b, h, queries, r)}
    shapes |= {
        "past_latent": (b, t, c),
        "past_rope": (b, t, r),
        "latent": (b, queries, c),
        "rope": (b, queries, r),
    }
    shapes |= {"w_uk": (h, p, c), "w_uv": (h, c, d)}
    inputs = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    seen = RNG.random((b, 1, queries, t + queries)) < 0.7
    seen[..., 0] = True
    masks = {
        "visible": seen, "split": np.array([t]),
        "fold": np.array([0, h * queries, -1]), "unfold": np.array([0, h, queries, -1]),
    }  # fmt: skip
    (y,) = run("PromptAttention", "prompt", inputs | masks, scale=0.3, heads=h)
    rows = np.concatenate([inputs["past_latent"], inputs["latent"]], 1).astype(np.float64)[:, None]
    rope = np.concatenate([inputs["past_rope"], inputs["rope"]], 1).astype(np.float64)[:, None]
    keys = rows @ inputs["w_uk"].transpose(0, 2, 1)
    scores = inputs["q_nope"] @ keys.swapaxes(2, 3) + inputs["q_rope"] @ rope.swapaxes(2, 3)
    scores = np.where(seen, 0.3 * scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(y, weights @ (rows @ inputs["w_uv"]), rtol=1e-4, atol=2e-5)
