"""Facts of the device that say what was run on what; nothing of them says whose it is."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mla_runtime.engines.gpu import gpu_at_hand
from mla_runtime.memory import memory_limit

PACKAGES = (
    *("mla-export", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "cuda-bindings"),
    *("cuda-python", "torch", "onnx", "matplotlib"),
)
_QUERY = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "pcie.link.gen.max")
_SECONDS = 20


def facts() -> dict[str, Any]:
    """Give what is known of GPU, processor, system and packages; None for what the system does not tell."""
    gpu = gpu_at_hand()
    return {
        "gpu": None
        if gpu is None
        else {
            "name": gpu.name,
            "compute_capability": ".".join(map(str, gpu.capability)),
            "card": gpu.card,
            "memory_bytes": gpu.memory,
            "cuda_of_driver": ".".join(map(str, gpu.cuda)),
            **_nvidia_smi(),
        },
        "jetson": _jetson(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory_limit(),
        "system": _system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _nvidia_smi() -> dict[str, str]:
    said = _said("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader")
    values = [value.strip() for value in said.splitlines()[0].split(",")] if said else []
    return dict(zip(_QUERY, values, strict=True)) if len(values) == len(_QUERY) else {}


def _jetson() -> dict[str, str] | None:
    model = _text(Path("/proc/device-tree/model")).strip("\0\n ")
    release = _text(Path("/etc/nv_tegra_release")).partition("\n")[0]
    if "jetson" not in model.lower() and not release:
        return None
    mode = " ".join(_said("nvpmodel", "-q").split())
    return {"model": model, "l4t": release.lstrip("# "), "power_mode": mode or "not readable"}


def _processor() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.system()} {platform.release()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _said(*command: str) -> str:
    """Give what a program of the system says; empty where it is not there or says that it cannot."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
