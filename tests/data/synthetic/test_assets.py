"""The packed training set: round trips, and damaged files."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.data.synthetic.assets import CUTOUT_SIZE, PERMISSIVE, AssetLibrary, CutOut, CutOutImage, Scene, pack
from blip_diffusion.errors import DataError

FIXTURE = Path(__file__).parents[2] / "fixtures/world.zip"
RED = CutOut("a:red", "box", "red box", "3d", "a red", "MIT", "20", True, "heldout")
TALL = CutOut("a:tall", "door", "door", "photo", "a tall", "GPL-2.0-only")
BEACH = Scene(("on the beach", "at the beach"), "beach", "a beach", "CC-BY-SA-3.0", 0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    images = [
        CutOutImage(RED, Image.new("RGBA", (60, 40), "red")),
        CutOutImage(TALL, Image.new("RGBA", (150, 300), "blue")),
    ]
    pack(tmp_path / "world.zip", images, [(BEACH, Image.new("RGB", (400, 400), "yellow"))], "# Licences")
    return tmp_path / "world.zip"


def test_packed_assets_are_loaded(path: Path) -> None:
    world = AssetLibrary.load(path)
    assert world.cutouts == (RED, TALL) and world.scenes == (BEACH,)
    assert world.pixels.shape == (2, 4, 128, 128) and world.pixels.dtype == torch.uint8
    assert world.scene_pixels.shape == (1, 3, 160, 208)
    red, tall = world.pixels
    assert red[3].nonzero().min(0).values.tolist() == [44, 34] and red[3].nonzero().max(0).values.tolist() == [83, 93]
    assert tall[3].any(1).sum() == CUTOUT_SIZE and tall[3].any(0).sum() == 64
    assert torch.allclose(red[:3, 64, 64].float(), torch.tensor([255.0, 0, 0]), atol=6)


def test_the_same_rows_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    images = [
        CutOutImage(RED, Image.new("RGBA", (60, 40), "red")),
        CutOutImage(TALL, Image.new("RGBA", (150, 300), "blue")),
    ]
    pack(tmp_path / "again.zip", images, [(BEACH, Image.new("RGB", (400, 400), "yellow"))], "# Licences")
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "again.zip"}


def test_subsets(path: Path) -> None:
    world = AssetLibrary.load(path)
    assert world.subset(split="train").cutouts == (TALL,)
    assert world.subset(permissive=True).cutouts == (RED,)
    assert world.subset(permissive=True).scenes == () and len(world.subset(permissive=True).scene_pixels) == 0
    assert torch.equal(world.subset(split="heldout").pixels[0], world.pixels[0])


def test_missing_world_error_contains_the_build_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make one with `blip-diffusion data build"):
        AssetLibrary.load(tmp_path / "none.zip")


def rewritten(path: Path, name: str, data: bytes | None) -> Path:
    """The world with one member replaced, or left out."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for member, content in members.items():
            if member != name or data is not None:
                new.writestr(member, data if member == name and data is not None else content)
    return path


def webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "WEBP")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cutouts/00001.webp", None),
        ("cutouts/00001.webp", b"RIFF no image"),
        ("cutouts/00001.webp", webp(400, 400)),
        ("cutouts.jsonl", b"{"),
        ("cutouts.jsonl", b"\xff"),
        ("cutouts.jsonl", b'{"identity": "x"}'),
        ("scenes.jsonl", b'{"word": "beach"}'),
        ("scenes/000.webp", b""),
        ("scenes/000.webp", webp(160, 208)),
    ],
)
def test_corrupt_world_is_refused(path: Path, name: str, data: bytes | None) -> None:
    with pytest.raises(DataError, match="is not a packed dataset"):
        AssetLibrary.load(rewritten(path, name, data))


