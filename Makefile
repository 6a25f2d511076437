# Two commands for people: `make demo` and `make test`. Each sets up .venv first, from pinned versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test check format bench clean

help:          ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/ready  ## draw four held-out subjects in new scenes, and one page of them all
	$(BIN)/python examples/demo.py --out out/demo

test: $(VENV)/ready  ## run the tests
	$(BIN)/python -m pytest

check: $(VENV)/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/ready  ## ours against the peer, side by side
	$(BIN)/python benchmarks/bench.py --out out/bench

clean:  ## remove what the others made
	rm -rf $(VENV) out build dist src/*.egg-info

# A torch that pip finds as a CPU build is taken as it is; the constraints pin everything else.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
