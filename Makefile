# The two commands of the README, and what a developer runs. All of them set up what they need.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= serve_configs/smollm2-cpu.yaml
# Where torch comes from. PyPI's Linux wheel brings CUDA (2 to 3 GB), so a machine without an NVIDIA GPU takes PyTorch's
# CPU wheel where that index answers within 5 seconds. Say otherwise with NVIDIA_GPU=yes, or name an index yourself:
#   make serve TORCH_INDEX=https://pypi.org/simple
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
NVIDIA_GPU ?= $(shell { command -v nvidia-smi || ls /dev/nvidia*; } >/dev/null 2>&1 && echo yes || echo no)
# `make test-lowest` takes the lowest torch that pyproject.toml admits, unless TORCH says another.
LOWEST_TORCH = $(if $(filter file,$(origin TORCH)),$(shell sed -n 's/.*"\(torch\)>=\([0-9.]*\),.*/\1==\2/p' pyproject.toml),$(TORCH))
KERNEL_TESTS = tests/unit/ops/gpu tests/unit/ops/attention tests/unit/model/test_fused_layers.py tests/unit/check/test_gpu_kernels.py
LOWEST_TESTS ?= tests/unit/medusa tests/unit/ops tests/unit/api
PIP = $(VENV)/bin/pip --disable-pip-version-check

.PHONY: help serve docs site build test test-slow test-matrix test-lowest test-clients test-browser test-kernels test-gpu gpu lint format clean
.DEFAULT_GOAL := help

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/installed ## install, fetch the demo model, serve it, and print how to call it
	$(VENV)/bin/medusa-dist demo
	$(VENV)/bin/medusa-dist serve $(CONFIG)

docs: $(VENV)/installed ## write docs/config.md and the README's file tree anew from the code
	$(VENV)/bin/python -m medusa_dist.tools.docs

site: $(VENV)/installed-docs ## make a site of docs/ in site/; a broken link is an error
	$(VENV)/bin/zensical build --clean --strict

build: $(VENV)/installed-dev ## make the source distribution and the wheel in dist/
	rm -rf build *.egg-info # setuptools would take files that an earlier build listed
	$(VENV)/bin/python -m build

test: $(VENV)/installed-dev ## the default suite
	$(VENV)/bin/pytest

test-slow: $(VENV)/installed-dev ## long matrices, chaos and soak runs
	$(VENV)/bin/pytest -m slow

test-matrix: $(VENV)/installed-dev ## exactness in full: all of on = off, rows, distribution, lives (some 20 minutes)
	$(VENV)/bin/pytest -m slow tests/end_to_end/test_exactness_matrix.py tests/end_to_end/test_row_invariance.py tests/end_to_end/test_distribution.py tests/end_to_end/test_lifecycle_fuzz.py

test-lowest: ## quick tests with the lowest versions that pyproject.toml admits, in an environment of their own
	$(MAKE) $(VENV)-lowest/installed-lowest VENV=$(VENV)-lowest TORCH=$(LOWEST_TORCH) TORCH_FLAGS=--no-deps
	$(VENV)-lowest/bin/medusa-dist serve --help >/dev/null
	$(VENV)-lowest/bin/pytest $(LOWEST_TESTS)

# Client libraries whose dependencies exclude each other: an environment for each, with nothing of ours.
CLIENTS = $(VENV)-clients
openai-oldest = openai==1.0.0 httpx<0.28
instructor = instructor>=1.17,<2 jsonref
lm-eval = lm_eval[api]>=0.4.13,<0.5 transformers
CLIENT_ENVIRONMENTS = openai-oldest instructor lm-eval

test-clients: $(CLIENTS)/installed-clients $(CLIENT_ENVIRONMENTS:%=$(CLIENTS)/%/installed) $(CLIENTS)/node/node_modules ## real client libraries, against a tiny model
	NODE_CLIENTS=$(abspath $(CLIENTS)/node) $(CLIENTS)/bin/pytest -m clients tests/clients
	set -e; for name in $(CLIENT_ENVIRONMENTS); do \
	  SERVER_PYTHON=$(abspath $(CLIENTS)/bin/python) $(CLIENTS)/$$name/bin/pytest -m clients tests/clients; done

