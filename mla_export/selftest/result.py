"""What a self-test found, stage by stage, as data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mla_export.plain import plain

FORMAT = 1
Outcome = Literal["passed", "failed", "skipped"]
Verdict = Literal["passed", "failed", "not run on hardware"]
ON_HARDWARE = "agreement"  # the stage that says whether a card computes what it should


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing that was done, or why it was not. `result` is what it gave, as JSON has it."""

    name: str
    bundle: str | None
    backend: str | None
    outcome: Outcome
    message: str
    seconds: float
    result: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """Say what it is: `build of fp16 on tensorrt-rtx`."""
        of = "" if self.bundle is None else f" of {self.bundle}"
        return f"{self.name}{of}" + ("" if self.backend is None else f" on {self.backend}")


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All stages in their order, and facts of the device; `finished` is False while others are to come."""

    version: str
    device: Mapping[str, Any]
    stages: tuple[Stage, ...]
    finished: bool

    @property
    def verdict(self) -> Verdict:
        """Failed if any stage did; passed if a card's numbers agreed; else nothing has run on hardware."""
        if any(stage.outcome == "failed" for stage in self.stages):
            return "failed"
        return "passed" if self.on_hardware else "not run on hardware"

    @property
    def on_hardware(self) -> tuple[str, ...]:
        """The flavours of TensorRT that computed on a card what ONNX Runtime computes."""
        ran = (s.backend for s in self.stages if s.name == ON_HARDWARE and s.outcome == "passed")
        return tuple(dict.fromkeys(filter(None, ran)))

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON's types; numbers that are not finite become null."""
        head = {"kind": "selftest", "format": FORMAT, "verdict": self.verdict}
        return {**head, "on_hardware": list(self.on_hardware), **plain(asdict(self))}
