# `make demo` shows Penstock at work, `make test` checks everything. The first call of either creates .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := penstock tests examples benchmarks

export NO_COLOR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types layers tidy format bench bench-large sim faults lock clean
.NOTPARALLEL:

help:
	@echo "make demo     run the demonstration (embedded log, nothing but Python)"
	@echo "make test     lint, types, layers, tidiness, then all tests with coverage"
	@echo "make lint | types | layers | tidy     one of these alone"
	@echo "make format   let ruff format the code"
	@echo "make bench    run the benchmarks; QUICK=1 for a short comparison (docs/performance.md)"
	@echo "make sim      run the simulator; SEEDS=5000 for more than 1000 seeds, SEED=42 for one alone"
	@echo "make faults   play real faults on three brokers; FAULTS=\"worker-killed ...\" for some, WRITE=1 for the docs"
	@echo "make lock     resolve the dependencies anew into requirements.lock"
	@echo "make clean    remove what tests and tools left behind (not .venv)"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Penstock needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@# The lock is whole, so nothing is resolved: older pips would take a newer release for a dependency with extras.
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check --quiet
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo/run.py

test: lint types layers tidy
	@$(BIN)/python -m tests.suite

lint: $(READY)
	@echo "== lint"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .

types: $(READY)
	@echo "== types"
	@$(BIN)/basedpyright --warnings

layers: $(READY)
	@echo "== layers"
	@$(BIN)/lint-imports --no-cache --no-logo

tidy: $(READY)
	@echo "== tidy"
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_tidy.py

format: $(READY)
	@$(BIN)/ruff check --quiet --fix --select I .
	@$(BIN)/ruff format .

SEEDS ?= 1000
sim: $(READY)
	@$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

# WRITE=1 puts the table into docs/reliability.md.
faults: $(READY)
	@$(BIN)/python -m tests.faults $(if $(WRITE),--write) $(FAULTS)

bench: $(READY)
	@$(BIN)/python -m benchmarks.run

bench-large: $(READY)
	@ONLY=reads PEERS=none LARGE=10000000 $(BIN)/python -m benchmarks.run

# No header and no addresses: the file is the same wherever it was resolved.
lock: $(READY)
	@env -u UV_FIND_LINKS -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL $(BIN)/uv pip compile pyproject.toml \
		--extra dev --extra demo --universal --python-version 3.11 --generate-hashes --upgrade --quiet \
		--no-emit-index-url --no-emit-find-links --no-header --output-file requirements.lock

clean:
	@rm -rf .coverage .coverage.* .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