@pytest.mark.parametrize("data", [None, b"", webp(64, 64)])
def test_corrupt_geometry_is_refused(path: Path, data: bytes | None) -> None:
    shape = Image.new("RGB", (60, 40), (128, 128, 255))
    rows = [CutOutImage(RED, Image.new("RGBA", (60, 40), "red"), shape) for _ in range(65)]
    pack(path, rows, [], "")
    world = AssetLibrary.load(path, geometry=True)
    assert world.geometry is not None and world.geometry.shape == (65, 3, 64, 64)
    assert (world.geometry.int() - torch.tensor([128, 128, 255]).view(3, 1, 1)).abs().max() <= 2
    with pytest.raises(DataError, match="is not a packed dataset"):
        AssetLibrary.load(rewritten(path, "geometry/001.webp", data), geometry=True)
    assert len(AssetLibrary.load(path).cutouts) == 65  # which reads no geometry


def table(row: CutOut | Scene, **change: Any) -> bytes:
    return json.dumps({**dataclasses.asdict(row), **change}).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *(
            ("cutouts.jsonl", table(RED, **{key: value}))
            for key in ("identity", "category", "name", "source", "split")
            for value in (None, [], {"a": 1}, 7)
        ),
        *(("cutouts.jsonl", table(RED, **one)) for one in ({"category": ""}, {"animate": "yes"}, {"colour": "x"})),
        *(("scenes.jsonl", table(BEACH, phrases=value)) for value in ("on the beach", [], None, [1], [""], [["a"]])),
        *(("scenes.jsonl", table(BEACH, horizon=value)) for value in ("high", None, -1, 2, float("nan"), 10**400)),
        ("scenes.jsonl", b"[1]"),
        ("scenes.jsonl", b"[" * 100_000),
        ("cutouts.jsonl", b"{}\n" * 30_001),
        ("cutouts.jsonl", b" " * (2**25 + 1)),
        ("cutouts/00000.webp", bytes(2**22 + 1)),
    ],
)  # fmt: skip
def test_rows_of_other_types_and_sizes_are_refused(path: Path, name: str, data: bytes) -> None:
    with pytest.raises(DataError, match="is not a packed dataset") as caught:
        AssetLibrary.load(rewritten(path, name, data))
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_oversized_image_is_not_unpacked(path: Path, huge_png: Callable[[int], Path]) -> None:
    with pytest.raises(DataError, match=r"is not a packed dataset .*decompression bomb"):
        AssetLibrary.load(rewritten(path, "scenes/000.webp", huge_png(20_000).read_bytes()))


def test_broken_or_encrypted_stream_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("scenes.jsonl", b"{}")
        start = archive.getinfo("scenes.jsonl").header_offset
    whole = path.read_bytes()
    broken, encrypted = bytearray(whole), bytearray(whole)
    broken[start + 30 + len("scenes.jsonl")] = 0xFF
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"is not a packed dataset .*decompressing"):
        AssetLibrary.load(path)
    encrypted[start + 6] |= 1  # in the file's own header, and in the last of the directory
    encrypted[whole.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(DataError, match=r"is not a packed dataset .*encrypted"):
        AssetLibrary.load(path)


def test_file_that_is_not_a_zip_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="is not a packed dataset"):
        AssetLibrary.load(path)


def test_the_fixture_is_permissive_and_has_pairs() -> None:
    world = AssetLibrary.load(FIXTURE)
    assert FIXTURE.stat().st_size <= 300 * 1024
    assert {row.licence for row in (*world.cutouts, *world.scenes)} <= set(PERMISSIVE)
    by_identity: dict[str, int] = {}
    for row in world.cutouts:
        by_identity[row.identity] = by_identity.get(row.identity, 0) + 1
    assert len(world.cutouts) >= 48 and sum(count > 1 for count in by_identity.values()) >= 16
    assert 5 <= len(world.scenes) <= 8 and {row.split for row in world.cutouts} == {"train", "heldout"}
    assert np.all(world.pixels[:, 3].flatten(1).numpy().max(1) > 200)
