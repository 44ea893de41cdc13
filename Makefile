## make quickstart   install everything, then show the whole path in a few minutes: data, training, evaluation
## make test         install everything, then run the tests
## make test-slow    install everything, then run the tests that take minutes each
## make lint         install everything, then check style, format, types and imports
## make env          install everything into .venv (once; later calls see that nothing changed)
## make clean        remove .venv and output/quickstart
##
## PYTHON=python3.12 chooses the Python that .venv is made with, ARGS="..." goes to the quick start or to pytest.

PYTHON ?= python3
ARGS ?=

.PHONY: help quickstart test test-slow lint env clean

help:
	@sed -n 's/^## \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

quickstart: env
	.venv/bin/python tools/quickstart.py $(ARGS)

test: env
	.venv/bin/python -m pytest $(ARGS)

test-slow: env
	.venv/bin/python -m pytest -m slow $(ARGS)

lint: env
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports --no-cache

env:
	@$(PYTHON) tools/install.py

# .venv goes only if it carries install.py's mark.
clean:
	@if [ -e .venv/gpvit-installed ]; then rm -rf .venv; elif [ -e .venv ]; then echo ".venv was not made here and stays"; fi
	rm -rf output/quickstart
