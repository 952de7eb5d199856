"""The rules of the house: which way packages depend, what imports without what, sizes, names, the wheel."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import tomllib

from mla_export.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "mla_export": ROOT / "mla_export",
    "mla_graphs": ROOT / "graphs" / "mla_graphs",
    "mla_runtime": ROOT / "runtime" / "mla_runtime",
}
OURS = set(PACKAGES)
MAKING = {"torch", "transformers", "safetensors"}
ONNX = {"onnx", "onnx_ir", "onnxscript"}
ENGINES = {"cuda", "onnxruntime", "tensorrt", "tensorrt_rtx"}
# what a package may not import anywhere, not even late
FORBIDDEN = {
    "mla_export": set(),
    "mla_graphs": OURS - {"mla_graphs"} | MAKING | {"onnxruntime"},
    "mla_runtime": OURS - {"mla_runtime"} | MAKING | ONNX,
}
# what a package does not need in order to be imported
BLOCKED_AT_IMPORT = {
    "mla_export": MAKING | ONNX | {"onnxruntime"},
    "mla_graphs": MAKING | {"onnxruntime"},
    "mla_runtime": MAKING | ONNX | ENGINES | {"tokenizers", "jinja2"},
}
MAX_LINES = 400
SOURCES = [*PACKAGES.values(), ROOT / "tests", ROOT / "samples", ROOT / "benchmarks"]


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imported_roots(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at any depth of its code."""
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            roots.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            roots.add(node.module.partition(".")[0])
    return roots


