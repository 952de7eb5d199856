"""How far a build is, from TensorRT's progress monitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mla_runtime.engines.interrupts import Interrupts

# What is being done, and how many of how many steps of it are.
OnProgress = Callable[[str, int, int], None]


def monitor(trt: Any, on_progress: OnProgress, interrupts: Interrupts) -> Any:
    """Make a monitor that tells the outermost phases of a build, and ends it after Ctrl-C.

    What `on_progress` raises must not pass through TensorRT: it ends the build, and is kept in the monitor's
    `raised`.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the bindings have no types
        def __init__(self) -> None:
            super().__init__()
            self.raised: BaseException | None = None
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._phases[phase_name] = num_steps
                self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.raised is None and not interrupts.pressed

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._phases.get(phase_name, 0))
            self._phases.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            try:
                if phase in self._phases and self.raised is None:
                    on_progress(phase, done, self._phases[phase])
            except BaseException as error:  # raised again by whoever called TensorRT
                self.raised = error

    return Monitor()
