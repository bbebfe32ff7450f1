# `make help` lists the targets. Everything installs into .venv and build/; nothing is installed system-wide.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
export PIP_DISABLE_PIP_VERSION_CHECK := 1
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-header --no-annotate -q

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint type fmt unit e2e hook hook-accuracy hook-gpu hook-release hook-test bench learning lock docs
.PHONY: demo-kubernetes cluster cluster-ready cluster-up cluster-down clean

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

test: lint type hook hook-test unit ## Everything CI runs: linters, types, the hook, all tests

lint: $(STAMP)-dev ## ruff and the layers (import-linter)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: $(STAMP)-dev ## mypy --strict
	$(BIN)/mypy

fmt: $(STAMP)-dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: $(STAMP)-dev hook cluster-ready ## The tests, with the real Kubernetes where this machine can have one
	$(BIN)/pytest -m "not long" $(RERUNS)

# In CI a cluster that cannot be had is a failure; elsewhere its tests are skipped and say why. A test that fails there is run again,
# at most twice, and its reruns are listed: machines in CI are shared, and one that is late for a second is no defect.
ifeq ($(CI),true)
export SAIR_REQUIRE_CLUSTER := 1
RERUNS := --reruns 2 -rR
endif

cluster-ready: $(STAMP)-dev
	@if [ "$(CI)" = true ]; then $(BIN)/python -m tests.e2e.cluster deps; fi
	@if command -v go >/dev/null; then $(BIN)/python -m tests.e2e.cluster build; \
	else echo "No Go here: where no Kubernetes binaries are on the PATH, tests that need them are skipped." >&2; fi

e2e: $(STAMP)-dev hook cluster-ready ## The tests on a real two-node cluster alone (SAIR_E2E_KUBECONFIG points them at another)
	$(BIN)/pytest tests/e2e

demo-kubernetes: $(STAMP)-dev cluster-ready ## The same on a real Kubernetes on this machine (root; KEEP=1 keeps it)
	$(BIN)/python -m tests.e2e.demo

cluster-up: $(STAMP)-dev cluster-ready ## Bring up a real two-node Kubernetes on this machine (root)
	$(BIN)/python -m tests.e2e.cluster up

cluster: cluster-up

cluster-down: $(STAMP)-dev ## Remove every trace of every cluster that nobody uses, also after a crash
	$(BIN)/python -m tests.e2e.cluster down

hook: ## Build the CUDA hook and its simulated driver (gcc)
	@command -v gcc >/dev/null || { echo "gcc is needed to build the CUDA hook: apt-get install gcc libc6-dev" >&2; exit 1; }
	$(MAKE) -C cuda_hook all driver

hook-test: $(STAMP)-dev hook ## The hook's C tests, under ASan, UBSan and TSan as well, and a short fuzz
	$(MAKE) -C cuda_hook test-driver sanitize PYTHON=$(abspath $(BIN))/python
	$(MAKE) -C cuda_hook fuzz FUZZ_ROUNDS=200000

hook-accuracy: $(STAMP)-dev hook ## Measure the hook's accuracy on the simulated GPU; exit 1 where a bar is missed
	$(BIN)/python -m cuda_hook.accuracy

hook-gpu: $(STAMP)-dev hook ## Measure the hook on this machine's real GPU
	$(BIN)/python -m cuda_hook.gpu_check

hook-release: $(STAMP)-dev ## Build the hook for x86_64 and aarch64 against an old glibc
	$(MAKE) -C cuda_hook release PYTHON=$(abspath $(BIN))/python

bench: $(STAMP)-dev ## The benchmarks, quickly
	$(BIN)/python -m benchmarks.kube_reflector --quick
	$(BIN)/python -m benchmarks.extender --quick
	$(BIN)/python -m benchmarks.controller --quick
	$(BIN)/python -m benchmarks.bottleneck --quick
	$(BIN)/python -m benchmarks.regret --quick

learning: $(STAMP)-dev ## Does the built-in policy learn? Simulated, some 20 minutes; exit 1 where a bar is missed
	$(BIN)/python -m benchmarks.learning

docs: $(STAMP)-dev ## Write the generated documentation
	$(BIN)/sair crd > deploy/crds/pipelines.yaml
	$(BIN)/python -m tools.generate_configuration

lock: $(STAMP)-dev ## Pin dependencies by version and hash
	$(BIN)/pip install -q uv
	$(LOCK) -o requirements/runtime.txt
	$(LOCK) --extra demo -c requirements/runtime.txt -o requirements/demo.txt
	$(LOCK) --extra dev -c requirements/demo.txt -o requirements/dev.txt

clean: ## Remove what was built; .venv stays
	rm -rf build out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	$(MAKE) -C cuda_hook clean