# Chromium itself is the system's (`apt install chromium`), or the one that `.venv/bin/playwright install chromium` gets.
test-browser: $(VENV)/installed-browser ## the page at / in a headless Chromium
	$(VENV)/bin/pytest -m browser -rs tests/browser

test-kernels: $(VENV)/installed-gpu ## GPU kernels on a machine without a GPU: interpreted, and compiled for three chips
	$(VENV)/bin/pytest -m "not gpu" $(KERNEL_TESTS)

test-gpu: $(VENV)/installed-gpu ## the same kernels on an NVIDIA GPU, against their oracles
	$(VENV)/bin/pytest -m gpu $(KERNEL_TESTS)

# Options of the measurement: `.venv/bin/python -m medusa_dist.bench.gpu_bench --help`.
GPU_BENCH ?=
gpu: $(VENV)/installed-gpu ## on an NVIDIA GPU, in about ten minutes: its tests, then decoding of a model with random weights
	$(VENV)/bin/pytest -m gpu || [ $$? = 5 ]
	$(VENV)/bin/python -m medusa_dist.bench.gpu_bench $(GPU_BENCH)

lint: $(VENV)/installed-dev ## ruff (lint and format) and mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/installed-dev ## let ruff rewrite
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove the virtual environments, caches and what was built
	rm -rf $(VENV) $(VENV)-lowest $(CLIENTS) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build dist site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with PYTHON=..., for example make serve PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch: | $(VENV)/bin/python
	@index="$(TORCH_INDEX)"; \
	if [ -z "$$index" ] && [ "$(NVIDIA_GPU)" = no ] && $(VENV)/bin/python -c \
	  'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' $(TORCH_CPU_INDEX)/torch/ 2>/dev/null; \
	then index=$(TORCH_CPU_INDEX); fi; \
	set -x; $(PIP) install $(TORCH_FLAGS) "$(TORCH)" $${index:+--index-url $$index}
	@touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/torch
	$(PIP) install -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	$(PIP) install -e '.[dev]'
	@touch $@

$(VENV)/installed-browser: pyproject.toml $(VENV)/installed-dev
	$(PIP) install -e '.[browser]'
	@touch $@

$(VENV)/installed-gpu: pyproject.toml $(VENV)/installed-dev
	$(PIP) install -e '.[gpu]'
	@touch $@

$(VENV)/installed-docs: pyproject.toml $(VENV)/installed
	$(PIP) install -e '.[docs]'
	@touch $@

$(VENV)/installed-lowest: pyproject.toml | $(VENV)/torch
	$(PIP) install 'uv>=0.9,<1'
	$(VENV)/bin/uv pip install --python $(VENV) --resolution lowest-direct "$(TORCH)" -e '.[dev]'
	@touch $@

$(CLIENTS)/installed-clients: pyproject.toml
	$(MAKE) $(CLIENTS)/installed VENV=$(CLIENTS)
	$(CLIENTS)/bin/pip --disable-pip-version-check install -e '.[dev,clients]'
	@touch $@

$(CLIENTS)/%/installed: Makefile | $(CLIENTS)/installed-clients
	$(PYTHON) -m venv $(CLIENTS)/$*
	$(CLIENTS)/$*/bin/pip --disable-pip-version-check install pytest pytest-asyncio $(foreach package,$($*),"$(package)")
	@touch $@

$(CLIENTS)/node/node_modules: $(wildcard tests/clients/node/*) | $(CLIENTS)/installed-clients
	rm -rf $(CLIENTS)/node
	mkdir $(CLIENTS)/node
	cp tests/clients/node/* $(CLIENTS)/node
	if command -v npm >/dev/null; then cd $(CLIENTS)/node && npm install; else echo "no npm: node's clients are skipped"; mkdir $@; fi
	@touch $@
