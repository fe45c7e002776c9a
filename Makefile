# make book   set up, run every chapter at laptop scale, render: the whole book from a fresh clone
# make test   set up, lint, tests, chapters at smoke scale, nbval, strict render, checks of the pages
PYTHON ?= python3
SCALE ?= laptop
BIN := .venv/bin
STAMP := .venv/.kemem-setup
export KEMEM_TRAIN := $(TRAIN)

.PHONY: help setup book html record smoke measure canary test test-unit test-notebooks test-html test-gpu stress bench lint format linkcheck clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1 | /p' $(MAKEFILE_LIST) | column -t -s '|'

setup: $(STAMP)  ## a virtual environment in .venv with the package, editable
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "kemem needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -1); say for instance: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "installing into .venv what pyproject.toml asks for, at the versions of constraints.txt; this takes minutes"
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[book,test]'
	@touch $@

book: $(STAMP)  ## run all chapters (what is missing in .kemem is computed) and render: _build/html/index.html
	$(BIN)/python -m kemem.book build --scale $(SCALE)

html: $(STAMP)  ## render the committed notebooks, in seconds
	$(BIN)/python -m kemem.book html

record: $(STAMP)  ## compute what is missing in records/$(SCALE), then write chapters/*.ipynb from the records
	$(BIN)/python -m kemem.book record --scale $(SCALE) $(ONLY)

smoke: $(STAMP)  ## write tests/smoke/*.ipynb anew: every chapter at smoke scale from an empty store
	$(BIN)/python -m kemem.book smoke $(ONLY)

measure: $(STAMP)  ## what each chapter costs at SCALE from an empty store, into records/
	$(BIN)/python -m kemem.book measure --scale $(SCALE) $(ONLY)

test: lint test-unit test-notebooks test-html  ## everything that must hold, in about half an hour on 2 cores

test-unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not gpu and not slow and not stress" --ignore=tests/test_html.py

test-notebooks: $(STAMP)  ## committed notebooks in replay, every chapter at smoke scale in compute mode
	$(BIN)/python -m kemem.book check

test-html: $(STAMP)  ## render strictly from clean, then check the pages
	$(BIN)/python -m kemem.book html --out _build/test
	KEMEM_HTML=_build/test/_build/html $(BIN)/python -m pytest -n 0 tests/test_html.py

test-gpu: $(STAMP)  ## parity of CPU and CUDA; skipped with the reason where there is no GPU
	$(BIN)/python -m pytest -m gpu -rs

stress: $(STAMP)  ## kills and races, many times
	$(BIN)/python -m pytest -m "stress or slow"

bench: $(STAMP)  ## ratios against their bounds
	$(BIN)/python -m benchmarks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

linkcheck: $(STAMP)  ## look up every outside link; needs the network
	$(BIN)/python -m kemem.book html --out _build/linkcheck --builder linkcheck

canary: $(STAMP)  ## the committed notebooks on the newest plain Sphinx, without Jupyter Book
	$(BIN)/python -m kemem.book canary

clean:  ## remove what was built; .venv and .kemem (finished runs) stay
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
