"""Requests: what is read from files."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from blip_diffusion.errors import InputError
from blip_diffusion.generation.edit_request import EditInput, ImageRef
from blip_diffusion.generation.request import GenerationRequest, control_map, read_control
from blip_diffusion.generation.subject_inputs import SubjectInput


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
    edges = control_map(control)
    assert edges.size == size
    assert 0.001 < edges.convert("L").histogram()[255] / (size[0] * size[1]) < 0.2


def test_the_mask_of_a_cutout_is_its_transparency(tmp_path: Path) -> None:
    cutout = Image.new("RGBA", (800, 600), (255, 255, 255, 0))
    cutout.paste((40, 200, 90, 255), (200, 150, 600, 450))
    cutout.save(tmp_path / "cutout.png")
    mask = Image.open(io.BytesIO(read_control("mask", tmp_path / "cutout.png", side=60).image))
    assert (mask.size, mask.getpixel((10, 30)), mask.getpixel((40, 30))) == ((80, 60), (0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize(
    "build",
    [
        lambda text: GenerationRequest((text,), b"x", "dog", "dog"),
        lambda text: GenerationRequest(("x",), b"x", text, "dog"),
        lambda text: GenerationRequest(("x",), b"x", "dog", text),
        lambda text: GenerationRequest(("x",), b"x", "dog", "dog", negative_prompt=text),
        lambda text: SubjectInput((b"x",), text, "dog"),
        lambda text: SubjectInput((b"x",), "dog", text),
        lambda text: EditInput(ImageRef("dog.png", ""), source_category=text),
    ],
)
def test_texts_have_a_limit(build: Callable[[str], object]) -> None:
    """Tokenizers take seconds for megabytes, of which the text encoder reads a few dozen words."""
    assert build("x" * 10_000)
    with pytest.raises(InputError, match="has 10001 characters: use at most 10000"):
        build("x" * 10_001)
