# `make` lists what there is to do.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-long test-gpu train-9b-smoke lint format audit clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install what is pinned (Python 3.11 or 3.12; PYTHON=... names one)

# torch is pinned in pyproject.toml alone, as its builds for CPU and for CUDA differ in what they need.
$(STAMP): pyproject.toml cluster/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null || { \
		echo "$(PYTHON) is not Python 3.11 or 3.12; name one that is: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c cluster/constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP)  ## Votes, a trained classifier, every pair scored, a report: in quickstart/
	$(BIN)/python -m jobs.quickstart

# Two files at a time: what the tests of a file share is made once.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=10

test: $(STAMP)  ## Run the tests but the long ones; print the ten slowest
	$(PYTEST) -m "not long"

test-long: $(STAMP)  ## Run the long tests: submitted jobs, kills, lost nodes, the quickstart
	$(PYTEST) -m long

# With any Python that has torch, Triton, transformers and pytest: PYTHON=... names it; no .venv is made.
# The files outside tests/gpu compile or interpret kernels where there is no GPU, and run them on one here.
test-gpu:  ## Run the tests that need a GPU, with PYTHON
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m pytest -c tests/gpu/pytest.ini --rootdir . \
		tests/gpu tests/unit/modeling/test_*_kernel*.py

# The same; needs all that the jobs need, 60 GB of disk and a GPU of 80 GB.
WORK ?= smoke
train-9b-smoke:  ## Random weights of Gemma-2-9B: quantize, train, score, evaluate on a GPU, in WORK, with PYTHON
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) tests/benchmarks/train_smoke.py \
		--shape gemma2-9b --work $(WORK) --json $(WORK)/result.json

audit: $(STAMP)  ## Ask PyPI for known vulnerabilities of what is pinned (needs a network)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet pip-audit
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip -r cluster/constraints.txt

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP)  ## Fix what style checks can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Delete the environment, the quickstart's output and all caches
	rm -rf $(VENV) quickstart smoke build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
