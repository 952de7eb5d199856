"""A model with all that can speak for it: its files, the float64 oracle, and Hugging Face's class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of
from mla_export.passage import Pass
from mla_export.reference import Reference
from mla_export.rounding import Precision
from tests.checkpoints import FAMILIES, VARIANTS
from tests.oracle import Oracle

CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES} | VARIANTS


class Witness:
    """Opened lazily, one part at a time; `max_context` as an export would fix it."""

    def __init__(self, path: Path, max_context: int | None = None):
        self.path = path
        self.checkpoint = Checkpoint.open(path)
        family = family_of(self.checkpoint.config)
        self.geometry = family.geometry(self.checkpoint.config, max_context)
        self.names = account(self.checkpoint, family, self.geometry).names
        self._max_context = max_context

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        return {name: self.checkpoint.read(actual).double().numpy() for name, actual in self.names.items()}

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.geometry, self.tensors)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.checkpoint, self._max_context)

    def int8_oracle(self, *parts: str) -> Oracle:
        """Give the oracle with these parts of a cache row rounded to int8."""
        return Oracle(self.geometry, self.tensors, parts)

    def layered(self, ids: Sequence[int], precision: Precision) -> Pass:
        return self.reference.forward([ids], [precision])[precision][0]

    def hugging_face(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [S, V] of the whole class in float32, as a user of transformers would get them."""
        return self._model(torch.tensor([list(ids)]), use_cache=False).logits[0].double().numpy()

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        return torch.inference_mode()(model)


def token_ids(vocab_size: int, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    """Squared error as a share of the wanted signal's power."""
    return float(((got - want) ** 2).sum() / (want**2).sum())


def worst(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max())
