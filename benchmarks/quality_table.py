"""Quality of samples/tiny-mla in every form of its weights and cache: the tables of docs/quality.md.

    python benchmarks/quality_table.py [--tokens N] [--threads N]

Each form is exported to a temporary folder and reads the held-out text, as `mla-export verify --text` does;
the checkpoint reads it once. int4 weights are held against plain rounding to nearest too, position by
position. The tables in docs/quality.md are replaced; a row is printed when it is done. Ends with 1 where a
gate is missed with routing free, or int4 is not better than rounding to nearest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.paired import Difference, paired_bootstrap
from mla_export.progress import reporting
from mla_export.quality import Observed, Quality, Teacher, observe, observe_rounded, text_windows
from mla_export.reference import Reference
from mla_export.rounding import Rounded, counterpart
from mla_export.tally import Figures, Tally
from mla_runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "tiny-mla"
TEXT = SAMPLE / "held_out.txt"
DOCUMENT = ROOT / "docs" / "quality.md"
BEGIN, END = "<!-- tables: benchmarks/quality_table.py -->", "<!-- end of tables -->"

# options of an export, by what the table calls them
WEIGHTS: dict[str, dict[str, Any]] = {
    "fp32": {"target": "portable"},
    "int8, groups of 32": {"target": "ort-cpu", "weights": "int8", "group": 32},
    "int8, groups of 32, calibrated": {
        "target": "ort-cpu",
        "weights": "int8",
        "group": 32,
        "calibrate": True,
    },
    "int4, groups of 32": {"target": "ort-cpu", "weights": "int4", "group": 32},
    "int4, groups of 32, calibrated": {
        "target": "ort-cpu",
        "weights": "int4",
        "group": 32,
        "calibrate": True,
    },
    "int4, groups of 128, calibrated": {
        "target": "ort-cpu",
        "weights": "int4",
        "group": 128,
        "calibrate": True,
    },
}
# what calibrated weights are calibrated with: text that shares nothing with the held-out one
CALIBRATION = ROOT / "samples" / "tiny_text.py"
CACHES: dict[str, dict[str, Any]] = {
    "float": {},
    "int8": {"cache": "int8"},
    "int8, rope int8": {"cache": "int8", "cache_rope": "int8"},
}
# which form, which figure, and the limit: the least for the same top-1, the most for the others
GATES: list[tuple[str, str, str, float]] = [
    ("fp32", "int8", "mean KL", 1e-4),
    ("fp32", "int8", "99 % KL", 1.5e-4),
    ("fp32", "int8", "same top-1", 0.995),
    ("int8, groups of 32", "float", "mean KL", 2e-4),
    ("int8, groups of 32, calibrated", "float", "mean KL", 2e-4),
    ("int4, groups of 32, calibrated", "float", "mean KL", 5e-3),
    ("int4, groups of 128, calibrated", "float", "mean KL", 5e-3),
]
SIZES = ("weights", "cache", "bundle, bytes", "cache row, bytes")
FIGURES = ("perplexity", "mean KL", "99 % KL", "99.9 % KL", "same top-1")
PAIRED = ("weights", "cache", "rounded to nearest", "mean KL", "difference", "95 % of it")


@dataclass(frozen=True, slots=True)
class Row:
    """A form of the model and what it was measured at; `row_bytes` is what the cache takes a token.

    `against` is what plain rounding to nearest of the same formats costs, and by how much more this does;
    None for all but int4 weights with a float cache.
    """

    weights: str
    cache: str
    nbytes: int
    row_bytes: int
    quality: Quality
    against: tuple[float, Difference] | None

    @property
    def free(self) -> list[str]:
        """Cells of the table with routing free."""
        sizes = [self.weights, self.cache, f"{self.nbytes:,}", f"{self.row_bytes:,}"]
        return [*sizes, *cells(self.quality.free[0]), f"{self.quality.rerouted or 0:.2%}"]

    @property
    def pinned(self) -> list[str]:
        """Cells of the table with routing pinned."""
        return [self.weights, self.cache, *cells((self.quality.pinned or self.quality.free)[0])]

    @property
    def paired(self) -> list[str]:
        """Cells of the table beside rounding to nearest, none where it is not made."""
        if self.against is None:
            return []
        nearest, found = self.against
        kl = (f"{value:.1e}" for value in (nearest, self.quality.free[0].kl_mean, found.mean))
        said = f"{found.low:.1e} … {found.high:.1e}" + ("" if found.better else ", **not better**")
        return [self.weights, self.cache, *kl, said]


def cells(figures: Figures) -> list[str]:
    divergences = [f"{kl:.1e}" for kl in (figures.kl_mean, figures.kl_99, figures.kl_999)]
    return [f"{figures.perplexity:.3f}", *divergences, f"{figures.same_top:.2%}"]


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """Write a table in Markdown; the first two columns are text."""
    rule = ["---", "---", *["--:"] * (len(header) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


class Measuring:
    """What all rows share: the text as the checkpoint reads it, and as rounded to nearest."""

    def __init__(self, folder: Path, tokens: int, threads: int | None) -> None:
        self.folder, self.threads = folder, threads
        # windows are cut with a bundle's tokenizer; all of them have the same
        bundle = Bundle.open(export(SAMPLE, folder / "bundle"))
        reference = Reference(Checkpoint.open(SAMPLE), bundle.model.max_context)
        self.teacher = Teacher.of(reference, text_windows(bundle, TEXT, tokens))
        self._nearest: dict[Rounded, Tally] = {}

    def row(self, weights: str, cache: str) -> Row:
        """Export one form and measure it."""
        options = {**WEIGHTS[weights], **CACHES[cache]}
        if options.get("calibrate"):
            options["calibrate"] = calibration(self.folder)
        bundle = Bundle.open(export(SAMPLE, self.folder / "bundle", **options, force=True))
        row_bytes = sum(tensor.row_bytes for tensor in bundle.cache)
        found = observe(bundle, self.teacher, self.threads)
        paired = options.get("weights") == "int4" and not CACHES[cache]
        against = self._against(bundle, found) if paired else None
        return Row(weights, cache, bundle.nbytes, row_bytes, found.quality, against)

    def _against(self, bundle: Bundle, found: Observed) -> tuple[float, Difference]:
        rounded = counterpart(bundle.manifest.precision)
        assert rounded is not None
        if rounded not in self._nearest:
            self._nearest[rounded] = observe_rounded(rounded, self.teacher)
        nearest = self._nearest[rounded].kl
        return float(nearest.mean()), paired_bootstrap(found.free.kl, nearest)


def calibration(folder: Path) -> Path:
    """Give the text that weights are calibrated with, made once."""
    path = folder / "calibration.txt"
    if not path.exists():
        with path.open("w", encoding="utf-8") as file:
            subprocess.run([sys.executable, CALIBRATION], stdout=file, check=True)
    return path


def gates(rows: list[Row]) -> tuple[list[list[str]], bool]:
    """Give the lines of the table of gates, and whether all are held with routing free."""
    lines, held = [], True
    for weights, cache, name, limit in GATES:
        (found,) = (row.quality for row in rows if (row.weights, row.cache) == (weights, cache))
        line = [weights, cache, f"{name} {'≥' if name == 'same top-1' else '≤'} {written(name, limit)}"]
        for figures in (found.free[0], (found.pinned or found.free)[0]):
            value = {"mean KL": figures.kl_mean, "99 % KL": figures.kl_99, "same top-1": figures.same_top}[
                name
            ]
            holds = value >= limit if name == "same top-1" else value <= limit
            line.append(written(name, value) + ("" if holds else ", **missed**"))
        held &= "missed" not in line[3]
        lines.append(line)
    return lines, held


def written(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "same top-1" else f"{value:.1e}"


def document(rows: list[Row], old: str) -> str:
    """Put the tables of `rows` in the place of those in `old`."""
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    first = rows[0].quality
    said = (
        f"{first.tokens:,} positions in windows of {first.window:,}; "
        f"the checkpoint in fp32 has a perplexity of {first.free[0].reference_perplexity:.3f}."
    )
    free = table((*SIZES, *FIGURES, "rerouted"), [row.free for row in rows])
    pinned = table((*SIZES[:2], *FIGURES), [row.pinned for row in rows])
    paired = [row.paired for row in rows if row.against]
    held = table(("weights", "cache", "gate", "routing free", "pinned"), gates(rows)[0])
    parts = [BEGIN, said, "Routing free:", free, "Routing pinned to the checkpoint's choices:", pinned]
    parts += ["Beside plain rounding to nearest, routing free:", table(PAIRED, paired)]
    parts += ["Gates:", held, END]
    return head + "\n\n".join(parts) + tail


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000, help="positions of the text to read")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary, reporting():
        measuring = Measuring(Path(temporary), args.tokens, args.threads)
        for weights in WEIGHTS:
            for cache in CACHES:
                rows.append(measuring.row(weights, cache))
                cells_of_row = (*rows[-1].free, *rows[-1].pinned[2:], *rows[-1].paired[2:])
                print(*cells_of_row, sep=" | ", flush=True)
    DOCUMENT.write_text(document(rows, DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    better = all(row.against[1].better for row in rows if row.against)
    return 0 if better and gates(rows)[1] else 1


if __name__ == "__main__":
    sys.exit(main())
