PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow docs lint format

# Draws pictures, trains CLIP, CyCLIP and CyCLIP as published, classifies one picture with plain transformers, and compares them on held-out pairs.
quickstart: .venv/installed
	$(BIN)/python -m modeling_cyclip.data.shapes outputs/quickstart/data
	$(BIN)/cyclip compare --config quickstart
	$(BIN)/python -I -c 'from transformers import pipeline; \
	    print(pipeline("zero-shot-image-classification", model="outputs/quickstart/comparison/runs/cyclip-seed0")( \
	    "outputs/quickstart/data/example.png", candidate_labels=["blue circle", "red triangle", "green arrow"]))'
	@sed -n '/^| measured/,/^$$/p' outputs/quickstart/comparison/report.md

test: .venv/installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# What takes minutes: the wheel in a fresh environment, the notebooks.
test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# The pages of docs/ into site/. Any warning ends it. The variable silences a notice that is none of the pages.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: .venv/installed docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first: pinned, it takes a CPU build where one is at hand.
.venv/installed: pyproject.toml constraints.txt bin/cyclip
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cyclip needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,eval,dev,docs]"
	touch $@
