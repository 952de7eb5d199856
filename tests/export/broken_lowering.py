"""Exports with one operator of one layer broken: it computes something else, and all others are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import onnx_ir as ir

from mla_graphs import lowering
from mla_graphs.lowering.builder import Builder, Call, Rule

Break = Callable[[Rule, Builder, Call], list[ir.Value]]


@contextmanager
def broken(target: str, name: str, how: Break) -> Iterator[None]:
    """Write the `mla::` operator called `name` by `how`, inside, whenever a graph is lowered to `target`."""
    rules = lowering.TARGETS[target]
    hits = []

    def changed(phase: str) -> Mapping[str, Rule]:
        def wrapped(rule: Rule) -> Rule:
            def write(b: Builder, call: Call) -> list[ir.Value]:
                if b.prefix != name:
                    return rule(b, call)
                hits.append(phase)
                return how(rule, b, call)

            return write

        return {op_type: wrapped(rule) for op_type, rule in rules(phase).items()}

    with mock.patch.dict(lowering.TARGETS, {target: changed}):
        yield
    assert hits, f"no graph has an operator called {name}"


def with_number(attribute: str, change: Callable[[float], float]) -> Break:
    """Give another value of an attribute: a wrong scale, another epsilon."""

    def how(rule: Rule, b: Builder, call: Call) -> list[ir.Value]:
        attributes = dict(call.node.attributes)
        attributes[attribute] = ir.AttrFloat32(attribute, change(call.number(attribute)))
        node = ir.Node(
            call.node.domain, call.node.op_type, call.node.inputs, attributes.values(), num_outputs=0
        )
        return rule(b, Call(node, call.inputs))

    return how


def with_text(attribute: str, value: str) -> Break:
    """Give another word for an attribute."""

    def how(rule: Rule, b: Builder, call: Call) -> list[ir.Value]:
        attributes = dict(call.node.attributes)
        attributes[attribute] = ir.AttrString(attribute, value)
        node = ir.Node(
            call.node.domain, call.node.op_type, call.node.inputs, attributes.values(), num_outputs=0
        )
        return rule(b, Call(node, call.inputs))

    return how


def scaled(factor: float) -> Break:
    """Multiply what the operator gives."""

    def how(rule: Rule, b: Builder, call: Call) -> list[ir.Value]:
        inner = Builder(f"{b.prefix}.right", b._constants, b.opset)
        found = rule(inner, call)
        b.nodes.extend(inner.nodes)
        return [b.op("Mul", found[0], b.number(factor, call.dtype())), *found[1:]]

    return how


def swapped_halves(axis: int = -1) -> Break:
    """Swap the halves of what the operator gives, along its last axis."""

    def how(rule: Rule, b: Builder, call: Call) -> list[ir.Value]:
        inner = Builder(f"{b.prefix}.right", b._constants, b.opset)
        found = rule(inner, call)
        b.nodes.extend(inner.nodes)
        first, second = b.ops("Split", found[0], names=("first", "second"), axis=axis, num_outputs=2)
        return [b.op("Concat", second, first, axis=axis), *found[1:]]

    return how


def with_swapped_inputs(one: int, other: int) -> Break:
    """Give two inputs in each other's place."""

    def how(rule: Rule, b: Builder, call: Call) -> list[ir.Value]:
        inputs = list(call.inputs)
        inputs[one], inputs[other] = inputs[other], inputs[one]
        return rule(b, Call(call.node, inputs))

    return how


def without_input(place: int) -> Break:
    """Leave an input out, as if it were absent."""

    def how(rule: Rule, b: Builder, call: Call) -> list[ir.Value]:
        inputs = [value for i, value in enumerate(call.inputs) if i != place]
        return rule(b, Call(call.node, inputs))

    return how
