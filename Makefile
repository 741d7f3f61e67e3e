PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := flows tasks infra configs
# One worker a core, four at most: each one starts servers of its own.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-s3-real check fmt fmt-check lint types arch bench ci clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create the virtual environment and install everything into it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Ten clients of mixed rank learn real digits; zero-padding beside RBLA (about two minutes)
	$(BIN)/rankweave compare digits-staircase --vary aggregation.name=rbla,zero_pad --out demo

test: $(STAMP) ## Run the tests (laws, oracles, forms, faults, real servers, end to end)
	$(BIN)/pytest $(PARALLEL)

test-fast: $(STAMP) ## Run only the tests that start no server
	$(BIN)/pytest $(PARALLEL) -m "not flow and not e2e" --ignore tests/infra

test-s3-real: $(STAMP) ## Run the store's contract against Ceph's RADOS Gateway (fetched from Debian, no root)
	$(BIN)/pytest -m s3_real tests/infra

check: fmt-check lint types arch test ## Format, lint, types, import layers, tests: the one definition of green

fmt: $(STAMP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fmt-check: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/pyright

arch: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP) ## Measure the overhead of a round beside Flower's simulation engine on the same work
	-@$(MAKE) --no-print-directory .venv-flower/.installed  # without Flower the others are still measured
	$(BIN)/python -m tests.bench.round_overhead

.venv-flower/.installed: tests/bench/requirements-flower.txt
	$(PYTHON) -m venv .venv-flower
	.venv-flower/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

ci: check ## What CI runs

clean: ## Remove what tests and demo left behind (keeps the virtual environment)
	rm -rf demo .rankweave .pytest_cache .hypothesis .ruff_cache build *.egg-info
