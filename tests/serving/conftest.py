import io
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from PIL import Image

from blip_diffusion.generation.request import GenerationRequest

READY = 120.0


@pytest.fixture(scope="session")
def dog_png(dog: Image.Image) -> bytes:
    buffer = io.BytesIO()
    dog.save(buffer, "PNG")
    return buffer.getvalue()


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


@pytest.fixture(scope="session")
def service(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One service for all tests, since its worker process takes seconds to import torch."""
    pytest.importorskip("dbos")
    from blip_diffusion.serving.job_service import JobService
    from blip_diffusion.serving.settings import ServiceSettings

    folder = tmp_path_factory.mktemp("server")
    with JobService(ServiceSettings(folder, models={"tiny": str(tiny_folder)}, devices=("cpu",))) as running:
        yield running


@pytest.fixture(scope="session")
def address(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `blip-diffusion app`, in a process of its own; for tests with the marker faces."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("app")
    command = [sys.executable, "-m", "blip_diffusion", "app", "--port", str(_free_port()), "--device", "cpu"]
    command += ["--model", f"tiny={tiny_folder}", "--out", str(folder)]
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", line), (folder / "errors.txt").read_text()
            _wait_until_ready(line)
            yield line
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(address: str) -> None:
    deadline = monotonic() + READY
    while monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except urllib.error.URLError:
            sleep(0.3)
    raise AssertionError("The server did not get ready.")
