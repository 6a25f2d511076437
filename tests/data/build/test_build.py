"""Building the training set: split by subject, near-duplicates, size limit, reproducible bytes."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from blip_diffusion.data.benchmarks.minibench import SUBJECTS
from blip_diffusion.data.build import build as module
from blip_diffusion.data.build.build import build, distinct, fit, split
from blip_diffusion.data.build.sources import chosen
from blip_diffusion.data.synthetic.assets import AssetLibrary, CutOut, CutOutImage
from blip_diffusion.errors import DataError

SHAPES = {
    "owl": '<circle cx="8" cy="8" r="6" fill="{colour}"/>',
    "teapot": '<rect x="2" y="4" width="11" height="8" rx="3" fill="{colour}"/>',
    "guitar": '<path d="M3 13 L8 2 L13 13 Z" fill="{colour}"/>',
    "desert": '<rect width="16" height="16" rx="1" fill="{colour}"/>',
}


def package(cache: Path, source: str, colour: str) -> None:
    """An unpacked emoji package, with the marker of a complete download."""
    folder = cache / "unpacked" / source
    (folder / "package").mkdir(parents=True)
    icons = {slug: {"body": shape.format(colour=colour)} for slug, shape in SHAPES.items()}
    files = {
        "icons.json": {"width": 16, "height": 16, "icons": icons},
        "metadata.json": {"categories": {"Animals & Nature": ["owl"], "Objects": ["teapot", "guitar", "desert"]}},
        "chars.json": {},
    }
    for name, content in files.items():
        (folder / "package" / name).write_text(json.dumps(content))
    (folder / ".sha256").write_text(chosen([source])[0].sha256)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    package(tmp_path / "cache", "fluent-emoji-flat", "#c33")
    package(tmp_path / "cache", "noto", "#36c")
    return tmp_path


def row(identity: str, category: str = "dog", view: str = "") -> CutOut:
    return CutOut(identity, category, category, "emoji", "test x", "MIT", view)


def image(colour: str, corner: int = 0) -> Image.Image:
    canvas = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(canvas).rectangle((corner, corner, 63, 63), colour)
    return canvas


def test_world_is_built(out: Path) -> None:
    messages: list[str] = []
    path = build(out, sources=["fluent-emoji-flat", "noto"], progress=messages.append)
    world = AssetLibrary.load(path)
    assert path == out / "world.zip"
    assert sorted(row.identity for row in world.cutouts) == [
        f"{vendor}:{slug}" for vendor in ("fluent", "noto") for slug in ("guitar", "owl", "teapot")
    ]
    assert [scene.source for scene in world.scenes] == ["fluent-emoji-flat desert", "noto desert"]
    assert (
        {row.identity for row in world.cutouts if row.split == "heldout"}
        == {"noto:owl", "noto:guitar"}
        <= set(SUBJECTS)
    )
    assert any("6 cut-outs of 6 subjects, 2 scenes" in line for line in messages)
    assert "noto: 3 cut-outs, 3 subjects (2 held out), 3 categories; 3 Apache-2.0" in messages[-1].splitlines()
    text = zipfile.ZipFile(path).read("LICENCES.md").decode()
    assert "## noto 1.2.9" in text and "Apache-2.0" in text and "Google" in text and "twemoji" not in text


def test_the_same_sources_give_the_same_bytes(out: Path) -> None:
    once = build(out, sources=["fluent-emoji-flat", "noto"], progress=print).read_bytes()
    (out / "world.zip").unlink()
    assert build(out, sources=["noto", "fluent-emoji-flat"], progress=print).read_bytes() == once


def test_emoji_sources_need_the_package_of_names(out: Path) -> None:
    with pytest.raises(DataError, match="noto takes its names from fluent-emoji-flat"):
        build(out, sources=["noto"])


def test_missing_packages_are_reported_before_downloads(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip_diffusion.data.build.sources.find_spec", lambda name: None)
    monkeypatch.setattr(module, "fetch", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(DataError, match=r"needs resvg-py, which isn't installed: pip install 'blip-diffusion\[data\]'"):
        build(out, sources=["fluent-emoji-flat", "noto"])
    with pytest.raises(DataError, match="needs trimesh and scipy, which"):
        build(out, sources=["sweethome3d-furniture"])


def test_unknown_source_is_refused(out: Path) -> None:
    with pytest.raises(DataError, match="no source named nato"):
        build(out, sources=["nato"])


def test_image_quality_is_reduced_to_fit_the_size_limit(tmp_path: Path) -> None:
    noise = Image.effect_noise((128, 128), 90).convert("RGBA")
    noise.putalpha(255)
    images = [CutOutImage(row("a"), noise)]
    messages: list[str] = []
    fit(tmp_path / "w.zip", images, [], "", 40, messages.append)
    best = (tmp_path / "w.zip").stat().st_size
    fit(tmp_path / "w.zip", images, [], "", (best - 1) / 2**20, messages.append)
    assert (tmp_path / "w.zip").stat().st_size < best and len(messages) == 3
    before = (tmp_path / "w.zip").read_bytes()
    with pytest.raises(DataError, match="build with fewer sources or views"):
        fit(tmp_path / "w.zip", images, [], "", 1e-6, messages.append)
    assert (tmp_path / "w.zip").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["w.zip"]


def test_subject_is_in_one_split_only() -> None:
    images = [
        CutOutImage(row(f"s{i}", f"c{i % 7}", view), image("red"))
        for i in range(900)
        for view in ("front", "back", "side")
    ]
    marked = split(images)
    sides: dict[str, set[str]] = {}
    for one in marked:
        sides.setdefault(one.row.identity, set()).add(one.row.split)
    assert all(len(side) == 1 for side in sides.values())
    held = sum(side == {"heldout"} for side in sides.values())
    assert 9 <= held <= 54  # 3 % of 900, give or take four standard deviations
    assert [one.row.split for one in split(images)] == [one.row.split for one in marked]


def test_last_two_subjects_of_a_category_are_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_OUT", 1.0)
    marked = split([CutOutImage(row(f"s{i}", "dog" if i < 5 else "cat"), image("red")) for i in range(7)])
    trained = [one.row.category for one in marked if one.row.split == "train"]
    assert sorted(trained) == ["cat", "cat", "dog", "dog"]


def test_benchmark_subjects_are_always_held_out() -> None:
    assert [one.row.split for one in split([CutOutImage(row(SUBJECTS[0]), image("red"))])] == ["heldout"]


def test_duplicate_subject_is_removed_with_all_views() -> None:
    images = [
        CutOutImage(row("first", view="a"), image("red")),
        CutOutImage(row("first", view="b"), image("red")),  # the same subject may look the same twice
        CutOutImage(row("copy", view="a"), image("#fd0202")),
        CutOutImage(row("copy", view="b"), image("blue", 20)),
        CutOutImage(row("other", "cat"), image("red")),  # another category
        CutOutImage(row("different"), image("green", 30)),
    ]
    assert [one.row.identity for one in distinct(images)] == ["first", "first", "other", "different"]
