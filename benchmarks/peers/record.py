"""One measurement of one engine at one depth: what every peer reports, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Record:
    """What one engine did with one model, at `depth` rows of cache, on `threads` threads.

    `peer` and `version` name the engine and `build` how it was made; `shape` is the model, `weights` and
    `cache` their types in the engine's own names, `options` what else was chosen. A step is one token
    of one sequence, logits included, sampling not. The prompt has `prompt_tokens` tokens, of which the
    last one's logits are computed; its rate is None where it was not measured. `peak_bytes` is the
    process's peak resident memory up to this measurement; mapped weight files are counted.
    """

    peer: str
    version: str
    build: str
    shape: str
    weights: str
    cache: str
    options: str
    threads: int
    depth: int
    steps: int
    step_ms_median: float
    step_ms_best: float
    prompt_tokens: int
    prompt_tokens_per_second: float | None
    cache_bytes_per_token: int
    peak_bytes: int | None

    @property
    def case(self) -> tuple[str, ...]:
        """What the measurement is of, apart from its numbers."""
        named = (self.shape, self.peer, self.version, self.build, self.weights, self.cache, self.options)
        return (*named, str(self.threads), str(self.depth))


def save(records: Iterable[Record], path: Path) -> None:
    """Write records as a JSON list."""
    path.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


def load(path: Path) -> list[Record]:
    """Read what `save` wrote."""
    return [Record(**entry) for entry in json.loads(path.read_text())]


def merge(rounds: Iterable[Record]) -> list[Record]:
    """Make one record a case out of those of several rounds.

    Median of the medians, best of the bests, the best prompt rate: what disturbs a run makes it slower.
    """
    cases: dict[tuple[str, ...], list[Record]] = {}
    for record in rounds:
        cases.setdefault(record.case, []).append(record)
    return [_merged(records) for records in cases.values()]


def _merged(records: Sequence[Record]) -> Record:
    rates = [r.prompt_tokens_per_second for r in records if r.prompt_tokens_per_second is not None]
    peaks = [r.peak_bytes for r in records if r.peak_bytes is not None]
    return replace(
        records[0],
        steps=sum(r.steps for r in records),
        step_ms_median=median(r.step_ms_median for r in records),
        step_ms_best=min(r.step_ms_best for r in records),
        prompt_tokens_per_second=max(rates, default=None),
        peak_bytes=max(peaks, default=None),
    )


def table(shape: str, records: Sequence[Record]) -> Table:
    """Lay out the records of one shape: a row a case, decode rates a depth, the prompt's rate.

    Rates are those of median steps; B/row are the bytes that the cache keeps of one token.
    """
    depths = sorted({record.depth for record in records})
    out = Table(title=f"{shape}: tokens/s of decoding at depth, and of a prompt")
    out.add_column("engine: weights, cache, options", overflow="fold")
    for name in (*(f"{depth:,}" for depth in depths), "prompt", "B/row", "peak GB"):
        out.add_column(name, justify="right", no_wrap=True)
    rows: dict[tuple[str, ...], dict[int, Record]] = {}
    for record in records:
        rows.setdefault(record.case[:-1], {})[record.depth] = record
    for by_depth in rows.values():
        first = next(iter(by_depth.values()))
        rates = [r.prompt_tokens_per_second for r in by_depth.values() if r.prompt_tokens_per_second]
        peak = max((r.peak_bytes or 0 for r in by_depth.values()), default=0)
        out.add_row(
            f"{first.peer}: {first.weights}, {first.cache}, {first.options}",
            *(f"{1e3 / by_depth[d].step_ms_median:.1f}" if d in by_depth else "" for d in depths),
            f"{rates[0]:.1f}" if rates else "",
            f"{first.cache_bytes_per_token:,}",
            f"{peak / 1e9:.1f}" if peak else "",
        )
    return out
