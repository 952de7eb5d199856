"""What an export is to be: the choices that shape its graphs and weights, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from mla_graphs.contract import CacheTypes, Contract, contract
from mla_graphs.geometry import Absorb, Blocks, Float, Geometry, RowType
from mla_runtime.errors import ConfigError
from mla_runtime.manifest import Precision

Target = Literal["portable", "ort-cpu"]

_FLOATS: dict[str, Float] = {"fp32": "float32", "fp16": "float16"}
_BITS: dict[str, Literal[4, 8]] = {"int8": 8, "int4": 4}
GROUPS = (32, 128)


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
    weights: Blocks | None
    target: Target
    head: Literal[4, 8] = 8
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
    weights: Blocks | None
    cache: CacheTypes
    head: Literal[4, 8]
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
        if target == "portable" and weights in _BITS:
            raise ConfigError(
                f"--weights {weights} is for --target ort-cpu; portable graphs hold floats so far"
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
            Blocks(_BITS[weights], group or GROUPS[0]) if weights in _BITS else None,
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
