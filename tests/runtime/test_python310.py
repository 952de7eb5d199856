"""The runtime on what devices have: Python 3.10 and onnxruntime 1.23.2, the newest made for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mla_runtime
from mla_export.export import export
from tests.checkpoints import make_checkpoint
from tests.quick_trace import quick_tracing

ROOT = Path(__file__).resolve().parents[2]
ENGINE = "onnxruntime==1.23.2"
PROMPT = [3, 1, 4, 1, 5]

DECODE = """
import json, sys
import onnxruntime
import mla_runtime

assert sys.version_info[:2] == (3, 10), sys.version
assert onnxruntime.__version__ == "1.23.2", onnxruntime.__version__
with mla_runtime.open(sys.argv[1], threads=1) as model:
    stream = model.generate({prompt}, max_tokens=40, stop_ids=[])
    alone = [token.id for token in stream]
    batch = model.complete([{prompt}, {prompt}[:2]], max_tokens=10, stop_ids=[])
    speed = mla_runtime.measure(model, [64], prompt_tokens=8, steps=2)
    print(json.dumps([alone, [list(row.ids) for row in batch], stream.reason]))
"""


def find_python310() -> Path | None:
    """A Python 3.10 that runs: on the path, or among those of pyenv, whose shim alone may not run."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which("python3.10"), *sorted(pyenv.glob("versions/3.10.*/bin/python3.10"))]
    for path in filter(None, found):
        ask = [str(path), "-c", "import sys; print(sys.version_info[:2])"]
        result = subprocess.run(ask, capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip() == "(3, 10)":
            return Path(path)
    return None


@pytest.fixture(scope="module")
def python310(pytestconfig: pytest.Config) -> Path:
    """An environment with the base and the extra `cpu`, made once and kept in pytest's cache."""
    if sys.version_info < (3, 11):
        pytest.skip("this is Python 3.10 already")
    import tomllib

    python = find_python310()
    if python is None:
        message = "no Python 3.10 here; install one, or put it on the path as python3.10"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["cpu"], ENGINE]
    key = hashlib.sha256(json.dumps([str(python), needs]).encode()).hexdigest()[:16]
    assert pytestconfig.cache is not None
    home = pytestconfig.cache.mkdir("python310") / key
    inside = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (home / "ready").exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([str(python), "-m", "venv", str(home)], check=True)
        subprocess.run([str(inside), "-m", "pip", "install", "--quiet", *needs], check=True)
        (home / "ready").touch()
    return inside


def run(python: Path, *arguments: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "graphs"), str(ROOT / "runtime")]),
        "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],
    }
    done = subprocess.run(
        [str(python), "-W", "error", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_decodes_what_a_newer_one_decodes(python310: Path, bundle: Path, model: mla_runtime.Model) -> None:
    stream = model.generate(PROMPT, max_tokens=40, stop_ids=[])
    alone = [token.id for token in stream]
    batch = model.complete([PROMPT, PROMPT[:2]], max_tokens=10, stop_ids=[])
    found = json.loads(run(python310, "-c", DECODE.format(prompt=PROMPT), str(bundle)))
    assert found == [alone, [list(row.ids) for row in batch], stream.reason]


def test_a_bundle_is_held_against_versions_of_tensorrt_there(python310: Path, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", "deepseek_v3", num_hidden_layers=2)
    with quick_tracing():
        made = export(source, tmp_path / "bundle", dtype="fp16", cache="int8", max_context=64)
    shown = json.loads(run(python310, "-m", "mla_export", "inspect", str(made), "--json"))
    verdicts = {row["version"]: row["verdict"] for row in shown["bundle"]["tensorrt"]}
    assert verdicts["10.3"] == "builds"


def test_the_command_decodes_there(python310: Path, bundle: Path, model: mla_runtime.Model) -> None:
    ids = ",".join(map(str, PROMPT))
    shown = run(
        python310, "-m", "mla_export", "run", str(bundle), "--ids", ids, "--max-tokens", "9", "--json"
    )
    tokens = [token.id for token in model.generate(PROMPT, max_tokens=9)]
    assert json.loads(shown)["ids"] == tokens
