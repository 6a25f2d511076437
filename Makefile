# Two commands to start with: `make demo` and `make test`. Each sets up .venv first, from pinned versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MINUTES ?= 60
WORKERS ?= 2

.PHONY: help demo app mini test test-faces check format docs bench lock clean

help:          ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/ready  ## generate four held-out subjects in new scenes, and one contact sheet
	$(BIN)/python examples/demo.py --out out/demo

app: $(VENV)/app  ## open the web page on http://127.0.0.1:7860
	$(BIN)/blip-diffusion app --out out/app

mini: $(VENV)/ready world/world.zip  ## train mini from the start; MINUTES=60, and RESUME=--resume goes on
	$(BIN)/blip-diffusion train-mini --config configs/mini/recipe.toml --out runs/mini --minutes $(MINUTES) $(RESUME)

test: $(VENV)/ready  ## run the tests, two processes at a time; WORKERS=0 runs them in one
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-faces: $(VENV)/faces  ## test the server with OpenAI's client, and the page in Chromium
	$(BIN)/python -m pytest -m faces tests/serving

check: $(VENV)/ready  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready  ## fix the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs  ## build the documentation site in site/; a broken link fails
	$(BIN)/python tools/make_reference.py
	$(BIN)/zensical build --strict --clean

bench: $(VENV)/ready  ## compare speed with diffusers' pipeline
	$(BIN)/python benchmarks/bench.py --out out/bench

lock:  ## pin the newest dependencies, with hashes; needs uv
	$(PYTHON) tools/lock.py --upgrade

clean:  ## remove everything the other targets made
	rm -rf $(VENV) out site build dist src/*.egg-info

world/world.zip: | $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[data]"
	$(BIN)/blip-diffusion data build --out world

# A torch that pip finds as a CPU build is taken as it is; the constraints pin everything else.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

$(VENV)/app: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[app]"
	touch $@

$(VENV)/faces: $(VENV)/app
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[faces]"
	touch $@
