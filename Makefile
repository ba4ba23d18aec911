# Everything from a fresh clone: a .venv of its own, pinned dependencies, then the command. A second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard export/runtime/kernels/*.[ch] export/runtime/kernels/*/*.[ch])
# Two processes of one thread each: many tests wait for a browser or another process, and few products here fill two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: demo test test-lesser nightly wheels check format format-check lint types browser screenshots

demo: $(VENV)/.ready
	$(BIN)/toolkit demo

test: $(VENV)/.ready-dev browser
	$(PYTEST)

# The tests as a processor with AVX2 alone sees them: sums in another order, no int8 instructions, our kernels for AVX2 or others.
test-lesser: $(VENV)/.ready-dev browser
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 TOOLKIT_KERNELS=$${TOOLKIT_KERNELS:-avx2} $(PYTEST)

# The tests with the dearest ones, which every change need not wait for.
nightly: $(VENV)/.ready-dev browser
	TOOLKIT_NIGHTLY=1 $(PYTEST)

# A wheel for each platform, compiled here by Zig, and what is wrong with it.
wheels: $(VENV)/.ready-dev
	$(BIN)/python -m tests.export.wheels dist

check: format-check lint types

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

# A browser for the page test; where it cannot be had, that one test is skipped and says so.
browser:
	@bash .ci/browser

# Pictures of the chat for the README.
screenshots: $(VENV)/.ready-dev browser
	$(BIN)/python -m tests.apps.screenshots docs/images

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "Installing pinned dependencies into $(VENV) (a few minutes, once)"
	$(PIP_INSTALL) '.[all]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "Installing pinned dependencies and test tools into $(VENV) (a few minutes, once)"
	$(PIP_INSTALL) '.[all,dev]'
	@touch $@ $(VENV)/.ready
