# make demo    record demonstrations, fine-tune the tiny SyVLA on them, measure success before and after
# make test    lint, format check, type check, tests
# make lint    the first three of these
# make clean   remove .venv and caches; outputs/ stays
#
# Each creates .venv and installs what it needs first.

PYTHON ?= python3
VENV ?= .venv
# The whole suite is run with this version; any torch >= 2.7 is accepted: make demo TORCH=torch
# On Linux it usually comes as a CUDA build; pip's own settings (PIP_INDEX_URL, ...) choose another.
TORCH ?= torch==2.13.0
# Flags of the demo: make demo DEMO_ARGS="--quick"
DEMO_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What only tests need: simulators, benchmark harness and other projects' clients.
PEERS := $(VENV)/.peers

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/python -m syvla.training.demo $(DEMO_ARGS)

test: lint $(PEERS)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "SyVLA needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(PEERS): $(INSTALLED) scripts/install_test_peers.sh
	scripts/install_test_peers.sh $(BIN)/python
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
