# Everything that a fresh machine with Python 3.11 to 3.13 needs. `make demo` and `make test`
# each set up a virtual environment by themselves; the second call finds it ready.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Two workers by default, each with whole files; one process: make test WORKERS=
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
INSTALL := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test clean

help:
	@echo "make demo    run the embedded reference model's demo"
	@echo "make test    run the linters, the type checker and the tests"
	@echo "make clean   remove what the other two made"
	@echo "PYTHON=python3.12 before or after the word chooses the interpreter."

demo: $(READY)
	@$(VENV)/bin/brickwork demo

test: $(READY)
	@echo "== ruff check" && $(PY) -m ruff check .
	@echo "== ruff format" && $(PY) -m ruff format --check .
	@echo "== mypy" && $(PY) -m mypy
	@echo "== lint-imports" && $(VENV)/bin/lint-imports --no-logo
	@echo "== pytest (tests, and the doctests of src)" && $(PY) -m pytest $(WORKERS)

# torch comes first and alone, at the tested version: a machine that offers a CPU build of it
# takes that build, and no later step trades it for another.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	    echo "Brickwork needs Python 3.11, 3.12 or 3.13; $(PYTHON) is not one of them or is not" \
	        "there. Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "== setting up $(VENV), once: torch"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) torch
	@echo "== setting up $(VENV), once: the rest"
	@$(INSTALL) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
