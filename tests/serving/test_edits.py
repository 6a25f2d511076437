"""Uploads of edits: what a mask means, and that it is decoded once."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_diffusion import images
from blip_diffusion.images import png_bytes
from blip_diffusion.serving.edits import edit_input
from blip_diffusion.serving.store import Store

SIZE = (48, 32)


def mask(mode: str) -> bytes:
    """White at the left, or transparent there."""
    image = Image.new(mode, SIZE)
    if mode == "RGBA":
        image.paste((0, 0, 0, 255), (24, 0, *SIZE))
    else:
        image.paste("white", (0, 0, 24, SIZE[1]))
    return png_bytes(image)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_mask_is_decoded_once(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []
    read_image = images.read_image

    def count(source: Any, read: Callable[[Image.Image], Any]) -> Any:
        decoded.append(source)
        return read_image(source, read)

    monkeypatch.setattr(images, "read_image", count)
    store = Store(tmp_path)
    edit = edit_input(store, png_bytes(Image.new("RGB", SIZE, "grey")), mask(mode), source_category="cat")
    assert len(decoded) == 2 and edit.mask_file is not None
    saved = Image.open(io.BytesIO(store.photo_path(edit.mask_file.sha256).read_bytes())).convert("L")
    assert saved.getpixel((4, 4)) == 255 and saved.getpixel((40, 4)) == 0
