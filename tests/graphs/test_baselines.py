"""The graphs that MLA is compared with, held against plain NumPy float64 attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from mla_export.attention.cases import drawn_weights, stored, tables
from mla_export.attention.graphs import Graph
from mla_export.costs import cache_row_elements
from mla_graphs.baselines import KINDS, Attention, Shape, core, layer, queries
from mla_graphs.lowering import lower
from tests.baselines import CASES, SHAPE
from tests.graphs import golden
from tests.oracle import rms_norm, rotary_tables, rotate, softmax

TARGETS = {"portable": "int8", "ort-cpu": "uint8"}
INT8 = [case for case in CASES if case[1] != "float32"]
CLOSE = 2e-6  # RMS of an error as a share of the result's RMS: some float32 roundings
TOKENS = 24


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def assert_close(found, wanted, bound=CLOSE):
    assert np.isfinite(found).all()
    assert rms(found - wanted) <= bound * rms(wanted), rms(found - wanted) / rms(wanted)


def attention_of(kind, cache, target="portable", shape=SHAPE):
    return Attention(shape, kind, cache, TARGETS[target])


def weights_of(attention):
    return {**drawn_weights(attention, layer(attention)), **tables(SHAPE, 64)}


def hidden_states(tokens=TOKENS, seed=5):
    return np.random.default_rng(seed).standard_normal((1, tokens, SHAPE.hidden_size)).astype(np.float32)


def empty(attention, batch=1, rows=1):
    found = {}
    for row in attention.rows:
        width = [d for d in row.past.shape[2:] if isinstance(d, int)]
        found[row.past.name] = np.zeros((batch * row.groups, rows, *width), row.past.dtype)
    return found


def span(x, start, count=None):
    tokens = x.shape[1] if count is None else count
    return {
        "hidden": np.ascontiguousarray(x),
        "position_ids": np.arange(start, start + x.shape[1])[None],
        "past_lengths": np.array([start]),
        "new_lengths": np.array([tokens]),
    }


def whole(attention, x):
    """What NumPy float64 makes of hidden states [S,hidden]: output [S,hidden], and rows as float32 caches."""
    w = {name: value.astype(np.float64) for name, value in weights_of(attention).items()}
    s, x = attention.shape, x.astype(np.float64)
    heads, nope, rope = s.num_attention_heads, s.qk_nope_head_dim, s.qk_rope_head_dim
    cos, sin = rotary_tables(s.rotary, rope, np.arange(len(x), dtype=np.float64))

    def turned(y):  # [S,heads,R], whose weights are in halves order already
        return rotate(y, cos[:, None], sin[:, None], interleaved=False)

    def weight(name):
        return w[f"attention.{name}.weight"]

    if attention.kind in ("mha", "gqa", "mqa"):
        q, k, v = (
            (x @ weight(f"{name}_proj")).reshape(len(x), -1, attention.key_dim) for name in ("q", "k", "v")
        )
        q, k = (np.concatenate([y[..., :-rope], turned(y[..., -rope:])], axis=-1) for y in (q, k))
        rows = {"key": k, "value": v}
        k, v = (np.repeat(y, heads // attention.groups, axis=1) for y in (k, v))
    else:
        q = rms_norm(x @ weight("q_down"), weight("q_norm"), s.q_norm_eps) @ weight("q_up")
        q = np.concatenate(
            [
                q[:, : heads * nope].reshape(len(x), heads, nope),
                turned(q[:, heads * nope :].reshape(len(x), heads, rope)),
            ],
            axis=-1,
        )
        down = x @ weight("kv_down")
        latent = rms_norm(down[:, : s.kv_lora_rank], weight("kv_norm"), s.kv_norm_eps)
        shared = turned(down[:, None, s.kv_lora_rank :])
        if attention.kind == "mla":  # unabsorbed here: keys and values are rebuilt
            k = np.einsum("sc,hpc->shp", latent, w["attention.w_uk"])
            v = np.einsum("sc,hcd->shd", latent, w["attention.w_uv"])
            rows = {"latent": latent[:, None], "rope": shared}
        else:
            k, v = ((latent @ weight(f"{n}_up")).reshape(len(x), heads, -1) for n in ("k", "v"))
        k = np.concatenate([k, np.repeat(shared, heads, axis=1)], axis=-1)
        if attention.kind == "expanded":
            rows = {"key": k, "value": v}
    scores = np.einsum("shd,thd->hst", q, k) * attention.softmax_scale
    scores[:, np.triu(np.ones((len(x), len(x)), dtype=bool), 1)] = -np.inf
    context = np.einsum("hst,thd->shd", softmax(scores), v)
    rows = {name: value.transpose(1, 0, 2) for name, value in rows.items()}  # [G,S,·]
    return context.reshape(len(x), -1) @ weight("o_proj"), rows


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_plain_attention(kind, target):
    attention = attention_of(kind, "float32", target)
    x = hidden_states()
    graph = Graph(layer(attention), target, 1)
    found = graph({**weights_of(attention), **empty(attention), **span(x, 0)})
    output, rows = whole(attention, x[0])
    assert_close(found["output"][0], output)
    for name, row in rows.items():
        assert_close(found[f"present.{name}"], row)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_step_after_step_equals_the_whole(kind, cache, target):
    attention = attention_of(kind, cache, target)
    x = hidden_states()
    graph, weights = Graph(layer(attention), target, 1), weights_of(attention)
    at_once = graph({**weights, **empty(attention), **span(x, 0)})
    past, outputs = empty(attention), []
    for start, stop in ((0, 5), (5, 12), *((i, i + 1) for i in range(12, TOKENS))):
        found = graph({**weights, **past, **span(x[:, start:stop], start)})
        outputs.append(found["output"])
        for row in attention.rows:
            old = past[row.past.name][:, :start]
            past[row.past.name] = np.concatenate([old, found[row.present.name]], axis=1)
    # ort-cpu rounds queries too where they meet past rows of 8 bits, and new rows are met as floats
    bound = CLOSE if target == "portable" or cache == "float32" else 2e-2
    assert_close(np.concatenate(outputs, axis=1), at_once["output"], bound)
    for row in attention.rows:
        np.testing.assert_allclose(past[row.past.name], at_once[row.present.name], rtol=1e-5, atol=1)


def drawn(attention, rows=40, seed=3):
    """A query, new rows and past rows of the core, in float32: queries, new, past."""
    rng = np.random.default_rng(seed)
    heads = attention.shape.num_attention_heads
    made = {}
    for spec in queries(attention):
        first = (attention.groups,) if len(spec.shape) == 3 else (1, heads)
        made[spec.name] = rng.standard_normal((*first, 1, spec.shape[-1])).astype(np.float32)
    past = {
        name: (rng.standard_normal((attention.groups, rows, width)) * rng.uniform(0.1, 5, rows)[:, None])
        .astype(np.float32)
        for name, width in attention.widths.items()
    }  # fmt: skip
    return made, past


def run_core(attention, target, made, past, length):
    given = {"position_ids": np.array([[length]]), "past_lengths": np.array([length])}
    given |= {"new_lengths": np.array([1])}
    return Graph(core(attention), target, 1)({**made, **past, **given})["context"][0, :, 0]


def keys_and_values(attention, made, past):
    """Query [H,K], keys [G,T+1,K] and values [G,T+1,D] of the core, in float64; a latent is both."""
    joined = {n: np.concatenate([past[n], made[n]], axis=1).astype(np.float64) for n in attention.widths}
    if attention.kind == "mla":
        query = np.concatenate([made["q_latent"], made["q_rope"]], axis=-1)
        return query[0, :, 0].astype(np.float64), np.concatenate(list(joined.values()), -1), joined["latent"]
    return made["query"][0, :, 0].astype(np.float64), joined["key"], joined["value"]


def plain(attention, query, keys, values):
    """Probabilities [H,T+1] and context [H,·]."""
    share = len(query) // len(keys)
    scores = [q @ keys[h // share].T * attention.softmax_scale for h, q in enumerate(query)]
    p = softmax(np.array(scores))
    return p, np.array([row @ values[h // share] for h, row in enumerate(p)])


def halves(attention, made, past):
    """Half a scale of each row [G,T+1], by kind of row: what a code may be off; 0 in float32."""
    joined = {n: np.concatenate([past[n], made[n]], axis=1) for n in attention.widths}
    return {
        name: np.abs(rows).max(-1).astype(np.float64) / 254 * (1 + 1e-5) * attention.scaled(name)
        for name, rows in joined.items()
    }


def bound_of(attention, made, past, target):
    """How far off the context [H] may be, from the scales of rows, and for ort-cpu of queries too.

    A score is off by at most δ = scale · (Σ|q| · s_k/2), and for a query of 8 bits Σ|k| · s_q/2 more; then no
    probability is off by more than a factor e^2δ. A value is off by s_v/2.
    """
    query, keys, values = keys_and_values(attention, made, past)
    p, _ = plain(attention, query, keys, values)
    half = halves(attention, made, past)
    first, second = attention.widths
    of_value = half[first if attention.kind == "mla" else second]
    width = attention.widths[first]
    bounds = []
    for h, q in enumerate(query):
        g = h // (len(query) // len(keys))
        parts = [(np.abs(q[:width]), half[first][g], keys[g][:, :width])]
        if attention.kind == "mla":
            parts.append((np.abs(q[width:]), half[second][g], keys[g][:, width:]))
        off = np.zeros(keys.shape[1])
        for magnitude, of_row, row in parts:
            off += magnitude.sum() * of_row
            if target == "ort-cpu" and of_row.any():
                off += (np.abs(row) + of_row[:, None]).sum(-1) * magnitude.max() / 254
        factor = np.exp(2 * attention.softmax_scale * off.max())
        largest = np.abs(values[g]).max() + of_value[g].max()
        # probabilities times scales in 16 bits: half a unit of the largest, a row
        units = len(p[h]) * largest / 65535 if target == "ort-cpu" else 0
        bounds.append(factor * (p[h] @ of_value[g]) + (factor - 1) * largest + units + 1e-5 * largest)
    return np.array(bounds)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "cache"), INT8)
def test_int8_rows_are_off_by_what_their_scales_allow(kind, cache, target):
    # small scores, so that the bound says something: it grows with e^2δ
    shape = dataclasses.replace(SHAPE, softmax_scale=0.02)
    attention = attention_of(kind, cache, target, shape)
    made, past = drawn(attention)
    made |= {name: query * np.float32(0.02) for name, query in made.items() if name.startswith("q")}
    found = run_core(attention, target, made, stored(attention, past), 40)
    _, exact = plain(attention, *keys_and_values(attention, made, past))
    bound = bound_of(attention, made, past, target)
    off = np.abs(found - exact).max(axis=1)
    assert (off <= bound).all(), (off / bound).max()
    assert off.max() > 1e-4  # it is rounded
    assert (bound < np.abs(exact).max()).all()


@pytest.mark.parametrize(("kind", "cache"), INT8)
def test_int8_rows_are_attended_to_as_they_are_stored(kind, cache):
    attention = attention_of(kind, cache)
    made, past = drawn(attention)
    kept = stored(attention, past)
    values = {n: kept[f"past.{n}"].astype(np.float64) for n in past}
    news = stored(attention, {n: made[n] for n in past})
    new = {n: news[f"past.{n}"].astype(np.float64) for n in past}
    for name in past:
        if attention.scaled(name):
            values[name] = values[name] * kept[f"past.{name}_scale"][..., None]
            new[name] = new[name] * news[f"past.{name}_scale"][..., None]
    found = run_core(attention, "portable", made, kept, 40)
    _, exact = plain(attention, *keys_and_values(attention, {**made, **new}, values))
    assert_close(found, exact)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "cache"), CASES)
@pytest.mark.parametrize("poison", ["large", "nan"])
def test_rows_beyond_the_length_have_no_effect(kind, cache, target, poison):
    attention = attention_of(kind, cache, target)
    made, past = drawn(attention)
    clean = stored(attention, past)
    spoiled = {name: value.copy() for name, value in clean.items()}
    scored_only = {"past.key", "past.key_scale", "past.rope", "past.rope_scale"}
    for name, value in spoiled.items():
        if poison == "nan":
            # selection takes NaN out of scores; what is summed must be finite, times a probability of zero
            if target == "portable" and name in scored_only and value.dtype == np.float32:
                value[:, 25:] = np.nan
        else:
            value[:, 25:] = {"float32": 1e18, "int8": -127, "uint8": 255}[value.dtype.name]
    found = run_core(attention, target, made, spoiled, 25)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, run_core(attention, target, made, clean, 25))
    short = {name: value[:, :25] for name, value in clean.items()}
    assert_close(found, run_core(attention, target, made, short, 25).astype(np.float64))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_a_row_of_a_batch_equals_the_row_alone(kind, cache, target):
    attention = attention_of(kind, cache, target)
    graph, weights = Graph(layer(attention), target, 1), weights_of(attention)
    x = [hidden_states(3, seed) for seed in (1, 2)]
    past = [stored(attention, drawn(attention, 9, seed)[1]) for seed in (3, 4)]
    lengths, counts = [9, 4], [2, 3]
    alone = []
    for b in range(2):
        cut = {name: rows[:, : lengths[b]] for name, rows in past[b].items()}
        alone.append(graph({**weights, **cut, **span(x[b][:, : counts[b]], lengths[b])}))
    both = graph(
        {
            **weights,
            **{name: np.concatenate([one[name] for one in past]) for name in past[0]},
            "hidden": np.concatenate(x),
            "position_ids": np.array([[9, 10, 0], [4, 5, 6]]),
            "past_lengths": np.array(lengths),
            "new_lengths": np.array(counts),
        }
    )
    for b in range(2):
        assert_close(both["output"][b : b + 1, : counts[b]], alone[b]["output"].astype(np.float64), 3e-6)
        for row in attention.rows:
            rows = both[row.present.name][b * row.groups : (b + 1) * row.groups, : counts[b]]
            np.testing.assert_allclose(rows, alone[b][row.present.name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_expanded_is_the_same_model_as_absorbed(target):
    absorbed, expanded = (attention_of(kind, "float32", target) for kind in ("mla", "expanded"))
    weights = weights_of(absorbed)
    w_uk, w_uv = weights["attention.w_uk"], weights["attention.w_uv"]
    weights["attention.k_up.weight"] = w_uk.reshape(-1, SHAPE.kv_lora_rank).T.copy()
    weights["attention.v_up.weight"] = w_uv.transpose(1, 0, 2).reshape(SHAPE.kv_lora_rank, -1).copy()
    outputs = [
        Graph(layer(a), target, 1)({**weights, **empty(a), **span(hidden_states(), 0)})["output"]
        for a in (absorbed, expanded)
    ]
    assert_close(outputs[0], outputs[1].astype(np.float64))


@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_the_graph_has_the_signature_that_is_declared(kind, cache):
    attention = attention_of(kind, cache)
    model = lower(layer(attention), "portable", "step")

    def described(values) -> Iterator[tuple]:
        for v in values:
            yield v.name, v.dtype.numpy().name, tuple(d if isinstance(d, int) else str(d) for d in v.shape)

    inputs = {name: rest for name, *rest in described(model.graph.inputs)}
    outputs = {name: rest for name, *rest in described(model.graph.outputs)}
    for row in attention.rows:
        assert inputs[row.past.name] == [row.past.dtype, row.past.shape]
        assert outputs[row.present.name] == [row.present.dtype, row.present.shape]
    assert {n for n in inputs if n.startswith("past.")} == {row.past.name for row in attention.rows}
    assert len(outputs) == 1 + len(attention.rows)
    assert {node.domain for node in model.graph} == {""}
    assert not {node.op_type for node in model.graph} & {"Loop", "If", "Scan", "NonZero", "Attention"}
    assert model.ir_version <= 10
    assert all(isinstance(node, ir.Node) and node.name.startswith("attention.") for node in model.graph)


def test_scores_are_scaled_by_the_width_of_a_head_or_as_the_model_says():
    found = {kind: attention_of(kind, "float32").softmax_scale for kind in KINDS}
    assert found == {"mha": 12**-0.5, "gqa": 12**-0.5, "mqa": 12**-0.5, "expanded": 0.3, "mla": 0.3}


def test_widths_are_those_of_the_geometry():
    g = golden.GEOMETRY
    shape = Shape.of(g)
    sizes = {kind: Attention(shape, kind, "float32") for kind in KINDS}
    elements = {kind: a.groups * sum(a.widths.values()) for kind, a in sizes.items()}
    assert elements["mla"] == cache_row_elements(g, "latent")
    assert elements["expanded"] == cache_row_elements(g, "expanded")
    assert elements["mha"] == 2 * g.num_attention_heads * g.v_head_dim
    assert elements["mqa"] == 2 * g.v_head_dim


@pytest.mark.parametrize(
    ("heads", "groups"), [(128, 8), (40, 8), (20, 5), (16, 8), (8, 4), (6, 3), (7, 1), (1, 1)]
)
def test_groups_divide_the_heads(heads, groups):
    assert dataclasses.replace(SHAPE, num_attention_heads=heads).groups == groups


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="mha has no latent rows"):
        Attention(SHAPE, "mha", "int8 latent")
    with pytest.raises(ValueError, match="cannot rotate more"):
        Attention(dataclasses.replace(SHAPE, qk_rope_head_dim=16), "gqa", "float32")
