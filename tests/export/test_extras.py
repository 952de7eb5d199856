"""What is said and what still works where some packages are not installed."""

from __future__ import annotations

import pytest

from tests.export.blocked import MAKING, blocked


@pytest.mark.parametrize(
    ("missing", "named", "extras"),
    [
        ({"torch"}, "torch is", "export"),
        ({"torch", "transformers"}, "torch and transformers are", "export,verify"),
        (MAKING | {"onnxruntime"}, "onnxruntime and torch and transformers are", "cpu,export,verify"),
    ],
)
def test_verify_names_all_that_is_missing_before_it_works(missing: set[str], named: str, extras: str):
    # neither folder is there: what is missing is said first
    done = blocked(missing, "verify", "bundle", "--checkpoint", "model")
    message = f"mla-export: {named} not installed; try: pip install 'mla-export[{extras}]'\n"
    assert (done.returncode, done.stderr) == (3, message)
