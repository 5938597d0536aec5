# All but test-lowest runs in .venv, made on first use; a stamp file a set of extras keeps `make` from installing twice.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
LOWEST := .venv-lowest/bin/python

.NOTPARALLEL:
.PHONY: demo test test-web test-lowest lint types bench reproduce clean

demo: .venv/.installed
	$(BIN)/python examples/demo.py

# Two processes of one thread: networks this small gain nothing from a second, and beside other work threads wait for
# each other. A file's tests stay together, for the sake of what they share.
PYTEST := -m pytest --numprocesses 2 --dist loadfile
test test-lowest: export OMP_NUM_THREADS := 1

test: .venv/.installed-test
	$(BIN)/python $(PYTEST)

# The web page in a real Chromium, which has to be there: apt-get install chromium.
test-web: .venv/.installed-test .venv/.installed-test-web
	$(BIN)/python -m pytest tests/test_web_page.py

# The fast tests with the lowest releases, and those of Qwen-Image 2.1 with the lowest that it needs, laid over them.
test-lowest: .venv-lowest/.installed
	$(LOWEST) $(PYTEST) -m "not slow"
	PYTHONPATH=.venv-lowest/qwen $(LOWEST) $(PYTEST) -m "not slow" -k qwen

lint: .venv/.installed-lint
	$(BIN)/ruff check .

types: .venv/.installed-lint .venv/.installed-test
	$(BIN)/pyright

bench: .venv/.installed
	for script in conditions data; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/backbones.py --count

# The paper's tables in small, by two processes of a thread each; killed, the same goes on. The last call writes what both
# found. glibc is told to keep its memory: steps ask for the same sizes again and again.
reproduce: export OMP_NUM_THREADS := 1
reproduce: export MALLOC_MMAP_MAX_ := 0
reproduce: export MALLOC_TRIM_THRESHOLD_ := 20000000000
reproduce: .venv/.installed-evaluate
	$(BIN)/subjectgen reproduce --shard 1/2 & first=$$!; \
		$(BIN)/subjectgen reproduce --shard 2/2; second=$$?; wait $$first && exit $$second
	$(BIN)/subjectgen reproduce

clean:
	rm -rf .venv .venv-lowest out

%/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "subjectgen needs Python 3.10 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv $*

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$*]'
	touch $@

.venv-lowest/.installed: pyproject.toml constraints-lowest.txt constraints-lowest-qwen.txt | $(LOWEST)
	$(LOWEST) -m pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	$(LOWEST) -m pip install --quiet --no-deps --upgrade --target .venv-lowest/qwen --requirement constraints-lowest-qwen.txt
	touch $@
