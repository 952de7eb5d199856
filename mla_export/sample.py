"""The trained sample model of the source tree."""

from __future__ import annotations

from pathlib import Path

import mla_export

SAMPLE = Path("samples") / "tiny-mla"


def sample_checkpoint() -> Path | None:
    """Give the sample's folder, from here or from the source tree that this is run from; None without one."""
    for root in (Path.cwd(), Path(mla_export.__file__).resolve().parent.parent):
        if (root / SAMPLE / "config.json").is_file():
            return root / SAMPLE if root != Path.cwd() else SAMPLE
    return None
