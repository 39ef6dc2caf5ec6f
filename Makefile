# Every target makes its own environment first; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo poster test test-slurm lint type check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv with the pinned versions and fr-bench in it

# torch goes first and by its exact version, so that nothing pulls another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fr-bench needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,slurm]'
	@touch $(STAMP)

demo: setup ## BP, DNI, DDG and FR with K=4 on real data (scikit-learn's digits), with figures and a table
	FR_BENCH=$(BIN)/fr-bench scripts/demo.sh

poster: setup ## the poster's comparison; DATASET=, MODEL=, EPOCHS=, SEEDS=, ARGS= (see scripts/reproduce_poster.sh)
	FR_BENCH=$(BIN)/fr-bench scripts/reproduce_poster.sh $(ARGS)

# They start the program a hundred times, so its bytecode is kept, whatever the environment says. Three workers on two
# cores: much of a test is waiting for processes that start, or for one that must be seen to end.
test: setup ## run the tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 3 --dist worksteal

test-slurm: setup ## the tests of sweeps, on a real Slurm started for them (as root; apt-get installs it)
	scripts/local_slurm.sh start --install
	$(BIN)/pytest tests/test_slurm.py; code=$$?; scripts/local_slurm.sh stop; exit $$code

lint: setup ## ruff, as linter and formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup ## mypy
	$(BIN)/mypy

check: lint type test ## all of the above

clean: ## remove the environment and caches, keep outputs
	rm -rf $(VENV) build *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
