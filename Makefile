# Two commands to start with: `make demo` and `make test`. Each sets up .venv first, from pinned versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
APP    := .venv-app
SPACE  ?= out/space
MINUTES ?= 60
WORKERS ?= 2

.PHONY: help demo app space mini test test-faces check format docs bench lock clean

help:          ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/ready  ## generate four held-out subjects in new scenes, and one contact sheet
	$(BIN)/python examples/demo.py --out out/demo

app: $(APP)/ready  ## open the web page on http://127.0.0.1:7860
	$(APP)/bin/blip-diffusion app --out out/app

space:  ## put a Gradio Space, package and page, into out/space
	rm -rf $(SPACE) && mkdir -p $(SPACE)
	cp -R examples/space/. src/blip_diffusion $(SPACE)
	find $(SPACE) -name __pycache__ -prune -exec rm -r {} +

mini: $(VENV)/ready world/world.zip  ## train mini from the start; MINUTES=60, and RESUME=--resume goes on
	$(BIN)/blip-diffusion train-mini --config configs/mini/recipe.toml --out runs/mini --minutes $(MINUTES) $(RESUME)

test: $(VENV)/ready  ## run the tests, two processes at a time; WORKERS=0 runs them in one
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-faces: $(APP)/faces  ## test the server, the page in Chromium, the notebooks, a Ray cluster, and with COMFYUI=FOLDER the nodes in ComfyUI
	$(APP)/bin/python -m pytest -n 0 -m 'faces or ray' -rs tests/serving tests/comfy tests/test_deploy.py tests/test_notebooks.py tests/test_ray_pool.py

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
	rm -rf $(VENV) $(APP) out site build dist src/*.egg-info

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

# Gradio wants Pillow below 13, and the parity tests were made with 13: the page has an environment of its own.
$(APP)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(APP)
	grep -v '^pillow==' constraints.txt > $(APP)/constraints.txt
	$(APP)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(APP)/constraints.txt --editable ".[app]"
	touch $@

$(APP)/faces: $(APP)/ready
	$(APP)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(APP)/constraints.txt --editable ".[dev,faces]"
	touch $@
