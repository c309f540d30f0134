# make demo         record demonstrations, fine-tune the tiny SyVLA on them, measure success before and after
# make test         tests, then `make lint`
# make lint         lint, format check, type check
# make play         a page on which you instruct the checkout's own trained policy, in a simulator
# make checkpoint   make that policy anew: checkpoints/tabletop-lift
# make docs         the documentation site, into site/
# make check-lmms-eval  the vision-language commands of docs/evaluation.md, where nothing but what that page installs is there
# make smoke        what shows within minutes whether a Python works: imports, quick demo, tests of the essentials
# make test-newest  tests with the newest releases that pyproject.toml admits, in .venv-newest
# make constraints  the same, and if they pass: constraints/python-X.Y.txt anew
# make clean        remove .venv and caches; outputs/ stays
#
# Each creates .venv and installs what it needs first: the exact set that constraints/python-X.Y.txt names.

PYTHON ?= python3
VENV ?= .venv
# "tested" for constraints/python-X.Y.txt, "none" for the newest releases, or a file
CONSTRAINTS ?= tested
# Another torch than the tested one, any from 2.7 on: make demo TORCH=torch==2.14.1
# On Linux it usually comes as a CUDA build; pip's own settings (PIP_INDEX_URL, ...) choose another.
TORCH ?=
# What is installed: an extra of pyproject.toml.
EXTRA ?= test
# Flags of the demo: make demo DEMO_ARGS="--quick"
DEMO_ARGS ?=
# Flags of the page: make play PLAY_ARGS="--model outputs/demo/checkpoint"
PLAY_ARGS ?=
PYTEST_ARGS ?=
# Processes that share the tests: two where there are two cores; 0 runs them in one without pytest-xdist.
TEST_PROCESSES ?= $(shell [ "$$(getconf _NPROCESSORS_ONLN)" -ge 2 ] && echo 2 || echo 0)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What only tests need: simulators, benchmark harness and other projects' clients.
PEERS := $(VENV)/.peers
PYTEST := $(BIN)/python -m pytest -rs -n $(TEST_PROCESSES) --dist worksteal

.PHONY: demo play checkpoint test lint docs check-lmms-eval smoke test-newest constraints clean

demo: $(INSTALLED)
	$(BIN)/python -m syvla.training.demo $(DEMO_ARGS)

# Gradio asks for an older pillow than the tests, so the page has an environment of its own.
play: VENV := .venv-play
play:
	@$(MAKE) --no-print-directory VENV=$(VENV) EXTRA=play $(VENV)/.installed
	$(VENV)/bin/python -m syvla.evaluation.play.command $(PLAY_ARGS)

checkpoint: $(INSTALLED)
	$(BIN)/python scripts/make_tiny_checkpoint.py

test: $(PEERS)
	$(PYTEST) $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory lint

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

check-lmms-eval: VENV := .venv-lmms-eval
check-lmms-eval:
	@$(MAKE) --no-print-directory VENV=$(VENV) EXTRA=train $(VENV)/.installed
	scripts/install_lmms_eval.sh $(VENV)/bin/python $(VENV)/constraints.txt
	$(VENV)/bin/python scripts/check_lmms_eval.py

smoke: $(INSTALLED)
	$(BIN)/python -m syvla.training.demo --quick --output $(VENV)/demo
	$(PYTEST) -m smoke $(PYTEST_ARGS)

# Failures are a to-do list for this project, not a user's problem; so lint and types, which new stubs upset, stay out.
test-newest constraints: VENV := .venv-newest
test-newest:
	rm -f $(VENV)/.installed $(VENV)/.peers
	$(MAKE) --no-print-directory VENV=$(VENV) CONSTRAINTS=none $(VENV)/.peers
	$(VENV)/bin/python -m pytest -rs -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

constraints: test-newest
	$(VENV)/bin/python scripts/write_constraints.py

$(INSTALLED): pyproject.toml scripts/install_environment.sh $(wildcard constraints/*.txt)
	@PYTHON='$(PYTHON)' CONSTRAINTS='$(CONSTRAINTS)' TORCH='$(TORCH)' EXTRA='$(EXTRA)' scripts/install_environment.sh $(VENV)
	@touch $@

# Where a peer is missing (status 3) the next run tries again.
$(PEERS): $(INSTALLED) scripts/install_test_peers.sh scripts/install_lmms_eval.sh
	@scripts/install_test_peers.sh $(BIN)/python $(VENV)/constraints.txt && touch $@ || test $$? -eq 3

clean:
	rm -rf $(VENV) .venv-play .venv-lmms-eval build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
