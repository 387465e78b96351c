# Everything here works from a fresh clone with Python 3.11+, git and make; see `make help`.
PYTHON ?= python3
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

# Nothing here reports to anyone; idle OpenMP threads give their core back.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Tests on real data run where these folders are known; elsewhere they skip and say so.
ifndef CLUSTERUCB_DATA
ifneq ($(wildcard $(ROOT)/../shared/data/pool),)
export CLUSTERUCB_DATA := $(abspath $(ROOT)/../shared/data)
endif
endif
ifndef CLUSTERUCB_MODELS
ifneq ($(wildcard $(ROOT)/../shared/models/tiny-llama),)
export CLUSTERUCB_MODELS := $(abspath $(ROOT)/../shared/models)
endif
endif

# One process a core, one thread each: small models gain nothing from more threads.
test test-slow: export OMP_NUM_THREADS := 1
test test-slow: export HF_HUB_OFFLINE := 1
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow fuzz check lint format docs audit clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.locked  ## create .venv and install the locked dependencies

demo: .venv/.locked  ## run the pipeline on generated data (DEMO=FOLDER: write there)
	$(BIN)/clusterucb demo $(if $(DEMO),--dir "$(DEMO)")

test: .venv/.locked  ## run the tests (TEST_WORKERS=2 processes)
	$(PYTEST) -n $(TEST_WORKERS) --dist loadfile

test-slow: .venv/.locked  ## run the tests that take long
	$(PYTEST) -n $(TEST_WORKERS) --dist loadfile -m "slow and not gpu and not network"

# The first part needs requirements-atheris.lock installed on top; both go on where they ended.
FUZZ_SECONDS ?= 3600
FUZZ_ROWS ?= 1000000
fuzz: .venv/.locked  ## fuzz the readers (FUZZ_ROWS=1000000, FUZZ_SECONDS=3600)
	PYTHONPATH=$(ROOT) $(BIN)/python benchmarks/fuzz_rows.py --folder build/fuzz/rows --rows $(FUZZ_ROWS)
	PYTHONPATH=$(ROOT) $(BIN)/python benchmarks/fuzz_readers.py --folder build/fuzz/readers --seconds $(FUZZ_SECONDS)

check: lint  ## format, lint, types, layers, code size, then the tests
	$(MAKE) test

lint: .venv/.locked
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python infra/code_size.py
	$(BIN)/python infra/forbidden_calls.py
	$(BIN)/python infra/sql_texts.py

format: .venv/.locked  ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: build/docs-tools/.locked .venv/.locked  ## build the documentation into build/site; a warning fails it
	PYTHONPATH=build/docs-tools $(BIN)/python -m mkdocs build --quiet --strict --clean
	@echo "The documentation is in build/site/index.html"

audit: .venv/.locked  ## compare the locked packages with known vulnerabilities and allowed licences
	$(BIN)/python infra/licences.py --check
	$(BIN)/python infra/audit.py

clean:  ## remove caches and build output; .venv and state folders (.clusterucb) stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The second command adds the project itself, editable: its build needs setuptools, which the lock holds.
.venv/.locked: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "Installing the locked dependencies into .venv (a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --no-compile -r requirements.lock
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@

# Beside .venv, which stays what its lock says. The other variable silences what Material prints about MkDocs 2.
docs: export NO_MKDOCS_2_WARNING := 1
build/docs-tools/.locked: requirements-docs.lock | .venv/.locked
	rm -rf build/docs-tools
	$(BIN)/python -m pip install -qq --no-deps --no-compile --target build/docs-tools -r requirements-docs.lock
	touch $@
