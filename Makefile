# make demo   train the pool, fit, predict, compare: the main job on data that the packages ship; goes on if interrupted
# make test   lint, types and every test
# make lint   lint and types only
# make clean  remove everything that make made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the compilers and ninja of the environment are found first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
JOBS ?= 2
SOURCES := pyproject.toml setup.py constraints.txt wfkernels/env.py $(shell find csrc -type f)

.PHONY: demo test lint setup clean

demo: setup
	$(BIN)/weightformer demo --output runs/demo --resume --force

test: lint
	$(BIN)/pytest -m "not alone" -n $(JOBS) --dist worksteal --cov=wfkernels --cov=weightformer --cov-report=term:skip-covered --cov-fail-under=90
	$(BIN)/pytest -m alone

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed

# torch first: the compiled parts are built against the torch that is installed.
$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is missing or older than 3.11; name a newer one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip setuptools wheel ninja
	$(BIN)/python -m pip install --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable '.[models,test]'
	$(BIN)/python -m wfkernels info
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info python/*.egg-info wfkernels/*.so .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
