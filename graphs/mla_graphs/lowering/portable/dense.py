"""Everything that is neither attention nor routing: lookups, norms, matmuls, reshapes."""

from __future__ import annotations

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call

Values = list[ir.Value]


def _embed(b: Builder, call: Call) -> Values:
    ids, table = call.inputs
    return [scaled(b, b.op("Gather", table, ids, axis=0), call.dtype(1), call, "scaled")]


def scaled(b: Builder, x: ir.Value, dtype: ir.DataType, call: Call, name: str) -> ir.Value:
    """Multiply x by the operator's scale, unless it is one."""
    scale = call.number("scale")
    return x if scale == 1.0 else b.op("Mul", x, b.number(scale, dtype), name=name)


def _rotary_rows(b: Builder, call: Call) -> Values:
    positions, *tables = call.inputs
    rows = [
        b.op("Gather", table, positions, axis=0, name=name)
        for table, name in zip(tables, ("cos_row", "sin_row"), strict=True)
    ]
    return [b.op("Unsqueeze", x, b.ints(1), name=n) for x, n in zip(rows, ("cos", "sin"), strict=True)]


def rms_norm(b: Builder, call: Call) -> Values:
    """Write x / sqrt(mean(x²) + ε) in float32: the order of nodes is one that ONNX Runtime fuses."""
    x, weight = call.inputs
    dtype = call.dtype()
    x = b.float32(x, dtype, "float32")
    square = b.op("Pow", x, b.number(2.0, ir.DataType.FLOAT), name="square")
    mean = b.op("ReduceMean", square, b.ints(-1), keepdims=1, name="mean")
    shifted = b.op("Add", mean, b.number(call.number("epsilon"), ir.DataType.FLOAT), name="epsilon")
    root = b.op("Sqrt", shifted, name="root")
    normed = b.cast(b.op("Div", x, root, name="normed"), dtype, "cast")
    return [b.op("Mul", normed, weight)]


def _linear(b: Builder, call: Call) -> Values:
    x, weight, *bias = call.inputs
    if not bias:
        return [b.op("MatMul", x, weight)]
    return [b.op("Add", b.op("MatMul", x, weight, name="matmul"), bias[0])]


def _split(b: Builder, call: Call) -> Values:
    sizes = call.integers("sizes")
    return b.ops("Split", call.inputs[0], b.ints(*sizes), axis=-1, names=("first", "second"))


def _split_heads(b: Builder, call: Call) -> Values:
    rows = b.op("Reshape", call.inputs[0], b.ints(0, 0, call.integer("heads"), -1), name="heads")
    return [b.op("Transpose", rows, perm=[0, 2, 1, 3])]


def _merge_heads(b: Builder, call: Call) -> Values:
    rows = b.op("Transpose", call.inputs[0], perm=[0, 2, 1, 3], name="rows")
    return [b.op("Reshape", rows, b.ints(0, 0, call.integer("width")))]


def _head_rows(b: Builder, call: Call) -> Values:
    return [b.op("Reshape", call.inputs[0], b.ints(0, 0, call.integer("heads"), -1))]


def _rotate(b: Builder, call: Call) -> Values:
    x, cos, sin = call.inputs
    dtype = call.dtype()
    first, second = b.ops(
        "Split", b.float32(x, dtype, "float32"), axis=-1, num_outputs=2, names=("first", "second")
    )
    a = b.op("Sub", b.op("Mul", first, cos, name="a_cos"), b.op("Mul", second, sin, name="b_sin"), name="a")
    c = b.op("Add", b.op("Mul", second, cos, name="b_cos"), b.op("Mul", first, sin, name="a_sin"), name="b")
    return [b.cast(b.op("Concat", a, c, axis=-1), dtype, "cast")]


def _head_linear(b: Builder, call: Call) -> Values:
    return [b.op("MatMul", *call.inputs)]


def swiglu(b: Builder, gate_up: ir.Value) -> ir.Value:
    """silu(first half) · second half."""
    gate, up = b.ops("Split", gate_up, axis=-1, num_outputs=2, names=("gate", "up"))
    return b.op(
        "Mul", b.op("Mul", gate, b.op("Sigmoid", gate, name="sigmoid"), name="silu"), up, name="silu_up"
    )


def _swiglu(b: Builder, call: Call) -> Values:
    return [swiglu(b, call.inputs[0])]


def _residual(b: Builder, call: Call) -> Values:
    x, branch = call.inputs
    return [b.op("Add", x, scaled(b, branch, call.dtype(1), call, "scaled"))]


def _rows(b: Builder, call: Call) -> Values:
    return [b.op("Reshape", call.inputs[0], b.ints(-1, call.integer("width")))]


def _unrows(b: Builder, call: Call) -> Values:
    return [b.op("Reshape", call.inputs[0], b.op("Shape", call.inputs[1], name="shape"))]


def _select_rows(b: Builder, call: Call) -> Values:
    hidden, rows = call.inputs
    flat = b.op("Reshape", hidden, b.ints(-1, call.integer("width")), name="flat")
    return [b.op("Gather", flat, rows, axis=0)]


def _logits(b: Builder, call: Call) -> Values:
    return logits(b, call, call.inputs[1], rows=True)


def logits(b: Builder, call: Call, table: ir.Value, *, rows: bool) -> Values:
    """Multiply with a table [V,hidden], or where its `rows` are not its outputs [hidden,V]."""
    dtype = call.dtype()
    x = scaled(b, call.inputs[0], dtype, call, "scaled")
    found = b.op("Gemm", x, table, transB=int(rows), name="gemm")
    return [b.float32(found, dtype, "float32")]


RULES = {
    "Embed": _embed,
    "RotaryRows": _rotary_rows,
    "RMSNorm": rms_norm,
    "Linear": _linear,
    "Split": _split,
    "SplitHeads": _split_heads,
    "MergeHeads": _merge_heads,
    "HeadRows": _head_rows,
    "Rotate": _rotate,
    "HeadLinear": _head_linear,
    "SwiGLU": _swiglu,
    "Residual": _residual,
    "Rows": _rows,
    "Unrows": _unrows,
    "SelectRows": _select_rows,
    "Logits": _logits,
}
