"""The Gradio Space, as `make space` puts it together, run as a hosted Space runs it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving.processes import free_port, served

pytest.importorskip("gradio")
pytestmark = pytest.mark.faces
ROOT = Path(__file__).parents[3]
PROXY = {"X-Forwarded-Host": "someone-space.hf.space", "X-Forwarded-Proto": "https"}


def test_visitors_see_only_their_own_images(browser: Any, dog: Image.Image, tmp_path: Path) -> None:
    space, dog_path = tmp_path / "space", tmp_path / "dog.png"
    subprocess.run(["make", "space", f"SPACE={space}"], cwd=ROOT, check=True, capture_output=True)
    dog.save(dog_path)
    port = free_port()
    environment = {"PYTHONPATH": str(space), "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(tmp_path)}
    with served([sys.executable, "app.py"], port, tmp_path / "errors.txt", environment, space) as (address, _):
        page = browser.new_page()
        assert page.request.get(f"{address}/v1/jobs").status == 404
        assert "https://someone-space.hf.space" in page.request.get(address, headers=PROXY).text()
        page.goto(address)
        page.locator("#reference input[type=file]").set_input_files(dog_path)
        page.locator("#category").get_by_role("textbox").fill("dog")
        page.locator("#prompts").get_by_role("textbox").fill("on the beach")
        page.get_by_label("turbo").check()
        page.locator("#generate").click()
        page.locator("#status").get_by_text("Done: 2 images").wait_for(timeout=90_000)
        assert page.get_by_role("tab").all_inner_texts() == ["Generate", "Edit", "Compare"]
