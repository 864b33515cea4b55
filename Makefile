# make plan      plan a real model on a real cluster; writes out/
# make test      lint, types and all tests
# make test-exports  hand exported plans to the real parsers of the trainers (an environment of some GB);
#                EXPORTS="megatron-lm hta" names some; test-exports-light runs these two with few packages
# make accuracy  score the simulator on the shipped published runs; rewrites docs/accuracy.* and the intervals
# make fit-kernels  fit the kernel forms of the shipped devices anew from their tables; rewrites hwprofiles/
# make fit-runs  fit the whole-run parameters (clocks, host times, exposed shares) anew; rewrites hwprofiles/fitted
# make coverage  rewrite docs/reference/coverage.md: what each device and release rests on
# make test-pairs one model of every family on every device (minutes)
# make bench     speed of screening, event runs and planning
# make bench-page  the same, and docs/benchmarks.md written from it
# make images   screenshots of the dashboard for the documentation (needs Chromium)
# make lock      resolve the lock files anew
# make clean     remove .venv and out/
#
# The environment is .venv, made once; it is brought up to date when a lock file or pyproject.toml
# changes. pip uses the machine's own configuration.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

MODEL ?= Qwen3-235B-A22B
CLUSTER ?= dgx-h100
GPUS ?= 128
SEQ_LEN ?= 4096
GLOBAL_BATCH ?= 1024

.DEFAULT_GOAL := plan
.PHONY: plan test lint types pytest test-exports test-exports-light test-pairs images accuracy fit-kernels fit-runs coverage bench bench-page lock clean
.DELETE_ON_ERROR:

plan: $(VENV)/.ready
	@mkdir -p out
	@$(BIN)/moecast plan --model $(MODEL) --cluster $(CLUSTER) --gpus $(GPUS) \
	  --seq-len $(SEQ_LEN) --global-batch $(GLOBAL_BATCH) \
	  --out out/plan.json --trace out/trace.json --report out/report.html

test: lint types pytest

lint: $(VENV)/.ready-dev
	@$(BIN)/ruff check --quiet . && echo "ruff: no findings"

types: $(VENV)/.ready-dev
	@$(BIN)/mypy

# Last, so that pytest's summary is the last line printed.
pytest: $(VENV)/.ready-dev $(VENV)/.ready-torch | lint types
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -rs

# Kept out of `test`: the parsers bring torch and the trainers themselves.
test-exports: $(VENV)/.ready-dev
	@$(BIN)/python -m tests.exports.run $(EXPORTS)

# What CI runs of it; skipped with a word where the packages cannot be installed.
test-exports-light: $(VENV)/.ready-dev
	@$(BIN)/python -m tests.exports.run --light

test-pairs: $(VENV)/.ready
	@$(BIN)/python -m tests.planner.pairs

accuracy: $(VENV)/.ready
	@mkdir -p out
	@$(BIN)/python -m calibration.accuracy

fit-kernels: $(VENV)/.ready
	@$(BIN)/moecast calibrate fit --out hwprofiles

fit-runs: $(VENV)/.ready
	@$(BIN)/moecast calibrate fit --runs shipped --out hwprofiles

coverage: $(VENV)/.ready
	@$(BIN)/python -m calibration.coverage_page

bench: $(VENV)/.ready
	@for file in benchmarks/bench_*.py; do \
	  name=$$(basename $$file .py); echo "$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

images: $(VENV)/.ready-dev
	@$(BIN)/python docs/make_images.py

bench-page: $(VENV)/.ready
	@$(BIN)/python -m benchmarks.page

lock: $(VENV)/.created
	@$(BIN)/python .ci/lock

clean:
	rm -rf $(VENV) out

# ---------------------------------------------------------------- environment

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with PYTHON=..., for example make PYTHON=python3.12 plan" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); } || \
	  { rm -rf $(VENV); echo "the venv module is missing: install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.ready: $(VENV)/.created requirements.lock pyproject.toml
	@echo "installing the locked packages (once)"
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock
	@$(PIP) install -r requirements-dev.lock
	@touch $@

# Best effort: without torch the tests of the measuring harness skip and say so.
$(VENV)/.ready-torch: $(VENV)/.ready-dev requirements-calibrate.lock
	@$(PIP) install -r requirements-calibrate.lock || \
	  echo "torch could not be installed: the tests of the measuring harness will be skipped"
	@touch $@
