# Everything runs in .venv, made on first use; a stamp file a set of extras keeps `make` from installing twice.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.NOTPARALLEL:
.PHONY: demo test lint types bench clean

demo: .venv/.installed
	$(BIN)/python examples/demo.py

test: .venv/.installed-test
	$(BIN)/python -m pytest

lint: .venv/.installed-lint
	$(BIN)/ruff check .

types: .venv/.installed-lint .venv/.installed-test
	$(BIN)/pyright

bench: .venv/.installed
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv out

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "subjectgen needs Python 3.10 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$*]'
	touch $@
