"""The renderer, on a textured cube with sides of different colours."""

import errno
import zipfile
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from blip_diffusion.data.build import render as module
from blip_diffusion.data.build.render import Model, angles, catalogue, render, sample, view
from blip_diffusion.errors import DataError

pytest.importorskip("trimesh")

# One cube: the front (+z) takes the texture's left half (red), the back the right half (blue), the top is green.
OBJ = """mtllib box.mtl
v -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1\nv -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1
vt 0.1 0.1\nvt 0.4 0.1\nvt 0.4 0.9\nvt 0.1 0.9\nvt 0.6 0.1\nvt 0.9 0.1\nvt 0.9 0.9\nvt 0.6 0.9
usemtl skin
f 1/1 2/2 3/3\nf 1/1 3/3 4/4\nf 6/5 5/6 8/7\nf 6/5 8/7 7/8
usemtl grey
f 2 6 7\nf 2 7 3\nf 5 1 4\nf 5 4 8\nf 5 6 2\nf 5 2 1
usemtl green
f 4 3 7\nf 4 7 8
"""
MTL = "newmtl skin\nKd 1 1 1\nmap_Kd skin.png\nnewmtl grey\nKd .5 .5 .5\nnewmtl green\nKd 0 1 0\n"
CATALOGUE = """# a catalogue
id=Toys
name#1=Caf\\u00e9 box
category#1=Office
creator#1=Someone
model#1=/toys/box/box.obj
width#1=20
depth#1=20
height#1=20
name#2=Wall box
category#2=Kitchen
creator#2=Someone
model#2=/toys/box/box.obj
width#2=40
depth#2=10
height#2=20
elevation#2=100
modelRotation#2=1 0 0 0 0 1 0 -1 0
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    skin = Image.new("RGB", (8, 8), "red")
    skin.paste((0, 0, 255), (4, 0, 8, 8))
    skin.save(tmp_path / "skin.png")
    path = tmp_path / "toys.sh3f"
    with zipfile.ZipFile(path, "w") as files:
        files.writestr("PluginFurnitureCatalog.properties", CATALOGUE)
        files.writestr("toys/box/box.obj", OBJ)
        files.writestr("toys/box/box.mtl", MTL)
        files.write(tmp_path / "skin.png", "toys/box/skin.png")
    return path


@pytest.fixture
def box(archive: Path) -> Model:
    return catalogue(archive)[0]


def middle(image: Image.Image, up: float = 0.5) -> tuple[int, int, int]:
    """Hue at the middle column, `up` from the top of what is opaque."""
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    red, green, blue, alpha = image.getpixel((round((left + right) / 2), round(top + up * (bottom - top))))
    assert alpha == 255
    return red, green, blue


def test_catalogue_is_read(archive: Path) -> None:
    round_box, wall_box = catalogue(archive)
    assert (round_box.key, round_box.name, round_box.wall) == ("toys/box/box", "Café box", False)
    assert wall_box.wall and wall_box.size == (40, 20, 10) and wall_box.rotation[5] == 1


def test_invalid_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sh3f").write_text("no zip")
    with pytest.raises(DataError, match=r"a\.sh3f is not a furniture catalogue"):
        catalogue(tmp_path / "a.sh3f")


def test_each_view_shows_the_colour_of_its_side(box: Model) -> None:
    cloud = sample(box, points=40_000)
    red, _, blue = middle(view(cloud, 0, 0, 64))
    assert red > 120 and blue < 40
    red, _, blue = middle(view(cloud, 180, 0, 64))
    assert blue > 120 and red < 40
    red, green, blue = middle(view(cloud, 90, 0, 64))
    assert abs(red - blue) < 10 and abs(red - green) < 10


def test_top_of_the_model_is_at_the_top(box: Model) -> None:
    image = view(sample(box, points=40_000), 0, 40, 64)
    red, green, _ = middle(image, up=0.2)
    assert green > 100 > red
    red, green, _ = middle(image, up=0.8)
    assert red > 100 > green


def test_rotation_is_applied_before_scaling(archive: Path) -> None:
    cloud = sample(catalogue(archive)[1], points=20_000)
    assert np.ptp(cloud.position, axis=1) == pytest.approx([40, 20, 10], rel=0.05)
    red, green, blue = middle(view(cloud, 180, 0, 64))  # the matrix turns the top to the back and the front to the top
    assert green > 100 > red + blue
    red, green, blue = middle(view(cloud, 0, 50, 64), up=0.25)
    assert red > 100 > green + blue


def test_view_fills_the_frame_without_holes(box: Model) -> None:
    image = view(sample(box), 30, 20)
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    assert image.size == (128, 128) and max(right - left, bottom - top) >= 125
    alpha = image.getchannel("A")
    inside = np.asarray(alpha.point(lambda a: 255 * (a > 0)).filter(ImageFilter.MinFilter(5))) > 0
    assert inside.sum() > 5000 and (np.asarray(alpha)[inside] == 255).all()


def test_glass_is_transparent(box: Model, archive: Path) -> None:
    cloud = sample(box, points=40_000)
    cloud.colour[3, (cloud.colour[0] > 200) & (cloud.colour[2] < 50)] = 128
    red, _, blue = middle(view(cloud, 0, 0, 64))
    assert red > 50 and blue > 50


def test_wall_objects_are_rendered_from_the_front(box: Model) -> None:
    assert all(min(a, 360 - a) <= 72 for a, _ in angles(replace(box, wall=True), 8))
    turns = sorted(a for a, _ in angles(box, 8))
    assert len(set(turns)) == 8 and max(b - a for a, b in pairwise(turns)) < 75
    assert all(10 <= e <= 30 for _, e in angles(box, 8))


def test_rendering_is_deterministic(box: Model, tmp_path: Path) -> None:
    once = [path.read_bytes() for _, path in render(box, tmp_path / "a", 2)]
    again = [path.read_bytes() for _, path in render(box, tmp_path / "b", 2)]
    assert once == again and once[0] != once[1]


def test_rendered_views_are_cached(box: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = render(box, tmp_path, 2)
    monkeypatch.setattr(module, "sample", lambda model: pytest.fail("rendered again"))
    assert render(box, tmp_path, 2) == first
    assert all(path.is_file() for _, path in first)


def test_model_without_surface_is_refused(box: Model, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.sh3f", "w") as files:
        files.writestr("toys/box/box.obj", "v 0 0 0\n")
    with pytest.raises((DataError, ValueError)):
        sample(replace(box, archive=tmp_path / "empty.sh3f"))


def test_broken_model_is_skipped(box: Model, tmp_path: Path) -> None:
    messages: list[str] = []
    broken = replace(box, key="toys/none/none", member="toys/none/none.obj")
    result = list(module.render_all([broken, box], tmp_path, 1, workers=1, progress=messages.append))
    assert [model.key for model, _ in result] == ["toys/box/box"]
    assert len(messages) == 1 and "left out toys/none/none" in messages[0]


def test_interrupt_does_not_wait_for_other_models(box: Model, tmp_path: Path) -> None:
    models = [replace(box, key=f"toys/box/box{number}") for number in range(12)]
    result = module.render_all(models, tmp_path, 1, workers=1)
    next(result)
    result.close()  # as an interrupt does
    assert len(list(tmp_path.glob("toys/box/*"))) < 6


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ImportError("trimesh"), BrokenExecutor()])
def test_machine_errors_are_not_attributed_to_models(box: Model, error: Exception) -> None:
    future: Future[list[tuple[int, Path]]] = Future()
    future.set_exception(error)
    with pytest.raises(DataError, match=r"toys/box/box can't be rendered .* finished models are kept"):
        module._rendered(box, future, print)
