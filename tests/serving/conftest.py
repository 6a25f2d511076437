import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_diffusion.generation.request import GenerationRequest
from tests.serving.processes import ONE_THREAD, free_port, served


@pytest.fixture(scope="session")
def dog_png(dog: Image.Image) -> bytes:
    buffer = io.BytesIO()
    dog.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def owl_png() -> bytes:
    return (Path(__file__).parents[2] / "examples/owl.png").read_bytes()


@pytest.fixture(scope="session")
def request_of_dog(dog_png: bytes) -> GenerationRequest:
    return GenerationRequest(
        prompts=("on the beach",),
        reference=dog_png,
        category="dog",
        target_category="dog",
        model="tiny",
        num_images=1,
        seed=1,
        steps=2,
    )


@pytest.fixture(scope="package")  # its threads draw from the global random generator, so they end with this package
def service(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One service for all tests, since its worker process takes seconds to import torch."""
    pytest.importorskip("dbos")
    from blip_diffusion.serving.job_service import JobService
    from blip_diffusion.serving.settings import ServiceSettings

    folder = tmp_path_factory.mktemp("server")
    settings = ServiceSettings(folder, models={"tiny": str(tiny_folder)}, devices=("cpu",))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_THREAD.items():
            patch.setenv(name, value)
        with JobService(settings) as running:
            yield running


@pytest.fixture(scope="session")
def address(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `blip-diffusion app`, in a process of its own; for tests with the marker faces.

    The model has an adapter for depth.
    """
    pytest.importorskip("gradio")
    from diffusers import T2IAdapter, UNet2DConditionModel

    folder, port = tmp_path_factory.mktemp("app"), free_port()
    model = shutil.copytree(tiny_folder, folder / "model")
    channels = list(UNet2DConditionModel.from_pretrained(model / "unet").config.block_out_channels)
    T2IAdapter(1, channels, num_res_blocks=1).save_pretrained(model / "t2i_adapter" / "depth")
    command = [sys.executable, "-m", "blip_diffusion", "app", "--port", str(port), "--device", "cpu"]
    command += ["--model", f"tiny={model}", "--out", str(folder / "out")]
    with served(command, port, folder / "errors.txt", wait_for="/readyz") as (address, _):
        yield address


@pytest.fixture(scope="module")  # its event loop runs until it is closed, and other tests need one of their own
def browser() -> Iterator[Any]:
    """Debian's Chromium; for tests with the marker faces."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
