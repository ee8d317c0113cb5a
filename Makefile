# Everything runs in a virtual environment of its own, .venv, which the first target makes.
#
#   make demo        compile a real model in few bits and compare it with onnxruntime
#   make test        the tests, without the full sweeps
#   make test-all    all tests
#   make lint        ruff and mypy
#   make conformance onnx's own tests, in three forms: docs/conformance.md
#   make zoo         the models of the zoo in float, w8a8 and w4a8: docs/zoo.md
#   make operators   what becomes of each operator: docs/operators.md
#   make accuracy    the rows of docs/accuracy.md that have no result yet: hours
#   make bench       the figures of docs/benchmarks.md

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without a C compiler on the machine, take the one that pip can install.
comma := ,
TOOLCHAIN := $(if $(shell command -v cc gcc clang 2>/dev/null),,$(comma)toolchain)

# Files of tests in a process for every core. A process that dies ends the run: xdist would start
# another one, hand it the files that were done, and wait for ever (pytest-xdist issue 1378).
PARALLEL ?= -n auto --dist loadfile --max-worker-restart 0

# What `make conformance` has found, to go on from; PEER names results of another compiler.
CONFORMANCE := build/conformance.jsonl
PEER ?=

.PHONY: demo test test-all conformance zoo operators lint accuracy bench clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=default

operators: $(VENV)/.installed
	$(BIN)/python -m abqc.compiler.onnx_import.operator_table > docs/operators.md.new
	mv docs/operators.md.new docs/operators.md

bench: $(VENV)/.installed
	$(BIN)/python tests/bench/bench_models.py

# The models need PyTorch once, the texts Debian's packages, the peers their own: see tests/accuracy.
accuracy: $(VENV)/.installed
	-$(BIN)/python tests/accuracy/measure.py
	-$(BIN)/python tests/accuracy/peer_llama.py
	-$(BIN)/python tests/accuracy/peer_onnxruntime.py
	$(BIN)/python tests/accuracy/measure.py --write

conformance: $(VENV)/.installed
	mkdir -p build
	-$(BIN)/python tests/conformance/run.py --results $(CONFORMANCE) \
	    --variant plain --variant constants --variant symbolic
	$(BIN)/python tests/conformance/report.py $(CONFORMANCE) $(PEER) --output docs/conformance.md

# Models of PyTorch and scikit-learn are made only where their libraries are: tests/zoo/make.py.
zoo: $(VENV)/.installed
	mkdir -p build
	-$(BIN)/python tests/zoo/make.py
	for quant in none w8a8 w4a8; do \
	    $(BIN)/python tests/zoo/run.py --quant $$quant --json build/zoo-$$quant.jsonl --missing \
	        || exit 1; \
	done
	$(BIN)/python tests/zoo/report.py build/zoo-*.jsonl --output docs/zoo.md

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/mypy && ln -sfn "$(CURDIR)" $(VENV)/mypy/abqc  # the root is the package
	MYPYPATH=$(VENV)/mypy $(BIN)/mypy -p abqc

clean:
	rm -rf .venv build abqc.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test$(TOOLCHAIN)]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[lint]"
	touch $@
