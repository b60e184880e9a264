# make demo   train the pool, fit, predict, compare: the main job on data that the packages ship; goes on if interrupted
# make test   lint, types and every test
# make lint   lint and types only
# make aot    compile every Triton kernel for every family of GPUs, without one, and print what it takes (long)
# make gpu    on a machine with a GPU: tests, targets and losses, into benchmarks/results; goes on if interrupted
# make sanitize  the tests of the compiled kernels on a build for the address and undefined-behaviour sanitizers
# make other-torch  what is built against one torch has to work under another (OTHER_TORCH=2.13.0): both ways round
# make clean  remove everything that make made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the compilers and ninja of the environment are found first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
JOBS ?= 2
SOURCES := pyproject.toml setup.py constraints.txt wfkernels/env.py $(shell find csrc -type f)

.PHONY: demo test lint aot gpu sanitize other-torch setup clean

demo: setup
	$(BIN)/weightformer demo --output runs/demo --resume --force

test: lint
	$(BIN)/pytest -m "not alone" -n $(JOBS) --dist worksteal --cov=wfkernels --cov=weightformer --cov-report=term:skip-covered --cov-fail-under=90
	$(BIN)/pytest -m alone

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

aot: setup
	$(BIN)/python -m tests.aot --jobs $(JOBS)

gpu: setup
	$(BIN)/python -m benchmarks.gpu_suite

# A build of its own, beside the installed one. libstdc++ is preloaded too, else libasan looks in vain for what throws
# exceptions; leaks are not looked for, because Python and torch keep much to the end.
SANITIZED := build/sanitize
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
SANITIZED_TESTS = tests/simd $(wildcard tests/*/test_compiled.py tests/*/test_sweep.py)

sanitize: setup
	CFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" WFKERNELS_SKIP_CUDA_BUILD=1 \
	  $(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED)/lib:. \
	  $(BIN)/pytest -o pythonpath= --capture=sys -n $(JOBS) $(SANITIZED_TESTS)

OTHER_TORCH ?= 2.13.0
OTHER := build/torch-$(OTHER_TORCH)
other-torch: setup
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet torch==$(OTHER_TORCH) numpy setuptools wheel
	WFKERNELS_SKIP_CUDA_BUILD=1 \
	  $(BIN)/python setup.py --quiet build --build-base $(OTHER)/ours --build-lib $(OTHER)/ours/lib
	WFKERNELS_SKIP_CUDA_BUILD=1 \
	  $(OTHER)/bin/python setup.py --quiet build --build-base $(OTHER)/theirs --build-lib $(OTHER)/theirs/lib
	PYTHONPATH=$(OTHER)/ours/lib $(OTHER)/bin/python -P -m wfkernels selftest --impl cpp
	PYTHONPATH=$(OTHER)/theirs/lib $(BIN)/python -P -m wfkernels selftest --impl cpp

# The oldest Triton that we promise, beside the installed one; its interpreter needs a NumPy before 2.4.
OLD_TRITON := build/triton-3.6

setup: $(VENV)/.installed $(OLD_TRITON)/.installed

$(OLD_TRITON)/.installed: | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLD_TRITON) triton==3.6.0 numpy==2.3.5
	touch $@

# torch first: the compiled parts are built against the torch that is installed.
$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is missing or older than 3.11; name a newer one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip setuptools wheel ninja pybind11
	$(BIN)/python -m pip install --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable '.[models,test]'
	$(BIN)/python -m wfkernels info
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info python/*.egg-info wfkernels/*.so .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
