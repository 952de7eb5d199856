"""What an export is to be: the choices that shape its graphs and weights, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from mla_export.quantize.rule import Scheme
from mla_graphs.contract import CacheTypes, Contract, contract
from mla_graphs.geometry import Absorb, Float, Geometry, RowType
from mla_graphs.storage import Bits
from mla_runtime.errors import ConfigError
from mla_runtime.manifest import Precision

Target = Literal["portable", "ort-cpu"]

_FLOATS: dict[str, Float] = {"fp32": "float32", "fp16": "float16"}
_BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
GROUPS = (32, 128)
OPSET = 20  # of graphs without 4 bits in standard operators


@dataclass(frozen=True, slots=True)
class Bulk:
    """How most matrices are stored: codes of `bits`, a scale for each `group` of inputs (None: an output)."""

    bits: Bits
    group: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A geometry in one form of attention, with the types that it computes in, caches and stores.

    `weights` is how matrices are stored, None for floats of the type that is computed in; `head` is the bits
    of a head of its own then, and `calibrated` says whether they are rounded by what a text feeds them with.
    """

    geometry: Geometry
    absorb: Absorb
    compute: Float
    cache: CacheTypes
    weights: Bulk | None
    target: Target
    head: Bits = 8
    calibrated: bool = False

    @classmethod
    def floats(cls, geometry: Geometry, absorb: Absorb, dtype: Float, target: Target = "portable") -> Plan:
        """Plan an export that is of one float type throughout."""
        return cls(geometry, absorb, dtype, CacheTypes.of(dtype), None, target)

    @property
    def contract(self) -> Contract:
        """Give inputs, cache tensors and outputs of the graphs."""
        return contract(self.geometry, self.absorb, self.cache)

    @property
    def scheme(self) -> Scheme | None:
        """Give which parameters are stored in codes, and how; None where all are floats."""
        if self.weights is None:
            return None
        return Scheme(self.target, self.weights.bits, self.weights.group, self.head)

    @property
    def opset(self) -> int:
        """Give the opset of the graphs: 4 bits in standard operators need a later one."""
        return 21 if self.weights and self.weights.bits == 4 and self.target == "portable" else OPSET

    @property
    def precision(self) -> Precision:
        """Give the types as a bundle names them."""
        return Precision(
            compute=self.compute,
            weights=self.compute if self.weights is None else f"int{self.weights.bits}",
            head=self.compute if self.weights is None else f"int{self.head}",
            group=None if self.weights is None else self.weights.group,
            method=None if self.weights is None else "calibrated" if self.calibrated else "searched",
            # MatMulNBits rounds what it multiplies, as `lowering/ort_cpu/matrices.py` asks it to
            activations="int8" if self.weights and self.target == "ort-cpu" else self.compute,
            cache=self.cache.latent,
            rope=self.cache.rope,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Give the type of activations, as torch's."""
        return {"float32": torch.float32, "float16": torch.float16}[self.compute]


@dataclass(frozen=True, slots=True)
class Forms:
    """What a user chose, before the model is known."""

    target: Target
    absorb: Absorb
    compute: Float
    weights: Bulk | None
    cache: CacheTypes
    head: Bits
    calibrated: bool

    @classmethod
    def choose(
        cls,
        target: str,
        absorb: str,
        dtype: str | None,
        weights: str | None,
        group: int | None,
        cache: str,
        cache_rope: str,
        *,
        head: str | None,
        calibrated: bool,
    ) -> Forms:
        """Check choices against each other; raises `ConfigError` with what goes together."""
        for name, value, known in (
            ("target", target, get_args(Target)),
            ("absorb", absorb, get_args(Absorb)),
            ("dtype", dtype, (None, *_FLOATS)),
            ("weights", weights, (None, *_FLOATS, *_BITS)),
            ("group", group, (None, *GROUPS)),
            ("head", head, (None, *_BITS)),
            ("cache", cache, ("float", "int8")),
            ("cache_rope", cache_rope, ("float", "int8")),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r}: choose one of {', '.join(map(str, known))}")
        if weights in _FLOATS and dtype not in (None, weights):
            raise ConfigError(
                f"--weights {weights} with --dtype {dtype}: weights in floats are of the type that is "
                "computed in; give one of the two"
            )
        compute = _FLOATS[dtype or (weights if weights in _FLOATS else None) or "fp32"]
        if target == "ort-cpu" and compute != "float32":
            raise ConfigError("--target ort-cpu computes in fp32; fp16 is for --target portable")
        if target == "portable" and weights == "int8":
            options = {f"--group {group}": group is not None, f"--head {head}": head == "int4"}
            if wrong := next((option for option, grouped in options.items() if grouped), None):
                raise ConfigError(
                    f"{wrong} with --weights int8: portable graphs have a scale an output there, and no "
                    "groups; leave it out, or take --weights int4 or --target ort-cpu"
                )
        if absorb == "expanded" and "int8" in (cache, cache_rope):
            raise ConfigError(
                "an int8 cache holds latent rows, which --absorb expanded does not; choose another"
            )
        if cache_rope == "int8" and cache != "int8":
            raise ConfigError(
                "--cache-rope int8 goes with --cache int8: rotary keys are the smaller part of a row"
            )
        for given, option in ((group, "--group"), (head, "--head"), (calibrated or None, "--calibrate")):
            if given is not None and weights not in _BITS:
                raise ConfigError(f"{option} is for weights in int8 or int4; give one of them with --weights")
        # what ONNX Runtime multiplies fast
        byte: RowType = "uint8" if target == "ort-cpu" else "int8"
        types: dict[str, RowType] = {"float": compute, "int8": byte}
        return cls(
            target,  # type: ignore[arg-type] # checked above
            absorb,  # type: ignore[arg-type]
            compute,
            _bulk(target, weights, group),
            CacheTypes(types[cache], types[cache_rope]),
            8 if head is None else _BITS[head],
            calibrated,
        )

    def plan(self, geometry: Geometry) -> Plan:
        """Apply the choices to a model; raises `ConfigError` for what it does not bear."""
        if self.head != 8 and geometry.tie_word_embeddings:
            raise ConfigError(
                f"--head int{self.head}: this model's head is its embedding's table (tie_word_embeddings), "
                "whose rows are looked up in int8; leave --head out"
            )
        return Plan(
            geometry,
            self.absorb,
            self.compute,
            self.cache,
            self.weights,
            self.target,
            self.head,
            self.calibrated,
        )


def _bulk(target: str, weights: str | None, group: int | None) -> Bulk | None:
    if weights not in _BITS:
        return None
    channels = target == "portable" and weights == "int8"
    return Bulk(_BITS[weights], None if channels else group or GROUPS[0])
