"""The canary on engines: what was built, and what was loaded, must compute what the bundle says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mla_runtime.canary import check_canary
from mla_runtime.engines.files import write_record
from mla_runtime.engines.publishing import discard
from mla_runtime.engines.record import PASSED, Built
from mla_runtime.engines.store import is_ours
from mla_runtime.errors import NumericsError, VerificationError
from mla_runtime.model import Model


def prove(model: Model, built: Built, folder: Path) -> Built:
    """Run the bundle's canary on `model`, which has loaded the engines of `folder`.

    Gives the record with what came out, which is kept where the engines are in the cache. Engines that fail
    are removed from the cache. Raises `VerificationError` for them, and `BundleError` without a canary.
    """
    try:
        check_canary(model)
    except (VerificationError, NumericsError) as cause:
        told = "they are not used; build others on this machine"
        if is_ours(folder):
            try:
                discard(folder)
                told = "they are not used, and were removed from the cache"
            except OSError as why:
                told = f"they are not used, but could not be removed ({why}); remove the folder"
        raise VerificationError(f"{folder}: engines that fail the canary ({cause}); {told}") from cause
    proved = replace(built, canary=PASSED)
    if built.canary != PASSED and is_ours(folder):
        try:
            write_record(proved, folder)
        except OSError:
            return proved  # a cache that cannot be written: the canary runs at each load anyway
    return proved
