## make quickstart   create data, train a small detector and evaluate it, in 7 to 20 minutes
## make test         run the tests, in less than 20 minutes on two CPU cores
## make test-quick   run the quick ones among them, in about three minutes
## make test-slow    run the tests that take minutes each
## make gpu          check and time everything on a GPU, in about 10 minutes
## make lint         check style, formatting, types, imports and density
## make env          install everything into .venv (the targets above do this first)
## make clean        remove .venv and output/quickstart
##
## PYTHON=python3.12 selects the Python for .venv; ARGS="..." is passed to the command.

PYTHON ?= python3
ARGS ?=

.PHONY: help quickstart test test-quick test-slow gpu lint env clean

help:
	@sed -n 's/^## \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

quickstart: env
	.venv/bin/python tools/quickstart.py $(ARGS)

test: env
	.venv/bin/python -m pytest $(ARGS)

test-quick: env
	.venv/bin/python -m pytest -m "not slow and not long" $(ARGS)

test-slow: env
	.venv/bin/python -m pytest -m slow $(ARGS)

gpu: env
	.venv/bin/python tests/benchmarks/gpu.py $(ARGS)

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/python tools/density.py

env:
	@$(PYTHON) tools/install.py

# Removes .venv only if install.py created it.
clean:
	@if [ -e .venv/gpvit-installed ]; then rm -rf .venv; elif [ -e .venv ]; then echo ".venv was not created by make env and is kept"; fi
	rm -rf output/quickstart
