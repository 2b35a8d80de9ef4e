# The two commands: `make up` runs the whole system, `make test` runs every test. `make help` lists the rest.
PYTHON ?= python3
DATA ?=
FAULT ?=
ROUNDS ?=
REPORT ?=
# Most of a test's time goes into waiting for a broker, a browser or a process to start.
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup up test unit integration faults damage check format bench lock clean preflight debian

help: ## Show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

preflight:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "Python 3.11 or newer is needed, and there is no '$(PYTHON)'; install it, or say: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) deploy/preflight.py $(if $(filter up,$(MAKECMDGOALS)),--ports)

$(VENV)/.installed: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev,plots]'
	@touch $@

setup: preflight $(VENV)/.installed ## Create .venv, install what is locked, fetch the broker's jars
	@if [ -z "$$KAFKA_BOOTSTRAP_SERVERS" ]; then $(BIN)/mindstream broker --fetch-only; fi

up: setup ## Run the whole system on this machine; DATA=path replays real events, Ctrl-C stops it
	@exec $(BIN)/mindstream up $(if $(DATA),--data $(DATA))

debian:
	@sh deploy/test_tools.sh

test: setup debian ## Run every test, those on a real broker and in a real browser too
	@$(BIN)/python -m pytest -n $(WORKERS)

unit: setup ## Run the tests that need no broker
	@$(BIN)/python -m pytest -m "not kafka and not system and not slow"

integration: setup debian ## Run the tests that need a broker or the whole system
	@$(BIN)/python -m pytest -m "kafka or system"

faults: setup ## Kill, freeze and damage a real engine and audit it; FAULT=name ROUNDS=n REPORT=file.json
	@exec $(BIN)/python -m tests.faults $(if $(FAULT),--fault $(FAULT)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(REPORT),--report $(REPORT))

damage: setup ## Damage item index files in thousands of ways; none may be loaded, nothing may crash
	@exec $(BIN)/python -m tests.ann.damage

check: $(VENV)/.installed ## Check format, lint and types
	@$(BIN)/ruff format --check engine trainer tests benchmarks deploy examples
	@$(BIN)/ruff check engine trainer tests benchmarks deploy examples
	@$(BIN)/mypy

format: $(VENV)/.installed ## Format the code
	@$(BIN)/ruff format engine trainer tests benchmarks deploy examples
	@$(BIN)/ruff check --fix engine trainer tests benchmarks deploy examples

bench: setup ## Run the benchmarks and print their figures
	@for bench in benchmarks/bench_*.py; do $(BIN)/python $$bench; done

lock: $(VENV)/.installed ## Write requirements.lock anew from pyproject.toml
	@$(BIN)/pip-compile --quiet --extra dev --extra plots --strip-extras --allow-unsafe --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.tmp pyproject.toml
	@{ echo "# Every version this project is tested with; 'make lock' writes it. torch brings the CUDA libraries of its build."; \
	  grep -vE '^(nvidia-|cuda-|triton|setuptools|pip=|# The following)' requirements.tmp; } > requirements.lock && rm requirements.tmp

clean: ## Delete the state that 'make up' keeps in ./data
	@rm -rf data
