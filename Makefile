# `make help` lists the targets. Everything installs into .venv and build/; nothing is installed system-wide.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint type fmt unit e2e hook hook-accuracy hook-gpu hook-release bench lock docs cluster cluster-up cluster-down clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP)-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "No venv module: on Debian or Ubuntu run apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(STAMP)-demo: requirements/demo.txt pyproject.toml | $(STAMP)-venv
	@echo "Installing what the demo needs (once) …"
	@$(BIN)/pip install -q --require-hashes -r requirements/demo.txt
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(STAMP)-dev: requirements/dev.txt pyproject.toml | $(STAMP)-venv
	@echo "Installing what the tests need (once) …"
	@$(BIN)/pip install -q --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@ $(STAMP)-demo

setup: $(STAMP)-dev ## Create .venv with everything for development

demo: $(STAMP)-demo ## Scale a simulated pipeline end to end (no cluster, GPU or key needed)
	@$(BIN)/sair demo

test: lint type hook unit ## Everything CI runs: linters, types, the hook, all tests

lint: $(STAMP)-dev ## ruff and the layers (import-linter)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: $(STAMP)-dev ## mypy --strict
	$(BIN)/mypy

fmt: $(STAMP)-dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: $(STAMP)-dev hook ## The tests
	$(BIN)/pytest

hook: ## Build the CUDA hook and its simulated driver (gcc)
	$(MAKE) -C cuda_hook

lock: $(STAMP)-dev ## Pin dependencies by version and hash
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-header --no-annotate -q -o requirements/runtime.txt
	$(BIN)/uv pip compile pyproject.toml --extra demo --universal --generate-hashes --no-emit-index-url --no-header --no-annotate -q -c requirements/runtime.txt -o requirements/demo.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --no-header --no-annotate -q -c requirements/demo.txt -o requirements/dev.txt

clean: ## Remove what was built; .venv stays
	rm -rf build out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	$(MAKE) -C cuda_hook clean
