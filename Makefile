# One line each. `make chat` and `make test` make what they need first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BUILD_INPUTS = pyproject.toml setup.py $(wildcard picoedge/kernels/*.c picoedge/kernels/*.h)

# Emulated boards are network namespaces and control groups: that takes root.
SUDO = $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: setup dev chat cluster quick test fuzz lint bench test-arm64 clean

setup: $(VENV)/.ready

dev: $(VENV)/.ready-dev

chat: setup
	@$(BIN)/picoedge chat

cluster: setup
	@$(SUDO) $(BIN)/python -m hw.lab.cluster

# A file's tests run in order, in one process; one process more than cores, as tests of boards wait.
WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# Compiled modules are kept: the tests start hundreds of interpreters.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.ready-dev
	$(PYTEST) -q -m "not slow"

test: $(VENV)/.ready-dev
	$(PYTEST)
	$(BIN)/ruff check . && $(BIN)/mypy

# Mutated files and messages for every parser: INPUTS of them, on all cores.
INPUTS ?= 1000000
fuzz: $(VENV)/.ready-dev
	$(BIN)/python -m fuzz --inputs $(INPUTS) --jobs $(shell getconf _NPROCESSORS_ONLN) --coverage 3000

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check . && $(BIN)/mypy

bench: $(VENV)/.ready-bench
	$(BIN)/python -m bench decode --json

test-arm64:
	bash tests/arm64/run.sh

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis picoedge/kernels/*.so

# pip talks on stderr: stdout belongs to the answer.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "picoedge needs Python 3.10 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) >&2 || { rm -rf $(VENV); echo "no virtual environment: apt install python3-venv" >&2; exit 1; }

$(VENV)/.ready: $(BUILD_INPUTS) | $(VENV)/bin/python
	@echo 'picoedge: installing into $(VENV), once' >&2
	@$(BIN)/python -m pip install --quiet -e . >&2 && touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet -e '.[dev]' >&2 && touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet -e '.[bench]' >&2 && touch $@
