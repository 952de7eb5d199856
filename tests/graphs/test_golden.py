"""The text of small graphs is what was reviewed."""

from __future__ import annotations

import pytest

from tests.graphs import golden


@pytest.mark.parametrize("stem", golden.KEPT)
def test_graph_is_as_reviewed(stem):
    plan, phase, lowered = golden.KEPT[stem]
    written = golden.text(golden.build(plan, phase, lowered=lowered))
    kept = (golden.FOLDER / f"{stem}.txt").read_text(encoding="utf-8")
    assert written == kept, (
        f"graphs/golden/{stem}.txt differs; if it should, run python -m tests.graphs.golden"
    )


def test_folder_holds_nothing_else():
    assert {path.name for path in golden.FOLDER.iterdir()} == {f"{stem}.txt" for stem in golden.KEPT}
