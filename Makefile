# Any target runs in the Python environment that is active, or in the one named: make test PYTHON=/path/to/python
PYTHON ?= python3

# These need torch and fvcore only (d2kd.losses and d2kd.regions serve other frameworks too), so they run first.
FIRST := tests/losses tests/regions
DOCTESTS := d2kd/losses d2kd/regions d2kd/structures

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: ## add what d2kd needs and is missing here (Detectron2 from DETECTRON2=/path/or/pip-requirement, if set)
	@$(PYTHON) tools/install.py base

demo: ## distil a small FCOS on the digits dataset; the table and figures go to output/demo
	@$(PYTHON) tools/install.py demo
	@$(PYTHON) tools/demo.py

test: ## all tests; those that need no Detectron2 first
	@$(PYTHON) tools/install.py dev; installed=$$?; failed=0; \
	if [ $$installed -ne 0 ] && ! $(PYTHON) -c 'import fvcore, pytest, torch' 2> /dev/null; then \
	    echo "No test ran: torch, fvcore and pytest cannot all be imported; do what the line above says." >&2; \
	    exit 1; \
	fi; \
	$(PYTHON) -m pytest -q --doctest-modules $(DOCTESTS) $(FIRST) || failed=1; \
	if [ $$installed -ne 0 ]; then \
	    why="the install step did not finish"; \
	    $(PYTHON) -c 'import detectron2' 2> /dev/null || why="Detectron2 is not installed"; \
	    echo "Only $(FIRST) ran, which need torch and fvcore alone; the other tests did not, because $$why:" \
	         "do what the install step says above." >&2; \
	    exit 1; \
	fi; \
	$(PYTHON) -m pytest -q -n auto --dist loadfile tests $(FIRST:%=--ignore=%) || failed=1; \
	exit $$failed

lint: ## ruff (rules and format), mypy, the order of imports
	@$(PYTHON) -c 'import importlinter, mypy, ruff, torch' 2> /dev/null || \
	    { echo "ruff, mypy, import-linter or torch is not installed: make test installs what is missing." >&2; exit 1; }
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -c 'import importlinter.cli as cli; cli.lint_imports_command()' --no-logo

docs: ## the documentation as a site, in output/site; links that lead nowhere are errors
	@$(PYTHON) -c 'import material, mkdocs, mkdocstrings_handlers.python' 2> /dev/null || \
	    { echo "mkdocs-material or mkdocstrings-python is not installed: pip install -e .[docs]" >&2; exit 1; }
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet
