"""The notebooks run, on the tiny model, and are committed without outputs."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import T2IAdapter

from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

EXAMPLES = Path(__file__).parent.parent / "examples"
SLOW = "02-tuning"
"""Only runs in a kernel, with `make test-faces`."""
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def model_folder(tiny_folder: Path, pipe: BlipDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with an adapter for edges that no one has trained."""
    folder = tmp_path_factory.mktemp("with-adapter") / "tiny"
    shutil.copytree(tiny_folder, folder)
    channels = list(pipe.unet.config.block_out_channels)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    adapter = T2IAdapter(channels=channels, num_res_blocks=1, downscale_factor=factor)
    adapter.save_pretrained(folder / "t2i_adapter/canny")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the examples, with the notebooks' folder as the working directory."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples/notebooks")
    return tmp_path / "examples/notebooks"


def read(path: Path, model: Path | None = None) -> Any:
    """Read a notebook, and put the tiny model and few steps in place of its own."""
    text = path.read_text(encoding="utf-8")
    if model is not None:
        text = text.replace('MODEL = \\"mini\\"', f'MODEL = \\"{model}\\"').replace("MAX_STEPS = 60", "MAX_STEPS = 10")
    return json.loads(text)


def code(notebook: Any) -> Iterator[str]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert len(path.read_bytes()) < 20_000


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != SLOW], ids=lambda path: path.stem)
def test_the_code_runs(path: Path, model_folder: Path, here: Path) -> None:
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(code(read(path, model_folder))):
        exec(compile(cell, f"{path.name}, cell {number}", "exec"), namespace)


@pytest.mark.faces
def test_a_kernel_runs_all_of_them(model_folder: Path, here: Path) -> None:
    """In one kernel, since torch takes seconds to import; each begins with an empty namespace."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    manager = nbclient.client.KernelManager(kernel_name="python3")
    for number, path in enumerate(NOTEBOOKS):
        notebook = nbformat.reads(json.dumps(read(path, model_folder)), 4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        client = nbclient.NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(here)}})
        client.execute(reset_kc=False, cleanup_kc=number == len(NOTEBOOKS) - 1, env=dict(os.environ))
        results = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert any("image/png" in output.get("data", {}) or output.output_type == "stream" for output in results)
