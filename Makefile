# Everything happens inside this folder: environments in .venv and build/, results in build/ and
# dist/. Only tools/system-packages reaches outside, and only if something of Debian is missing.

PYTHON ?= python3
# Tests that `make test` runs; CI takes the slow ones too: make test MARKS='not exhaustive'
MARKS = not slow and not exhaustive
PYTEST_FLAGS =

VENV = .venv
DEBUG_VENV = build/debug-venv
PIP = bin/pip --disable-pip-version-check install -q
SOURCES := $(sort $(shell find include ghcbcore pysev -name '*.h' -o -name '*.py' -o -name '*.py[xi]' \
	-o -name '*.pxd' -o -name 'py.typed' -o -name 'park.c')) setup.py pyproject.toml MANIFEST.in

# What [build-system] names, in the environment itself: with build isolation Cython's files are new
# each time, so it would translate everything again for each changed line.
REQUIRES = import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
install_build_tools = $(1)/bin/python -c '$(REQUIRES)' >$(1)/requires.txt && \
  $(1)/$(PIP) -r $(1)/requires.txt

.DELETE_ON_ERROR:
# How long `make fuzz` lets each target run.
FUZZ_SECONDS = 60

.PHONY: help demo test test-all build debug lint types stubs bench fuzz wheel clean \
	system system-test FORCE

help:
	@echo 'make demo      install into .venv and show what pysev does (a minute or two at first)'
	@echo 'make test      install into .venv and run the tests that take less than a second each'
	@echo 'make test-all  the same, slow and exhaustive tests too'
	@echo 'make build     install into .venv'
	@echo 'make debug     build with every check on, in an environment of its own; run its tests'
	@echo 'make lint      style and format'
	@echo 'make types     mypy, and the stubs against the compiled modules'
	@echo 'make stubs     write the stub of the numbers anew'
	@echo 'make bench     benchmarks'
	@echo 'make fuzz      fuzz the compiled core with clang, a minute for each target: FUZZ_SECONDS=60'
	@echo 'make wheel     sdist and wheel into dist/, and a test of the wheel in a clean environment'
	@echo 'make clean     remove everything that was made'
	@echo 'PYTHON=python3.12 chooses the interpreter of a new .venv'

# A file that went away must not stay in what setuptools has built so far.
build/sources: FORCE
	@mkdir -p build
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || { \
	  rm -rf build/lib* build/temp* build/bdist* build/cython build/debug/lib* build/debug/temp*; \
	  printf '%s\n' $(SOURCES) >$@; }

system:
	@tools/system-packages build $(PYTHON)

system-test:
	@tools/system-packages test $(PYTHON)

# --- the environment, what it holds, and how far it is (the stamps lie inside: they go with it;
# that of a build has the time of its beginning: what is edited meanwhile is built the next time)

$(VENV)/stamp-made: | system
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/stamp-tools: pyproject.toml $(VENV)/stamp-made
	@$(call install_build_tools,$(VENV))
	@touch $@

$(VENV)/stamp-built: $(SOURCES) build/sources $(VENV)/stamp-tools | system
	@echo 'building and installing pysev (about a minute at first)'
	@touch $@.begun
	@$(VENV)/$(PIP) --no-build-isolation .
	@mv $@.begun $@

# pysev itself is installed by then: these bring what the extra names and nothing else.
$(VENV)/stamp-test: pyproject.toml $(VENV)/stamp-made | $(VENV)/stamp-built system-test
	@echo 'installing what the tests need'
	@$(VENV)/$(PIP) 'pysev[test]'
	@touch $@

$(VENV)/stamp-dev: pyproject.toml $(VENV)/stamp-made | $(VENV)/stamp-built
	@echo 'installing what developers need'
	@$(VENV)/$(PIP) 'pysev[dev]'
	@touch $@

build: $(VENV)/stamp-built

demo: build
	@tools/demo $(VENV)/bin/pysev

test: build $(VENV)/stamp-test system-test
	$(VENV)/bin/pytest -m '$(MARKS)' $(PYTEST_FLAGS)

test-all:
	@$(MAKE) --no-print-directory test MARKS='slow or not slow'

bench: build $(VENV)/stamp-test
	$(VENV)/bin/pytest benchmarks $(PYTEST_FLAGS)

fuzz: build
	@PYTHON='$(PYTHON)' tools/fuzz $(FUZZ_SECONDS)

# --- every check on: its own environment, its own build folders

$(DEBUG_VENV)/stamp-made: pyproject.toml | system-test
	@rm -rf $(DEBUG_VENV)
	@$(PYTHON) -m venv $(DEBUG_VENV)
	@$(call install_build_tools,$(DEBUG_VENV))
	@touch $@

$(DEBUG_VENV)/stamp-built: $(SOURCES) build/sources $(DEBUG_VENV)/stamp-made | system-test
	@echo 'building and installing pysev with every check on'
	@touch $@.begun
	@PYSEV_DEBUG=1 $(DEBUG_VENV)/$(PIP) --no-build-isolation .
	@$(DEBUG_VENV)/$(PIP) 'pysev[test]'
	@mv $@.begun $@

debug: $(DEBUG_VENV)/stamp-built
	$(DEBUG_VENV)/bin/pytest -m '$(MARKS)' $(PYTEST_FLAGS) tests/unit tests/property

# --- gates

lint: $(VENV)/stamp-dev
	$(VENV)/bin/ruff check . tools/stubs
	$(VENV)/bin/ruff format --check . tools/stubs

# stubtest runs in a folder without sources, so that it sees what was installed.
types: build $(VENV)/stamp-dev
	$(VENV)/bin/mypy
	cd $(VENV) && bin/stubtest ghcbcore
	$(VENV)/bin/python tools/stubs --print | cmp - ghcbcore/_cffi.pyi || { echo 'run `make stubs`'; exit 1; }
	tools/cython-hints $(VENV)/bin/cython

stubs: build
	$(VENV)/bin/python tools/stubs

wheel: $(VENV)/stamp-dev
	rm -rf dist
	@echo 'building dist/ (log in build/wheel.log)'
	@$(VENV)/bin/python -m build --no-isolation --outdir dist . >build/wheel.log 2>&1 || \
	  { tail -n 40 build/wheel.log; exit 1; }
	tools/smoke-test dist/*.whl $(PYTHON)

clean:
	rm -rf $(VENV) build dist *.egg-info ghcbcore/_cffi.c .mypy_cache .ruff_cache .pytest_cache \
	  .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
