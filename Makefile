# `make demo` and `make test` work on a fresh machine: each sets up .venv with what it needs, then runs.
# Stamps in .venv make a second call fast; a change of pyproject.toml or constraints.txt installs again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# two processes with one thread each: the models of the tests are too small to gain from threads
WORKERS ?= 2
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

# for the comparison with other programs alone: one of them is compiled here, for this machine's processor
PEERS := .venv-peers
CLANG = $(firstword $(shell command -v clang-19 clang 2>/dev/null) cc)

define check_python
@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
"$(PYTHON) is Python %d.%d; 3.11 or later is needed here: make PYTHON=python3.11 ..." % v[:2])'
endef

.PHONY: help demo test lint type format wheel builds bench-peers clean

help:
	@echo "make demo      export the sample model, prove the export, decode with it"
	@echo "make test      the whole test suite"
	@echo "make lint      ruff, check only      make format   let ruff rewrite"
	@echo "make type      mypy, strict          make wheel    build the wheel into dist/"
	@echo "make builds    TensorRT-RTX engines of every published shape in every precision; needs no GPU"
	@echo "make bench-peers  speed beside llama.cpp, mobius-onnx and transformers; 30 GB of disk"
	@echo "make clean     remove .venv, caches and outputs"

$(BIN)/python:
	$(check_python)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); this takes minutes the first time."
	$(PIP) install -q -e '.[cpu,text,export,verify,report]' -c constraints.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing the development tools into $(VENV)."
	$(PIP) install -q -e '.[cpu,text,export,verify,report,rtx,dev]' -c constraints.txt
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/mla-export demo --keep out/demo

test: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

builds: $(VENV)/.dev
	@mkdir -p out
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/engine_builds.py --out out/engine-builds.json

$(PEERS)/.installed: benchmarks/peers/requirements.txt pyproject.toml
	$(check_python)
	@echo "Installing into $(PEERS) and compiling llama.cpp with $(CLANG) for this processor."
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q cmake ninja
	PATH="$(abspath $(PEERS))/bin:$$PATH" CC=$(CLANG) CXX=$(subst clang,clang++,$(CLANG:cc=c++)) \
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" \
	$(PEERS)/bin/python -m pip install -q --no-binary llama-cpp-python -r benchmarks/peers/requirements.txt
	$(PEERS)/bin/python -m pip install -q -e '.[cpu,export,verify]'
	@touch $@

bench-peers: $(PEERS)/.installed
	HF_HUB_OFFLINE=1 $(PEERS)/bin/python benchmarks/peers/bench.py --weights int4 int8 float

clean:
	rm -rf $(VENV) $(PEERS) dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
