PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
DOCS   := $(VENV)/.docs

.PHONY: install demo test test-slow lint docs browser bench clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[data]' --group dev
	touch $@

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt --group docs
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/stillroom distill dm --data digits --ipc 1 --out out/demo
	$(BIN)/stillroom evaluate out/demo --baselines
	$(BIN)/stillroom report out/demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

docs: $(DOCS)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

browser: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt --group browser

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) out docs/_build
