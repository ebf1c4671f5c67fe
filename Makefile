# Every target sets up what it needs: a machine with Python 3.11, make and git is enough.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup demo test test-slow lint bench docs clean

help:
	@echo "make demo       pretrain, fine-tune and report on synthetic clips (about 10 minutes, 2 cores)"
	@echo "make test       lint and the test suite (5 to 11 minutes, 2 cores, no GPU)"
	@echo "make test-slow  the long tests that 'make test' leaves out"
	@echo "make lint       ruff and mypy alone"
	@echo "make bench      one table of speed ratios, in runs/bench (under 15 minutes, 2 cores)"
	@echo "make docs       the site, in runs/docs"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/python recipes/demo.py

# Three files of tests side by side: much of their time is waiting for processes and disks.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(READY)
	$(BIN)/python benchmarks/run.py --output runs/bench

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -b html docs runs/docs

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
