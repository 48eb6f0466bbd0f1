# `make demo` runs the whole chain on a CPU; `make test` runs the tests. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
# A conda or virtual environment of the caller must not leak into the rules: they find `python` here.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONNOUSERSITE := 1
SNAKEMAKE := python -m snakemake
DEMO := $(SNAKEMAKE) --profile profiles/demo

.PHONY: demo demo-mmlu test lint dag bench setup lock clean

demo: setup ## the whole chain on the stand-in
	@$(DEMO)
	@python -c "import pandas; print(pandas.read_csv('results/demo/summary.csv').round(4).to_string(index=False))"
	@echo "table: results/demo/summary.csv, summary.json; the int4 model: results/demo/qat-int4/checkpoint/"

demo-mmlu: setup ## the same chain on the real MMLU: make demo-mmlu MMLU_DIR=/data/mmlu
	@test -d "$(MMLU_DIR)" || { echo "MMLU_DIR: expected a folder with MMLU, found none at '$(MMLU_DIR)'" >&2; exit 1; }
	@$(DEMO) --directory runs/mmlu --config "data={source: '$$(realpath "$(MMLU_DIR)")'}"

test: setup ## unit, workflow and chain tests
	@python -m pytest

lint: setup ## formats, style and the workflow's own lint
	@ruff format --check .
	@ruff check .
	@snakefmt --check Snakefile rules
	@$(SNAKEMAKE) --lint

dag: setup ## draw the rule graph, in docs/rulegraph.svg and README.md (needs graphviz)
	@python docs/rulegraph.py

bench: setup ## format_mmlu against the card's own code, as a ratio; dry-runs of more and more jobs
	@python tests/bench_format.py
	@python tests/bench_dry_run.py

setup: .venv/installed ## the environment alone

.venv/installed: requirements.lock
	@echo "installing the pinned packages into .venv (about 2 minutes) ..."
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@"$(PYTHON)" -m venv .venv
	@python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch "$@"

lock: $(if $(UPGRADE),setup) ## renew envs/ and requirements.lock from pyproject.toml; UPGRADE=1 first raises its pins
	@"$(PYTHON)" envs/lock.py $(if $(UPGRADE),--upgrade)
	@rm -rf .venv && "$(PYTHON)" -m venv .venv
	@python -m pip install --quiet --disable-pip-version-check ".[dev]"
	@{ echo "# Made by 'make lock' from pyproject.toml."; python -m pip freeze --exclude int4-qat-workflow | sed 's/+cpu$$//'; } > requirements.lock
	@touch .venv/installed

clean: ## what runs have written
	rm -rf results resources runs logs benchmarks
