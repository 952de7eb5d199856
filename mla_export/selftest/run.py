"""The stages in their order: what each needs of those before, and why one is skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mla_export.extras import is_there, not_installed
from mla_export.sample import sample_checkpoint
from mla_export.selftest.apart import StageError
from mla_export.selftest.result import Outcome, SelfTest, Stage
from mla_export.selftest.work import label
from mla_runtime import backends
from mla_runtime.engines.flavour import FLAVOURS, THIS, Flavour

Call = Callable[[str, Mapping[str, Any]], dict[str, Any]]
CPU = "ort:cpu"
# what the sample is exported as where no bundle is given
FORMS: Mapping[str, Mapping[str, Any]] = {
    "sample-fp32": {},
    "sample-fp16": {"dtype": "fp16"},
    "sample-fp16-int8-cache": {"dtype": "fp16", "cache": "int8"},
    "sample-int8-int8-cache": {"dtype": "fp16", "weights": "int8", "cache": "int8"},
    "sample-int4-int8-cache": {"dtype": "fp16", "weights": "int4", "cache": "int8"},
}
AHEAD = ("sm86", "sm89", "sm120")  # cards that are built for where there is none
DEPTHS = (0, 1024, 4096, 16384)
CPU_DEPTHS = DEPTHS[:2]  # a processor is there to be compared with, and slow


@dataclass(slots=True)
class Run:
    """Does stages with `call`, and tells each: `begins` its title, `saved` all that was found so far.

    What others are told of them, messages and results, goes through `clean`.
    """

    call: Call
    begins: Callable[[str], None]
    saved: Callable[[SelfTest], None]
    clean: Callable[[Any], Any]
    device: Mapping[str, Any] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)

    def everything(self, bundles: Sequence[str], flavours: Sequence[str], folder: Path) -> SelfTest:
        """Do all stages for `bundles`, or for some made of the sample in `folder`; none ends the others."""
        found = self.do("device", None, None, "device", {})
        self.device = self.clean(found or {})
        gpu = self.device.get("gpu")
        for path in self._given(bundles) if bundles else self._exported(folder):
            self._on_cpu(path)
            for name in flavours:
                self._on_card(path, FLAVOURS[name], gpu)
        return self._so_far(finished=True)

    def do(
        self,
        name: str,
        bundle: str | None,
        backend: str | None,
        work: str,
        arguments: Mapping[str, Any],
        *,
        unless: str | None = None,
        on_error: Outcome = "failed",
        judge: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
    ) -> dict[str, Any] | None:
        """Do one stage, or skip it for the reason `unless`; give its result where it passed.

        `judge` says what is wrong with a result, which the stage then keeps.
        """
        of = None if bundle is None else label(bundle)
        start = time.monotonic()
        result: dict[str, Any] | None = None
        outcome, message = on_error, unless
        if unless is not None:
            outcome = "skipped"
        else:
            self.begins(Stage(name, of, backend, "passed", "", 0.0).title)
            try:
                result = self.call(work, arguments)
                message = judge(result)
                outcome = "passed" if message is None else "failed"
            except StageError as error:
                message = str(error)
        seconds = round(time.monotonic() - start, 3)
        told = self.clean({"message": message or "", "result": result})
        self.stages.append(Stage(name, of, backend, outcome, told["message"], seconds, told["result"]))
        self._so_far(finished=False)
        return result if outcome == "passed" else None

    def _so_far(self, *, finished: bool) -> SelfTest:
        found = SelfTest(version("mla-export"), self.device, tuple(self.stages), finished)
        self.saved(found)
        return found

    def _given(self, bundles: Sequence[str]) -> list[str]:
        paths = [str(Path(path).resolve()) for path in bundles]
        read = {path: self.do("bundle", path, None, "bundle", {"path": path}) for path in paths}
        return [path for path, found in read.items() if found is not None]

    def _exported(self, folder: Path) -> list[str]:
        checkpoint = sample_checkpoint()
        missing = [name for name in ("torch", "onnx", "onnx_ir", "onnxscript") if not is_there(name)]
        reason: str | None = None
        if missing:
            reason = f"no bundle was given, and none can be made here: {not_installed(missing)}; export on "
            reason += "another machine, and give the bundle: mla-export selftest BUNDLE"
        elif checkpoint is None:
            reason = "no bundle was given, and the sample is in the source tree only; give a bundle"
        made = []
        for name, forms in FORMS.items():
            out = str(folder / name)
            arguments = {"checkpoint": str(checkpoint), "out": out, "forms": forms}
            if self.do("export", out, None, "export", arguments, unless=reason) is not None:
                made.append(out)
        return made

    def _on_cpu(self, path: str) -> None:
        missing = None if is_there("onnxruntime") else not_installed(["onnxruntime"])
        arguments: dict[str, Any] = {"path": path, "backend": CPU}
        self.do("canary", path, CPU, "canary", arguments, unless=missing)
        self.do("speed", path, CPU, "speed", {**arguments, "depths": CPU_DEPTHS}, unless=missing)

    def _on_card(self, path: str, flavour: Flavour, gpu: Mapping[str, Any] | None) -> None:
        absent = None
        if not is_there(flavour.module):
            absent = f"the Python package {flavour.module} is not installed; {flavour.install}"
        reason = absent or ("there is no NVIDIA GPU to be seen here" if gpu is None else None)
        foreign = gpu is not None and bool(flavour.cards) and gpu["card"] not in flavour.cards
        arguments: dict[str, Any] = {"path": path, "flavour": flavour.name, "cards": [THIS]}
        # a card that the flavour was not made for: what it says to that is a fact, and no failure
        on_error: Outcome = "skipped" if foreign else "failed"
        built = self.do("build", path, flavour.name, "build", arguments, unless=reason, on_error=on_error)
        if built is None and flavour.cards:
            ahead = {**arguments, "cards": AHEAD}
            self.do("build ahead of time", path, flavour.name, "build", ahead, unless=absent)
        if reason is None and built is None:
            reason = "there are no engines"
        if reason is None and flavour.name not in backends.NAMES:
            reason = f"this version builds for {flavour.name} and does not run there yet"
        arguments = {"path": path, "backend": flavour.name}
        loaded = self.do("canary", path, flavour.name, "canary", arguments, unless=reason)
        if reason is None and loaded is None:
            reason = "the canary did not pass"
        missing = None if is_there("onnxruntime") else not_installed(["onnxruntime"])
        self.do(
            "agreement", path, flavour.name, "agreement", arguments, unless=reason or missing, judge=_parted
        )
        self.do("speed", path, flavour.name, "speed", {**arguments, "depths": DEPTHS}, unless=reason)


def _parted(found: Mapping[str, Any]) -> str | None:
    """Say which side of a comparison is further off than it may be."""
    wrong = [side["reason"] or "its numbers are off" for side in found["sides"] if side["verdict"] == "fail"]
    return f"does not compute what ONNX Runtime does: {'; '.join(wrong)}" if wrong else None
