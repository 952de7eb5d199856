"""Reading, changing and refusing the manifest of a bundle under test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import mla_runtime
from mla_runtime.errors import BundleError
from mla_runtime.manifest import digest


def content(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "bundle.json").read_text()))


def save(folder: Path, raw: dict[str, Any]) -> None:
    """Write a manifest as an attacker would: with a digest that is right for what it says."""
    raw["sha256"] = digest(raw)
    (folder / "bundle.json").write_text(json.dumps(raw))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)):
        mla_runtime.open(folder)
