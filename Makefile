# `make demo` and `make test` work on a machine with nothing but git, make and python3 (3.11 - 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo
SIZE ?= tiny

.PHONY: help demo test test-slow lint docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole loop on the generated catalogue -> $(WORKDIR)/report.html"
	@echo "make test    the test suite (8 fake CPU devices)"
	@echo "make lint    ruff, import directions, mypy"
	@echo "make docs    the documentation site -> site/"

# One stamp a set of extras: the demo installs less than the tests do.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[prep]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/vitscale demo --workdir $(WORKDIR) --size $(SIZE)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build site runs *.egg-info .pytest_cache .ruff_cache .mypy_cache
