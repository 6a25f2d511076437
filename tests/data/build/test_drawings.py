"""The benchmark of drawings: its list, its assets, and its plain backgrounds."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from blip_diffusion.data.benchmarks.dreambench import ASSETS
from blip_diffusion.data.benchmarks.registry import load_benchmark
from blip_diffusion.data.build.drawings import BACKGROUNDS, Drawing, read_list, write_drawings
from blip_diffusion.errors import DataError

DRAWINGS = [Drawing("ball", "ball", "ball.png"), Drawing("owl", "owl", "owl.png"), Drawing("mug", "mug", "mug.png")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked package of three small drawings, each with a dark spot inside."""
    root = tmp_path_factory.mktemp("package")
    folder = root / "usr/share/openclipart/png"
    folder.mkdir(parents=True)
    for number, drawing in enumerate(DRAWINGS):
        image = Image.new("RGBA", (200, 160))
        pen = ImageDraw.Draw(image)
        pen.ellipse((20, 10, 90 + 40 * number, 150), fill=(200, 40, 40, 255))
        pen.ellipse((40, 40 + 20 * number, 70, 70 + 20 * number), fill=(20, 20, 20, 255))
        image.save(folder / drawing.file)
    return root


def test_drawings_are_listed_once() -> None:
    drawings = read_list()
    assert len(drawings) == 24
    assert len({drawing.name for drawing in drawings}) == len({drawing.file for drawing in drawings}) == 24


def test_drawings_benchmark_is_next_to_the_dataset(package: Path, tmp_path: Path) -> None:
    made = write_drawings(package, DRAWINGS, tmp_path / "drawings")
    bench, world = load_benchmark("drawings", tmp_path / "world.zip")
    assert bench.digest == made.digest and (tmp_path / "drawings" / ASSETS).is_file()
    assert [subject.name for subject in bench.subjects] == [drawing.name for drawing in DRAWINGS]
    assert len(bench.prompt_ids) == len(BACKGROUNDS) and world is not None and len(world.cutouts) == len(DRAWINGS)
    assert not list(tmp_path.glob(".*"))  # nothing temporary is left


def test_reference_is_cropped_to_the_drawing(package: Path, tmp_path: Path) -> None:
    bench = write_drawings(package, DRAWINGS, tmp_path / "drawings")
    reference = Image.open(bench.subjects[0].images[0]).convert("RGB")
    red = [x for x in range(reference.width) if _is_red(reference.getpixel((x, reference.height // 2)))]
    assert len(bench.subjects[0].images) == 1 and red


def test_missing_drawings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--benchmark drawings"):
        load_benchmark("drawings", tmp_path / "world.zip")


def _is_red(pixel: object) -> bool:
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    return bool(red > 120 and green < 90 and blue < 90)
