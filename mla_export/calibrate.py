"""Calibration while weights are written: what each matrix is multiplied with in a text, a layer at a time.

Windows of the text go through Hugging Face's layers in float32, one layer after the other, in step with the
writer: when it comes to the first matrix of a layer, the windows pass that layer, and the second moments of
what its linear layers are fed with are kept until it comes to the next. In memory are the windows' hidden
states and one layer, its weights or its moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mla_export import progress
from mla_export.checkpoint import Checkpoint
from mla_export.layout import Parameter
from mla_export.linears import Linears, fed_as
from mla_export.passage import causal, precision_of
from mla_export.quantiser import scale_dtype, searched
from mla_export.quantize import Quantized, Statistics, quantize_calibrated
from mla_export.reference import Reference
from mla_graphs.geometry import Absorb

_Source = tuple[str, int | None]  # a linear layer of Hugging Face's, and of experts' which one's


class Calibrated:
    """A quantiser that minimises errors of outputs on a text; parameters come in the order of layers.

    Head, embedding, and what `fed_as` knows no inputs of are rounded as by `searched`, as is an expert
    that no token of the text was routed to.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        absorb: Absorb,
        max_context: int,
        windows: Sequence[Sequence[int]],
        parameters: Iterable[Parameter],
    ) -> None:
        self._reference = Reference(checkpoint, max_context)
        self._rotary = self._reference.rotary()
        self._absorb: Absorb = absorb
        self._windows = windows
        self._wanted: dict[int, set[str]] = {}
        for parameter in parameters:
            place = self._place(parameter)
            if parameter.storage and place:
                self._wanted.setdefault(place[0], set()).add(place[1])
        self._hidden: list[Tensor] = []  # [1, S, H] a window, ahead of layer `_next`
        self._next = 0
        self._moments: dict[_Source, Statistics] = {}  # of the layer before `_next`

    def __call__(self, parameter: Parameter, matrix: Tensor, expert: int | None) -> Quantized:
        """Round a matrix; a layer's first has the windows pass it."""
        place, storage = self._place(parameter), parameter.storage
        if place is None or storage is None:
            return searched(parameter, matrix, expert)
        layer, source = place
        while self._next <= layer:
            self._pass()
        if source.startswith("mlp.experts."):
            moments = self._moments.pop((source, expert), None)  # nothing else is fed so
        else:
            moments = self._moments[source, None]
        if moments is None:
            return searched(parameter, matrix, expert)
        name = parameter.name if expert is None else f"{parameter.name}[{expert}]"
        return quantize_calibrated(
            matrix,
            storage.bits,
            storage.group(parameter.matrix.inputs),
            moments,
            scale_dtype=scale_dtype(parameter),
            positive=storage.positive(parameter.matrix),
            name=name,
        )

    def _place(self, parameter: Parameter) -> tuple[int, str] | None:
        """Give a parameter's layer and the linear layer that is fed as it is."""
        if not parameter.name.startswith("layers."):
            return None
        _, layer, within = parameter.name.split(".", 2)
        source = fed_as(within, self._reference.geometry, self._absorb)
        return None if source is None else (int(layer), source)

    def _pass(self) -> None:
        """Take the windows through the next layer; its moments replace those of the layer before."""
        layer, reference = self._next, self._reference
        wanted = self._wanted.get(layer, set())
        self._moments.clear()

        def see(linear: str, expert: int | None, rows: Tensor) -> Tensor:
            if linear in wanted:
                place = (linear, expert)
                if place not in self._moments:
                    self._moments[place] = Statistics(rows.shape[-1])
                self._moments[place].add(rows)
            return rows

        with precision_of("float32") as dtype:
            if layer == 0:
                embed = reference.embedding(dtype)
                self._hidden = [embed(torch.tensor([list(window)])) for window in self._windows]
                del embed
            module = reference.layer(layer, reference.tensors(layer), dtype)
            task = progress.task(f"calibration, layer {layer}", len(self._hidden))
            with Linears(module, see), task as advance:
                for window, hidden in enumerate(self._hidden):
                    self._hidden[window] = causal(module, self._rotary, hidden)
                    advance(1)
        if unseen := wanted - {linear for linear, _ in self._moments}:
            raise ValueError(f"layer {layer} of transformers' class does not run {', '.join(sorted(unseen))}")
        self._next += 1
