# Everything goes through one virtual environment, built on first use from pinned versions.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CORE := $(VENV)/.core
READY := $(VENV)/.ready

.PHONY: help run networks test test-slow test-all lint types check figures experiments docs bench clean

help:
	@echo "make run          quick landscape experiments: verdict table, figures (minutes)"
	@echo "make networks     quick experiments with networks on FashionMNIST (20 minutes on 2 cores)"
	@echo "make test         fast tests (minutes)"
	@echo "make test-slow    the tests that CI runs beside them (half an hour)"
	@echo "make test-all     all tests, hours"
	@echo "make check        lint, types and fast tests"
	@echo "make experiments  full experiments, resumable"
	@echo "make figures      redraw all figures from stored results (seconds)"
	@echo "make docs         the documentation, into build/docs (installs the [docs] extra)"
	@echo "make bench        paired benchmark against PyTorch (installs the [bench] extra)"
	@echo "make clean        remove the environment and caches, keep runs and figures"

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# What the experiments need, in a quarter of the time that all of it takes. Modules are compiled to
# bytecode when they are first imported, which only some ever are.
$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile -e .
	@touch $@

$(READY): $(CORE)
	$(PIP) -e ".[dev]"
	@touch $@

run: $(CORE)
	$(BIN)/python -m experiments --quick

networks: $(READY)
	$(BIN)/python -m experiments.networks --quick

experiments: $(CORE)
	$(BIN)/python -m experiments

figures: $(READY)
	$(BIN)/python -m experiments --redraw
	$(BIN)/python -m experiments.networks --quick --redraw

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not long"

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

docs: $(READY)
	$(PIP) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/docs/index.html"

bench: $(READY)
	$(PIP) -e ".[bench]"
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
