# Each target sets up .venv by itself when pyproject.toml or constraints.txt is newer than it (see scripts/bootstrap.sh).
# PYTHON=/path/to/python chooses the interpreter; PYTEST_ARGS="-k dpo" adds arguments for pytest;
# MUTANTS="data train" chooses lists of mutants; CHAOS="FOLDER --runs 3" where and how long `make chaos` strikes.

PYTHON ?=
PYTEST_ARGS ?=
MUTANTS ?=
CHAOS ?= outputs/chaos
BIN := .venv/bin
READY := .venv/ready

# Two pytest workers of one thread each fit the smallest machine that we support: 2 cores. Files keep their order, in which
# the long ones come first: the short ones of tests/unit let both workers end at once.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=offline \
	$(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slurm test-slurm-all faults distributed check docs tutorials bench chaos mutants format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml setup.py constraints.txt scripts/bootstrap.sh
	@scripts/bootstrap.sh $(PYTHON)

setup: $(READY)  ## make .venv with the pinned packages, and say how to begin
	@$(BIN)/posttrain

demo: $(READY)  ## run the whole pipeline on generated data (CPU, about twelve minutes)
	$(BIN)/posttrain run recipe=demo

test: $(READY)  ## run the tests, the long matrices and Slurm excepted
	$(PYTEST) --ignore=tests/slurm -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slurm: $(READY)  ## install Slurm if absent, start a private cluster, run the tests on it
	tests/slurm/install.sh
	POSTTRAIN_REQUIRE_SLURM=1 $(PYTEST) tests/slurm -m "not slow" --durations=12 $(PYTEST_ARGS)

test-slurm-all: $(READY)  ## the same with every kind of fault and distribution (long)
	tests/slurm/install.sh
	POSTTRAIN_REQUIRE_SLURM=1 $(PYTEST) tests/slurm -s $(PYTEST_ARGS)

faults: $(READY)  ## kill training at every file event, resume, compare (long)
	$(PYTEST) tests/faults -m slow $(PYTEST_ARGS)

distributed: $(READY)  ## train with every kind of distribution: adapters, bfloat16, offload, other sizes (long)
	$(PYTEST) tests/distributed -m slow $(PYTEST_ARGS)

check: $(READY)  ## lint, types, import layers, size ceilings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.typing $(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check.py

docs: $(READY)  ## build the site in build/site; a link that leads nowhere is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site

tutorials: $(READY)  ## run every command of docs/tutorials on a tiny model (minutes)
	$(PYTEST) tests/integration/test_tutorials.py -m slow $(PYTEST_ARGS)

bench: $(READY)  ## training beside TRL's, in turns; what is worse than in scripts/baselines is shown (quiet machine)
	$(BIN)/python scripts/bench_sft.py
	$(BIN)/python scripts/bench_preference.py --stages reward,dpo
	$(BIN)/python scripts/bench_ppo.py

chaos: $(READY)  ## strike whole runs at random, 200 times (very long; goes on where it stopped)
	$(BIN)/python scripts/chaos.py $(CHAOS)

mutants: $(READY)  ## make one line wrong at a time and see whether its tests notice (long; goes on where it stopped)
	$(BIN)/python scripts/mutants.py $(MUTANTS)

format: $(READY)  ## apply the formatter and the linter's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and build output; runs in outputs/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