def run_blocked(blocked: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter in which importing any of `blocked` fails."""
    prelude = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {blocked!r}:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        f"sys.meta_path.insert(0, Block())\nsys.path[:0] = {[str(p.parent) for p in PACKAGES.values()]!r}\n"
    )
    command = [sys.executable, "-c", prelude + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package: str):
    for path in python_files(PACKAGES[package]):
        wrong = imported_roots(path) & FORBIDDEN[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_relative_imports_do_not_hide_a_dependency():
    for path in python_files(*PACKAGES.values()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 0]
        assert not relative, f"{path.relative_to(ROOT)} has relative imports; write the package's name"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_without_heavy_modules(package: str):
    done = run_blocked(BLOCKED_AT_IMPORT[package], f"import {package}")
    assert done.returncode == 0, done.stderr


def test_blocking_works():
    done = run_blocked({"json"}, "import json")
    assert done.returncode == 1
    assert "json is blocked" in done.stderr


def public_names(module: ModuleType) -> set[str]:
    """Names that a package holds and whoever reads it would take for its own; `dir` shows what it likes."""
    home = module.__name__.partition(".")[0]
    ours = {
        name
        for name, value in vars(module).items()
        if not isinstance(value, ModuleType) and getattr(value, "__module__", home).partition(".")[0] in OURS
    }
    return {name for name in ours if not name.startswith("_")} - {"TYPE_CHECKING"}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_exactly_all(package: str):
    module = importlib.import_module(package)
    declared = set(module.__all__)
    assert len(module.__all__) == len(declared)
    for name in declared:  # which also imports those that come late
        assert not isinstance(getattr(module, name), ModuleType), f"{package}.{name} is a module"
    public = public_names(module)
    assert public <= declared, f"public but not in __all__: {sorted(public - declared)}"


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("stray", [3, public_names, ModuleType("m")], ids=["constant", "function", "module"])
def test_a_stray_name_is_found(package: str, stray: object, monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module(package)
    if callable(stray):
        monkeypatch.setattr(stray, "__module__", f"{package}.somewhere")
    monkeypatch.setattr(module, "stray", stray, raising=False)
    assert ("stray" in public_names(module)) is not isinstance(stray, ModuleType)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_typed(package: str):
    assert (PACKAGES[package] / "py.typed").is_file()


def test_every_folder_of_a_package_is_a_package():
    for path in python_files(*PACKAGES.values()):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent.relative_to(ROOT)} has no __init__.py"


def test_files_are_short_and_have_one_idea():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in python_files(*SOURCES)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"past {MAX_LINES} lines, so it is two files: {long}"


def test_no_drawer_for_everything():
    names = {path.name for path in python_files(*SOURCES)}
    assert not names & {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


def test_package_files_start_with_a_docstring_and_future_annotations():
    for path in python_files(*PACKAGES.values()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        where = path.relative_to(ROOT)
        assert ast.get_docstring(tree), f"{where} does not say what it is"
        future = any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
        assert future or len(tree.body) == 1, f"{where} lacks `from __future__ import annotations`"


def test_no_path_of_one_machine():
    prose = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.txt"), *ROOT.glob("*.toml")]
    texts = [*python_files(*SOURCES), *prose, ROOT / "Makefile"]
    home = re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+|work)/")
    for path in texts:
        if path != Path(__file__).resolve():
            found = home.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)} has {found and found.group()}"


def modules_of(requirements: list[str]) -> set[str]:
    """Names by which what is required is imported: onnx-ir>=1.0 as onnx_ir."""
    names = (re.match(r"[\w-]+", requirement) for requirement in requirements)
    return {name.group().replace("-", "_").lower() for name in names if name}


def test_extras_are_what_the_packages_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: modules_of(wanted) for name, wanted in project["optional-dependencies"].items()}
    # TensorRT is imported by its flavour's name, and CUDA's bindings are one package of `cuda`
    engines = {"rtx": {"tensorrt_rtx", "cuda_bindings", "nvidia_cuda_nvrtc"}, "tensorrt": {"cuda_bindings"}}
    assert {name: extras[name] for name in engines} == engines
    promised = modules_of(project["dependencies"]).union(
        {"cuda"}, *(modules for name, modules in extras.items() if name != "dev" and name not in engines)
    )
    imported = set().union(*(imported_roots(path) for path in python_files(*PACKAGES.values())))
    # torch.onnx imports these two itself, and onnx_ir the first
    assert imported - OURS - set(sys.stdlib_module_names) | {"onnx", "onnxscript"} == promised
    for module, extra in EXTRAS.items():
        assert module in extras[extra], f"EXTRAS sends who lacks {module} to {extra}"


def test_every_marker_is_used():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    texts = [path.read_text(encoding="utf-8") for path in python_files(ROOT / "tests")]
    for marker in options["ini_options"].get("markers", []):
        name = marker.partition(":")[0]
        assert any(f"pytest.mark.{name}" in text for text in texts), f"no test is {name}"


def test_git_ignores_what_a_killed_export_leaves():
    code = (ROOT / "mla_export" / "publish.py").read_text(encoding="utf-8")
    kinds = set(re.findall(r"\.\{out\.name\}\.(\w+)-", code))
    assert kinds == {"staging", "replaced"}
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {f".*.{kind}-*/" for kind in kinds} <= set(ignored)


def test_help_names_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    told = set(re.findall(r"\bmake ([a-z-]+)", text.partition("help:")[2].partition("$(BIN)")[0]))
    assert told == set(targets.split()) - {"help"}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("minor", "goes"), [(9, False), (10, False), (11, True), (14, True)])
def test_make_wants_a_python_that_the_pinned_versions_have(tmp_path: Path, minor: int, goes: bool):
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        f"sys.version_info = (3, {minor}, 1, 'final', 0)\n"
        "if sys.argv[1] == '-c': exec(sys.argv[2])\n"
        "else: pathlib.Path(__file__).with_name('made').touch()\n"
    )
    python.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", f"PYTHON={python}", f"VENV={venv}", f"{venv}/bin/python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) is goes is (tmp_path / "made").exists()
    assert (f"is Python 3.{minor}; 3.11 or later is needed" in done.stderr) is not goes


def test_wheel_holds_exactly_the_three_packages(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tops = {name.partition("/")[0] for name in names}
        assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
        assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
        assert {"mla_export/devices.json", "mla_runtime/engines/versions.json"} <= set(names)
        (metadata,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "mla-export = mla_export.cli:main" in archive.read(metadata).decode()
        assert any(name.endswith("licenses/LICENSE") for name in names)
