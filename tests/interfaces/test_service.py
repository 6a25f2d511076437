import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from blip_diffusion.errors import InputError
from blip_diffusion.interfaces.service import METADATA, Order, draw, order_of, reference_bytes

ORDER = {"prompts": ("on the beach",), "reference": b"", "category": "dog", "target_category": "dog"}


@pytest.mark.parametrize(
    "change",
    [{"prompts": ()}, {"prompts": ("a", "")}, {"category": ""}, {"target_category": " "}, {"count": 0}, {"count": 1001},
     {"steps": 0}, {"steps": 1001}, {"seed": -1}, {"seed": 2**63}, {"guidance": -1.0}, {"guidance": 101.0},
     {"guidance": float("nan")}],
    ids=str,
)  # fmt: skip
def test_an_order_is_checked(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Order(**ORDER | change)


def test_a_reference_is_kept_upright_and_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "large.jpg", exif=exif)
    with Image.open(io.BytesIO(reference_bytes(tmp_path / "large.jpg"))) as kept:
        assert kept.size == (512, 1024) and kept.mode == "RGB" and kept.format == "PNG"


def test_metadata_hold_the_whole_order(tiny_folder: Path, tmp_path: Path, dog: Image.Image) -> None:
    dog.save(tmp_path / "dog.png")
    order = Order(
        prompts=("on the beach", "at the forest"),
        reference=reference_bytes(tmp_path / "dog.png"),
        category="dog",
        target_category="cat",
        model=str(tiny_folder),
        count=2,
        seed=5,
        steps=2,
        negative="blurry",
    )
    paths = draw(order, tmp_path / "out", device="cpu")
    one = order_of(paths[3])
    assert one == Order(**vars(order) | {"prompts": ("at the forest",), "count": 1, "seed": 6})
    with Image.open(paths[0]) as picture:
        table = json.loads(picture.info[METADATA])
    assert table["prompt"] == "on the beach" and table["version"] and len(table["reference_sha256"]) == 64


@pytest.mark.parametrize(
    "table", ["", "[]", "{}", '{"prompt": 3, "reference": "*"}', '{"prompt": "a", "reference": ""}']
)
def test_metadata_of_someone_else(tmp_path: Path, table: str) -> None:
    information = PngImagePlugin.PngInfo()
    information.add_text(METADATA, table)
    Image.new("RGB", (20, 20)).save(tmp_path / "other.png", pnginfo=information)
    with pytest.raises(InputError, match="does not tell how it was made"):
        order_of(tmp_path / "other.png")


def test_metadata_of_a_later_version(tmp_path: Path) -> None:
    """Fields that this version does not know are no obstacle."""
    table = {"prompt": "on the beach", "reference": base64.b64encode(b"x").decode(), "category": "dog", "later": 1}
    information = PngImagePlugin.PngInfo()
    information.add_text(METADATA, json.dumps(table | {"target_category": "dog"}))
    Image.new("RGB", (20, 20)).save(tmp_path / "later.png", pnginfo=information)
    assert order_of(tmp_path / "later.png") == Order(**ORDER | {"reference": b"x"})
