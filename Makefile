# What one does with this repository. Needs make and Python 3.11 or later; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

# OpenMP threads that spin while they wait make a busy machine many times slower.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-r1 test test-all lint types goldens bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install what the other targets need

# torch comes first and alone, so that no other requirement can choose its version.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) .ci/make_venv.py $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[test]' '$(TORCH)'
	@touch $@

demo: $(INSTALLED) ## compile a small model, train it on Python's own sources, let it write (some minutes)
	$(BIN)/python .ci/demo.py

demo-r1: $(INSTALLED) ## teach a tiny model by rewards alone, beside a control, and plot both (some minutes)
	$(BIN)/python .ci/demo_r1.py

# Triton's interpreter and its compiler cannot share a process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) tests/kernels/interpreter

test: lint types ## all checks and the tests that are not slow
	$(INTERPRETED) -m 'not slow'
	$(PYTEST) -m 'not slow'

test-all: lint types ## all checks and all tests
	$(INTERPRETED)
	$(PYTEST)

lint: $(INSTALLED) ## ruff, and the order of the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(INSTALLED) ## mypy over the compiler and the language
	$(BIN)/mypy

goldens: $(INSTALLED) ## accept what the compiler emits today; review it with git diff
	$(BIN)/python tests/accept_goldens.py

bench: $(INSTALLED) ## run what stands in tests/benchmarks
	@set -e; for file in tests/benchmarks/*.py; do echo "$$file"; $(BIN)/python "$$file"; done

clean: ## remove caches and runs, keep .venv
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
