# Every target does its own set-up and uses what an earlier run built while its inputs are unchanged.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export DISAGG_CACHE ?= $(HOME)/.cache/disagg
# The environment is keyed by its inputs and lies outside the checkout, so that a clean clone finds it ready.
PYTHON  ?= python3
ENV_KEY := $(shell { cat requirements/dev.txt; $(PYTHON) -V; } | sha256sum | cut -c1-12)
VENV    := $(DISAGG_CACHE)/venv-$(ENV_KEY)
BIN     := $(VENV)/bin
export UV_CACHE_DIR ?= $(DISAGG_CACHE)/uv
export PYTHONPATH := $(CURDIR)/operator:$(CURDIR)/transfer:$(CURDIR)/e2e/engine:$(CURDIR)/e2e/cluster:$(CURDIR)/e2e/scenarios:$(CURDIR)/e2e/bench:$(CURDIR)/e2e/faults
export PATH := $(BIN):$(PATH)
# The same thread count everywhere: float sums, and so tokens, depend on it.
export OMP_NUM_THREADS := 1

.PHONY: help setup cluster demo test test-unit test-cluster bench fuzz lint format generate clean-cluster clean

help: ## Say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(VENV)/.ready ## Make the Python environment

# No prerequisite: its name holds them, and a new clone's files are newer than any environment.
$(VENV)/.ready:
	@echo "setup: Python environment in $(VENV)"
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) is missing; install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Python 3.11 or newer is needed; set PYTHON=" >&2; exit 1; }
	@start=$$SECONDS; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); \
	$(BIN)/pip install -q --disable-pip-version-check uv==$(UV_VERSION); \
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q -r requirements/dev.txt; \
	touch $@; echo "setup: Python environment ... $$((SECONDS - start)) s"

UV_VERSION := 0.13.9
# Most tests wait most of the time: two at once keep two cores half busy, each with its API server.
TEST_PROCESSES ?= 2

cluster: setup ## Start the embedded cluster with the images loaded (root; Debian)
	@$(BIN)/python -m disagg_cluster up

demo: setup ## Serve four hybrid models through the cluster, then break one state type and heal it
	@$(BIN)/python -m disagg_scenarios.demo

test: test-unit test-cluster ## All tests, end to end included

test-unit: setup ## Tests that need no node: pure logic, real processes on loopback, a real API server
	@# Minutes on a new machine, so not within the time limit of the first test that needs them.
	@$(BIN)/python -m disagg_cluster build >/dev/null
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadscope -m "not cluster"

test-cluster: setup ## Tests in real pods on the embedded cluster
	@$(BIN)/python -m pytest -m cluster e2e/scenarios/tests e2e/cluster/tests -p no:randomly

bench: setup ## The benchmark table; JSON in build/bench.json
	@$(BIN)/python -m disagg_bench

fuzz: setup ## Mutate what foreign bytes may be for a minute (FUZZ_SECONDS=60); finds stay as tests
	@$(BIN)/python -m disagg_fuzz --seconds $(or $(FUZZ_SECONDS),60)

lint: setup ## ruff, mypy strict, import-linter, charts and manifests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/yamllint -s .
	@$(BIN)/python -m disagg_scenarios.manifests

format: setup ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

generate: setup ## Write the generated files (the CRD)
	@$(BIN)/python -m disagg_operator.api.crd

clean-cluster: setup ## Stop the embedded cluster and leave nothing running or mounted
	@$(BIN)/python -m disagg_cluster down

clean: ## Remove build outputs of this checkout
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
