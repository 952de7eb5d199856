"""Which packages come with which extra, and what to say when some of them are missing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from mla_runtime.errors import BackendError

EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "transformers": "verify",
    "onnxruntime": "cpu",
    "tokenizers": "text",
    "jinja2": "text",
    "matplotlib": "report",
}


def need(*packages: str) -> None:
    """Raise `BackendError` that names all of `packages` that cannot be imported; none is imported here."""
    if missing := [package for package in packages if not is_there(package)]:
        raise BackendError(not_installed(missing))


def not_installed(packages: Iterable[str]) -> str:
    """Say that `packages` are missing, and the pip line that installs them; their roots are in `EXTRAS`."""
    names = list(packages)
    extras = ",".join(sorted({EXTRAS[name.partition(".")[0]] for name in names}))
    verb = "is" if len(names) == 1 else "are"
    return f"{' and '.join(names)} {verb} not installed; try: pip install 'mla-export[{extras}]'"


def is_there(package: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    try:
        return find_spec(package) is not None
    except ImportError:  # from a finder that does not let it be imported
        return False
