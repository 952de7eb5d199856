"""Loading graphs into ONNX Runtime: all of one bundle or none, and each as the manifest describes it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import mla_runtime
from mla_runtime import backends
from mla_runtime.errors import BackendError, BundleError, InputError, SessionError
from tests.runtime.handmade import V, make_bundle, manifest, reference, write_manifest

IDS = np.random.default_rng(3).integers(0, V, 60).tolist()
CLOSE = {"atol": 1e-4, "rtol": 0}  # as in test_ort.py


def test_graphs_are_loaded_once_and_those_of_batches_when_first_used(bundle: Path) -> None:
    with mla_runtime.open(bundle, threads=1) as model:
        backend: Any = model.backend
        loaded = dict(backend._graphs)
        assert sorted(loaded) == [("prompt", False), ("step", False)]
        for _ in range(2):
            with model.session() as s:
                s.prefill([[1]])
                s.step([2])
        assert backend._graphs == loaded
        with model.session(2) as s:
            s.prefill([[1], [2]])
            s.step([2, 3])
        assert sorted(backend._graphs) == [("prompt", False), ("step", False), ("step", True)]


def other_bundle(folder: Path) -> Path:
    """A bundle of the same shapes with other weights."""
    make_bundle(folder)
    (folder / "weights.data").write_bytes(np.fromfile(folder / "weights.data", np.float32)[::-1].tobytes())
    write_manifest(folder, {k: v for k, v in manifest().items() if k != "sha256"})
    return folder


def replace(old: Path, new: Path) -> None:
    """As an export with --force does."""
    old.rename(old.with_name("replaced"))
    new.rename(old)


def test_a_bundle_replaced_while_it_is_used_goes_on_as_it_was(folder: Path, tmp_path: Path) -> None:
    with mla_runtime.open(folder, threads=1) as model, model.session() as s:
        s.prefill([IDS[:9]])
        replace(folder, other_bundle(tmp_path / "other"))
        np.testing.assert_allclose(s.step([IDS[9]])[0], reference(IDS[:10])[-1], **CLOSE)


def test_no_graph_of_another_bundle_is_loaded_beside_those_in_use(folder: Path, tmp_path: Path) -> None:
    with mla_runtime.open(folder, threads=1) as model, model.session(2) as s:
        s.prefill([IDS[:9], IDS[:4]])
        replace(folder, other_bundle(tmp_path / "other"))
        with pytest.raises(BundleError, match=r"\.onnx: changed after it was opened; open the bundle again"):
            s.step([1, 2])
        assert s.lengths == (9, 4)
        shutil.rmtree(folder)
        with pytest.raises(BundleError, match="a file of it is gone"):
            s.step([1, 2])


def test_a_file_replaced_while_the_engine_loads_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = onnxruntime.InferenceSession

    def slowly(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        os.utime(folder / "weights.data")
        return loaded

    monkeypatch.setattr(onnxruntime, "InferenceSession", slowly)
    with pytest.raises(BundleError, match=r"weights.data: changed after it was opened"):
        mla_runtime.open(folder)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_closed_model_computes_no_more(bundle: Path, batch: int) -> None:
    model = mla_runtime.open(bundle, threads=1)
    with model.session(batch) as s:
        s.prefill([IDS[:4]] * batch)
        model.close()
        with pytest.raises(SessionError, match="this model is closed; open the bundle again"):
            s.step([1] * batch)
    with pytest.raises(SessionError, match="this model is closed"):
        model.session(batch)
    model.close()


def test_a_provider_that_did_not_load_is_named_with_the_one_that_did(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["OtherExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(BackendError, match="asked for on CPUExecutionProvider and loaded on OtherExecution"):
        mla_runtime.open(bundle)


@pytest.mark.parametrize("name", ["ort", "ort:cuda"])
def test_unknown_backends_are_refused_with_those_that_run(bundle: Path, name: str) -> None:
    known = ", ".join(backends.NAMES)
    with pytest.raises(BackendError, match=f"no backend '{name}'; known are {known}$"):
        mla_runtime.open(bundle, name)


@pytest.mark.parametrize("threads", [0, 100_000])
def test_no_threads_and_more_than_a_machine_bears_are_refused(bundle: Path, threads: int) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}; here it must be 1 to"):
        mla_runtime.open(bundle, threads=threads)


def test_a_missing_engine_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"not installed; install onnxruntime \(extra `cpu`\)"):
        mla_runtime.open(bundle)


def _edit_graph(folder: Path, edit: Any) -> None:
    proto = onnx.load(folder / "step.onnx", load_external_data=False)
    edit(proto.graph)
    (folder / "step.onnx").write_bytes(proto.SerializeToString())
    content = json.loads((folder / "bundle.json").read_text())
    del content["sha256"]
    write_manifest(folder, content)


def test_a_graph_with_another_signature_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")

    def rename(graph: Any) -> None:
        del graph.output[1]

    _edit_graph(folder, rename)
    with pytest.raises(BundleError, match=r"output 'present_0_latent' is in bundle.json but not the"):
        mla_runtime.open(folder)


def test_a_graph_of_another_dtype_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", cache="float32")
    content = json.loads((folder / "bundle.json").read_text())
    del content["sha256"]
    content["cache"][1]["dtype"] = "float16"
    write_manifest(folder, content)
    with pytest.raises(BundleError, match=r"'past_0_rope' is tensor\(float\), bundle.json says float16"):
        mla_runtime.open(folder)


def test_what_is_not_a_graph_is_a_backend_error(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    _edit_graph(folder, lambda graph: graph.ClearField("node"))
    with pytest.raises(BackendError, match=r"ort:cpu: .*step.onnx does not load"):
        mla_runtime.open(folder)
