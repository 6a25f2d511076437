"""Requests: what is read from files."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from blip_diffusion.generation.request import read_control


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = Image.new("RGB", (800, 600), "white")
    ImageDraw.Draw(image).rectangle((200, 150, 600, 450), fill="black")
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(("side", "size"), [(None, (800, 600)), (64, (85, 64)), (2048, (800, 600))])
def test_a_control_map_has_the_size_of_the_generated_image(
    photo: Path, side: int | None, size: tuple[int, int]
) -> None:
    control = read_control("canny", photo, side=side)
    edges = Image.open(io.BytesIO(control.image))
    assert edges.size == size
    assert 0.001 < edges.convert("L").histogram()[255] / (size[0] * size[1]) < 0.2
