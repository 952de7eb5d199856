"""Every tensor of a checkpoint is consumed, or ignored for a stated reason; anything else is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mla_export.checkpoint import Checkpoint
from mla_export.families.family import Family
from mla_export.fp8 import SCALE_SUFFIX
from mla_graphs.geometry import Geometry
from mla_runtime.errors import CheckpointError

# Where a text model stands inside a model with a vision part, its names carry this prefix.
_TEXT_PREFIX = "language_model."
_VISION = ("vision_tower.", "mm_projector.", "multi_modal_projector.")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Accounting:
    """`names`: logical name of each consumed tensor -> its name in the checkpoint.

    `ignored`: name in the checkpoint -> the reason why it is not consumed. The scales of fp8 weights
    belong to their weights and are in neither.
    """

    names: dict[str, str]
    ignored: dict[str, str]


def account(checkpoint: Checkpoint, family: Family, geometry: Geometry) -> Accounting:
    """Match the checkpoint's tensors with those that `family` consumes.

    Raises CheckpointError on tensors that are missing, of another shape, or there for no known reason.
    """
    prefix = _TEXT_PREFIX if any(name.startswith(_TEXT_PREFIX) for name in checkpoint.tensors) else ""
    wanted = family.tensors(geometry)
    names = {logical: prefix + logical for logical in wanted}
    missing = [actual for actual in names.values() if actual not in checkpoint.tensors]
    if missing:
        raise _error(checkpoint, "lacks", missing, "the model's config.json asks for; download it again")
    wrong = [
        f"{actual} is {list(checkpoint.tensors[actual].shape)}, not {list(wanted[logical])}"
        for logical, actual in names.items()
        if checkpoint.tensors[actual].shape != wanted[logical]
    ]
    if wrong:
        raise _error(
            checkpoint, "has", wrong, "of another shape than config.json says; do the two belong together?"
        )
    ignored = _ignored(checkpoint, family, geometry, prefix, set(names.values()))
    return Accounting(names, ignored)


def _ignored(
    checkpoint: Checkpoint, family: Family, geometry: Geometry, prefix: str, used: set[str]
) -> dict[str, str]:
    reasons: dict[str, str] = {}
    unexpected: list[str] = []
    for name in checkpoint.tensors:
        base = name.removesuffix("_scale_inv") if name.endswith(SCALE_SUFFIX) else name
        if base in used:
            continue
        if prefix and base.startswith(_VISION):
            reasons[name] = "vision part: the text model alone is exported"
        elif base.startswith(prefix) and (reason := family.ignored(base.removeprefix(prefix), geometry)):
            reasons[name] = reason
        else:
            unexpected.append(name)
    if unexpected:
        raise _error(checkpoint, "has", unexpected, f"that no {family.name} model with this config.json has")
    _check_later_layers(checkpoint, geometry, prefix, reasons)
    head, embedding = f"{prefix}lm_head.weight", f"{prefix}model.embed_tokens.weight"
    if head in reasons and not checkpoint.same_bytes(head, embedding):
        raise CheckpointError(
            f"{checkpoint.path}: config.json ties the head to the embedding, but {head} differs from "
            f"{embedding}; set tie_word_embeddings to what the model was trained with"
        )
    return reasons


def _check_later_layers(
    checkpoint: Checkpoint, geometry: Geometry, prefix: str, names: Iterable[str]
) -> None:
    """Refuse layers beyond num_hidden_layers that are no multi-token prediction: a cut config.json."""
    found = (_LAYER.match(name.removeprefix(prefix)) for name in names)
    later = {int(match[1]) for match in found if match and int(match[1]) >= geometry.num_hidden_layers}
    for layer in sorted(later):
        if f"{prefix}model.layers.{layer}.eh_proj.weight" not in checkpoint.tensors:
            raise CheckpointError(
                f"{checkpoint.path}: has a layer {layer}, beyond num_hidden_layers of "
                f"{geometry.num_hidden_layers}, that is no multi-token-prediction layer (no eh_proj); "
                "do config.json and weights belong together?"
            )


def _error(checkpoint: Checkpoint, verb: str, what: list[str], why: str) -> CheckpointError:
    shown = "; ".join(what[:5]) + (f" and {len(what) - 5} more" if len(what) > 5 else "")
    return CheckpointError(f"{checkpoint.path}: {verb} {len(what)} tensor(s) {why}: {shown}")
