"""Cut-outs: trimming, rejected images, and grouping by subject."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from blip_diffusion.data.build import cutouts as module
from blip_diffusion.data.build.cutouts import costumes, emoji, fluent_3d, opened, rasterised, stamps, trim

CIRCLE = '<circle cx="8" cy="8" r="6" fill="{colour}"/>'


def disc(size: int = 100, radius: int = 40, mode: str = "RGBA") -> Image.Image:
    """A red disc in the middle of nothing."""
    image = Image.new("RGBA", (size, size))
    middle = size // 2
    ImageDraw.Draw(image).ellipse((middle - radius, middle - radius, middle + radius, middle + radius), "red")
    return image.convert(mode)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A tiny Fluent package: an animal, a thing, a place, and a smiley that no group of ours holds."""
    folder = tmp_path / "flat"
    groups = {
        "Animals & Nature": ["owl", "rose"],
        "Objects": ["teapot"],
        "Travel & Places": ["desert"],
        "Smileys & Emotion": ["grinning-face"],
    }
    write(folder / "package/metadata.json", {"categories": groups})
    slugs = [slug for group in groups.values() for slug in group]
    icons = {slug: {"body": CIRCLE.format(colour="#c21")} for slug in slugs}
    write(folder / "package/icons.json", {"width": 16, "height": 16, "icons": icons})
    write(folder / "package/chars.json", {"1f989": "owl", "1fad6": "teapot", "1f339": "rose"})
    return folder


def test_trim_crops_to_opaque_pixels() -> None:
    image = trim(disc())
    assert image is not None and image.size == (81, 81) and image.mode == "RGBA"


def test_trim_ignores_faint_specks() -> None:
    image = disc()
    image.putpixel((0, 0), (0, 0, 0, 9))
    trimmed = trim(image)
    assert trimmed is not None and trimmed.size == (81, 81)


@pytest.mark.parametrize(
    "image",
    [
        disc(radius=15),  # too small
        Image.new("RGBA", (100, 100)),  # nothing
        Image.new("RGBA", (100, 100), "red"),  # a tile, no cut-out
    ],
)
def test_trim_rejects_unusable_images(image: Image.Image) -> None:
    assert trim(image) is None


def test_thin_lines_are_rejected() -> None:
    image = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(image).line((0, 0, 99, 99), "red")
    assert trim(image) is None


def test_full_rectangle_is_accepted_on_request() -> None:
    assert trim(Image.new("RGBA", (100, 80), "red"), solid=False) is not None


def test_images_without_transparency_and_bombs_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disc().save(tmp_path / "good.png")
    disc(mode="RGB").save(tmp_path / "opaque.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    assert opened(tmp_path / "good.png") is not None
    assert opened(tmp_path / "opaque.png") is None
    assert opened(tmp_path / "broken.png") is None
    monkeypatch.setattr(module, "LARGEST", 9_999)
    assert opened(tmp_path / "good.png") is None


def test_broken_svg_is_skipped() -> None:
    assert rasterised("<svg") is None
    image = rasterised(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{CIRCLE}</svg>')
    assert image is not None and image.width == 160


def test_emoji_have_names_and_kinds(flat: Path) -> None:
    result = {one.row.category: one.row for one in emoji("noto", flat, flat, "Apache-2.0")}
    assert set(result) == {"owl", "rose", "teapot"}
    assert result["owl"].animate and not result["rose"].animate and not result["teapot"].animate
    assert result["teapot"].identity == "noto:teapot" and result["teapot"].licence == "Apache-2.0"
    assert {one.row.kind for one in emoji("openmoji", flat, flat, "x")} == {"outline"}


def test_fluent_styles_are_one_subject_but_vendors_are_separate(flat: Path, tmp_path: Path) -> None:
    assets = tmp_path / "shaded/package/assets"
    assets.mkdir(parents=True)
    disc().save(assets / "1f989.webp")
    disc().save(assets / "1fad6-fe0f.webp")
    shaded = {one.row.category: one.row for one in fluent_3d(tmp_path / "shaded", flat, "MIT")}
    plain = {one.row.category: one.row for one in emoji("fluent-emoji-flat", flat, flat, "MIT")}
    other = {one.row.category: one.row for one in emoji("noto", flat, flat, "Apache-2.0")}
    for category in ("owl", "teapot"):
        assert shaded[category].identity == plain[category].identity != other[category].identity
        assert {shaded[category].view, plain[category].view} == {"shaded", "flat"}


def test_stamps(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/tuxpaint/stamps"
    for key, caption in {
        "animals/camel": "A camel.",
        "animals/camel_mirror": "A camel.",
        "symbols/a": "The letter a.",
        "household/teapot": "A teapot.",
        "household/nameless": "",
    }.items():
        write(root / f"{key}.txt", caption)
        disc().save(root / f"{key}.png")
    write(root / "household/teapot.svg", f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{CIRCLE}</svg>')
    disc().save(root / "household/mute.png")
    result = {one.row.identity: one.row for one in stamps(tmp_path, "GPL-2.0-only")}
    assert set(result) == {"tux:animals/camel", "tux:household/teapot"}
    assert result["tux:animals/camel"].kind == "photo" and result["tux:animals/camel"].animate
    assert result["tux:household/teapot"].kind == "drawing" and not result["tux:household/teapot"].animate


def test_poses_of_a_costume_are_one_subject(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/scratch/Media/Costumes"
    for name in (
        "Animals/dog2-a.png",
        "Animals/dog2-b.png",
        "Animals/dog1-a.png",
        "Animals/cat1-a.gif",
        "Things/rock.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        disc().save(root / name)
    rows = [one.row for one in costumes(tmp_path, "CC-BY-SA-3.0")]
    assert [(row.identity, row.view) for row in rows] == [
        ("scratch:dog1", "a"),
        ("scratch:dog2", "a"),
        ("scratch:dog2", "b"),
        ("scratch:rock", ""),
    ]
    assert [row.kind for row in rows] == ["drawing", "drawing", "drawing", "photo"]
