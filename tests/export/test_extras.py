"""What is said and what still works where some packages are not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.export.blocked import MAKING, blocked
from tests.runtime.test_text import text_bundle


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


def test_run_on_ids_works_without_tokenizers(tmp_path: Path):
    words = ["run", str(text_bundle(tmp_path / "b")), "--max-tokens", "3"]
    packages = {"tokenizers", "jinja2", "torch"}
    done = blocked(packages, *words, "--ids", "5,6", "--json")
    assert done.returncode == 0
    assert done.stderr == (
        "ids are shown: tokenizers is not installed; try: pip install 'mla-export[text]'\n"
    )
    found = json.loads(done.stdout)
    assert found["text"] is None
    shown = blocked(packages, *words, "--ids", "5,6", "--quiet")
    assert (shown.stdout, shown.stderr) == (",".join(map(str, found["ids"])) + "\n", "")
    refused = blocked(packages, *words, "--prompt", "ab")
    assert refused.returncode == 3
    assert "text needs the package tokenizers" in refused.stderr
