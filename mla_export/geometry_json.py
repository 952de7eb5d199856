"""A `Geometry` read back from the JSON in a bundle's manifest, as strictly as it was written."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mla_graphs import Geometry
from mla_runtime.errors import BundleError
from mla_runtime.fields import Field


def geometry_from(value: object, where: str) -> Geometry:
    """Build a geometry from what `dataclasses.asdict` made of one; `where` names it in messages.

    Raises `BundleError` for a missing or unknown key and for a value of another type.
    """
    geometry = _read(Geometry, Field(value, where))
    if not isinstance(geometry, Geometry):  # for the type checker; _read gives what it is asked for
        raise TypeError(type(geometry))
    if len(geometry.layer_kinds) != geometry.num_hidden_layers:
        kinds, layers = len(geometry.layer_kinds), geometry.num_hidden_layers
        raise BundleError(f"{where}: {kinds} layer_kinds for {layers} layers; export the bundle again")
    if geometry.moe is None and "moe" in geometry.layer_kinds:
        raise BundleError(f"{where}: layers of kind moe, but moe is null; export the bundle again")
    return geometry


def _read(kind: Any, field: Field) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(kind), field)
    if origin is Literal:
        return field.one_of(*get_args(kind))
    if origin is tuple:
        return field.list(lambda item: _read(get_args(kind)[0], item))
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        given = field.object(set(hints))
        return kind(**{name: _read(hint, given[name]) for name, hint in hints.items()})  # type: ignore[operator]
    if kind is int:
        return field.integer(0)
    if kind is bool:
        return field.boolean()
    return field.number() if kind is float else field.text()


def _read_union(kinds: tuple[Any, ...], field: Field) -> Any:
    if field.value is None and types.NoneType in kinds:
        return None
    left = [kind for kind in kinds if kind is not types.NoneType]
    if len(left) > 1:  # dataclasses are told apart by their keys
        keys = set(field.mapping())
        left = [kind for kind in left if {entry.name for entry in fields(kind)} == keys]
    if not left:
        raise field.wrong("one of the forms known here")
    return _read(left[0], field)
