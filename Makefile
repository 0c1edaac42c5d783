# Two commands on a fresh machine: `make demo` and `make test`. Both need Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := -n auto --dist loadfile

.PHONY: demo test test-all check bench-quality bench-curse bench-survey bench-adapt clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/installed  ## the main job on the embedded corpus, from nothing to runs/demo/report.html
	$(BIN)/sprachbund demo

test: $(VENV)/installed  ## every test but the long ones, on all cores
	tests/install-browser.sh
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/installed  ## the long ones too
	tests/install-browser.sh
	$(BIN)/python -m pytest $(PARALLEL) -m ""

check: $(VENV)/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-quality: $(VENV)/installed  ## the methods side by side; stop it at any time, the same command continues
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/quality_tables.py

bench-curse: $(VENV)/installed  ## what more languages cost, dense and with experts
	$(BIN)/python benchmarks/quality.py curse
	$(BIN)/python benchmarks/quality_tables.py

bench-survey: $(VENV)/installed  ## what else was tried with the 18 languages, one seed each
	$(BIN)/python benchmarks/quality.py survey
	$(BIN)/python benchmarks/quality_tables.py

bench-adapt: $(VENV)/installed  ## new languages for a model that exists; stop it at any time, the same command continues
	$(BIN)/python benchmarks/adapt.py
	$(BIN)/python benchmarks/adapt_tables.py

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
