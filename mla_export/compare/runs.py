"""Every side's decode, one after another: only one model is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mla_export.compare.decode import Decoded, decode
from mla_export.compare.result import Side
from mla_export.compare.script import Script, script
from mla_export.compare.sides import CPU, Job, without_numbers
from mla_runtime import Model
from mla_runtime.errors import BackendError, EngineError, NumericsError, VerificationError


@dataclass(slots=True)
class Runs:
    """Every side's decode, the first of which settles what is forced on the others."""

    steps: int
    prompts: str | Path | None
    text: str | Path | None
    script: Script | None = None
    forced: Sequence[Sequence[int]] | None = None
    decoded: dict[Job, Decoded] = field(default_factory=dict)
    ended: dict[Job, Side] = field(default_factory=dict)
    notes: dict[Job, str] = field(default_factory=dict)

    def run(self, job: Job) -> None:
        """Decode with a side, or keep why it did not."""
        try:
            backend = job.load()
        except (BackendError, EngineError) as cause:
            self.ended[job] = without_numbers(job, "absent", str(cause))
            return
        except VerificationError as cause:  # engines whose canary fails are there, and wrong
            self.ended[job] = without_numbers(job, "fail", str(cause))
            return
        with Model(job.held, backend) as model:
            if self.script is None:
                self.script = script(model, self.steps, self.prompts, self.text)
                self.forced = self.script.forced
            try:
                decoded = decode(model, self.script.prompts, self.forced, self.steps)
            except (BackendError, NumericsError) as cause:
                self.ended[job] = without_numbers(job, "fail", str(cause))
                return
        if self.forced is None:
            self.forced = [tokens[:-1] for tokens in decoded.tokens]
        self._open(job, decoded)
        self.decoded[job] = decoded

    def settled(self, beside: Job | None) -> tuple[Script, Sequence[Sequence[int]]]:
        """Give what was decoded; raises BackendError where no side but the reference `beside` them began.

        Where all that began failed, nothing was forced.
        """
        begun = (self.decoded.keys() - {beside}) or any(end.verdict == "fail" for end in self.ended.values())
        if self.script is None or not begun:
            reasons = "; ".join(f"{job.name}: {side.reason}" for job, side in self.ended.items())
            only_torch = "torch is held beside bundles; name a backend for them too"
            raise BackendError(f"no side could be run ({reasons or only_torch})")
        return self.script, self.forced or [()] * len(self.script.prompts)

    def _open(self, job: Job, decoded: Decoded) -> None:
        """Look at every block's output too, where the backend lets graphs be opened."""
        if self.script is None or self.forced is None:
            raise RuntimeError("nothing is forced yet")
        if job.backend != CPU:
            self.notes[job] = f"block outputs are read on {CPU} only"
            return
        try:
            from mla_export.compare.blocks import block_outputs
        except ModuleNotFoundError as cause:
            self.notes[job] = f"block outputs take the package {cause.name}, which is not installed"
            return
        rows = [[*p, *t] for p, t in zip(self.script.prompts, self.forced, strict=True)]
        decoded.layers["block"] = block_outputs(job.held, self.script.prompts, rows)
