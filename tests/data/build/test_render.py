"""The renderer, on a textured cube with sides of different colours."""

import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from blip_diffusion.data.build import render as module
from blip_diffusion.data.build.render import Cloud, Model, angles, catalogue, geometry_file, render, sample, view
from blip_diffusion.errors import DataError
from tests.data.build.box import write_catalogue

pytest.importorskip("trimesh")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path / "toys.sh3f")


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


def test_entries_with_the_same_file_are_rendered_each(archive: Path, tmp_path: Path) -> None:
    models = catalogue(archive)
    assert [model.key for model in models] == ["toys/box/box", "toys/box/box.2"]
    files = [path for model in models for _, path in render(model, tmp_path / "views", 2)]
    assert len({path.read_bytes() for path in files}) == 4


def test_invalid_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sh3f").write_text("no zip")
    with pytest.raises(DataError, match=r"a\.sh3f is not a furniture catalogue"):
        catalogue(tmp_path / "a.sh3f")


def test_each_view_shows_the_colour_of_its_side(box: Model) -> None:
    cloud = sample(box, points=40_000)
    red, _, blue = middle(view(cloud, 0, 0, 64).image)
    assert red > 120 and blue < 40
    red, _, blue = middle(view(cloud, 180, 0, 64).image)
    assert blue > 120 and red < 40
    red, green, blue = middle(view(cloud, 90, 0, 64).image)
    assert abs(red - blue) < 10 and abs(red - green) < 10


def test_top_of_the_model_is_at_the_top(box: Model) -> None:
    image = view(sample(box, points=40_000), 0, 40, 64).image
    red, green, _ = middle(image, up=0.2)
    assert green > 100 > red
    red, green, _ = middle(image, up=0.8)
    assert red > 100 > green


def test_rotation_is_applied_before_scaling(archive: Path) -> None:
    cloud = sample(catalogue(archive)[1], points=20_000)
    assert np.ptp(cloud.position, axis=1) == pytest.approx([40, 20, 10], rel=0.05)
    red, green, blue = middle(
        view(cloud, 180, 0, 64).image
    )  # the matrix turns the top to the back and the front to the top
    assert green > 100 > red + blue
    red, green, blue = middle(view(cloud, 0, 50, 64).image, up=0.25)
    assert red > 100 > green + blue


def test_view_fills_the_frame_without_holes(box: Model) -> None:
    image = view(sample(box), 30, 20).image
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    assert image.size == (128, 128) and max(right - left, bottom - top) >= 125
    alpha = image.getchannel("A")
    inside = np.asarray(alpha.point(lambda a: 255 * (a > 0)).filter(ImageFilter.MinFilter(5))) > 0
    assert inside.sum() > 5000 and (np.asarray(alpha)[inside] == 255).all()


def test_glass_is_transparent(box: Model, archive: Path) -> None:
    cloud = sample(box, points=40_000)
    cloud.colour[3, (cloud.colour[0] > 200) & (cloud.colour[2] < 50)] = 128
    red, _, blue = middle(view(cloud, 0, 0, 64).image)
    assert red > 50 and blue > 50


def cloud_of(position: np.ndarray, normal: np.ndarray) -> Cloud:
    grey = np.full((4, position.shape[1]), 255.0)
    return Cloud(*(np.asarray(one, np.float32) for one in (position, normal, grey)))


def measured(cloud: Cloud, azimuth: float) -> tuple[np.ndarray, ...]:
    """Distance right and up of the middle in half sides, the normals' x and y, depth, and where the view is solid."""
    image, geometry = view(cloud, azimuth, 0, 64)
    x, y, depth = np.asarray(geometry, np.float64).transpose(2, 0, 1)
    at = (np.arange(64) + 0.5 - 32) / 31  # the frame has a margin of a pixel
    solid = np.asarray(image.getchannel("A")) == 255
    return *np.meshgrid(at, -at), (x - 128) / 127, (y - 128) / 127, depth / 255, solid


def test_geometry_of_a_sphere() -> None:
    turn = np.arange(90_000) * np.pi * (3 - np.sqrt(5))  # a Fibonacci lattice
    up = np.linspace(-1, 1, len(turn))
    normal = np.stack([np.cos(turn) * np.sqrt(1 - up**2), up, np.sin(turn) * np.sqrt(1 - up**2)])
    across, high, x, y, depth, solid = measured(cloud_of(7 * normal, normal), 30)
    inside = solid & (across**2 + high**2 < 0.9)
    assert inside.sum() > 2000
    assert np.abs(x - across)[inside].max() < 0.05 and np.abs(y - high)[inside].max() < 0.05
    behind = (1 - np.sqrt(np.clip(1 - across**2 - high**2, 0, 1))) / 2  # in diameters
    assert np.abs(depth - 1 / (1 + behind))[inside].max() < 0.02
    assert (depth[~solid & (across**2 + high**2 > 1.1)] == 0).all()


@pytest.mark.parametrize("side", [1, -1])  # both sides of a surface face the viewer
def test_geometry_of_a_plane(side: int) -> None:
    spot = np.mgrid[-1:1:300j, -1:1:300j].reshape(2, -1)
    normal = np.tile([[0.0], [0.0], [side]], spot.shape[1])
    across, _, x, y, depth, solid = measured(cloud_of(np.stack([*spot, 0 * spot[0]]), normal), 40)
    cos, sin = np.cos(np.radians(40)), np.sin(np.radians(40))
    assert solid.mean() == pytest.approx(cos, abs=0.06)
    assert np.abs(x[solid] + sin).max() < 0.01 and np.abs(y[solid]).max() < 0.01  # seen from the right, it faces left
    behind = (1 - across / cos) * sin / 2  # in heights; the right edge is nearest
    assert np.abs(depth - 1 / (1 + behind))[solid].max() < 0.02


def test_glass_has_geometry(box: Model) -> None:
    cloud = sample(box, points=40_000)
    solid = np.asarray(view(cloud, 20, 20, 64).geometry)
    cloud.colour[3] = 128
    assert np.array_equal(np.asarray(view(cloud, 20, 20, 64).geometry), solid)


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
    assert all(path.is_file() and geometry_file(path).is_file() for _, path in first)


def test_model_without_surface_is_refused(box: Model, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.sh3f", "w") as files:
        files.writestr("toys/box/box.obj", "v 0 0 0\n")
    with pytest.raises((DataError, ValueError)):
        sample(replace(box, archive=tmp_path / "empty.sh3f"))
