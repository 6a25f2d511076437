"""The photographs and drawings of scenes in the sources, chosen by hand, with their phrases and horizons."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from blip_diffusion.data.build.cutouts import LARGEST, icon, package
from blip_diffusion.data.synthetic.assets import SCENE_HEIGHT, SCENE_WIDTH, Scene
from blip_diffusion.images import open_lazily

TABLES = tomllib.loads((Path(__file__).parent / "tables" / "scenes.toml").read_text(encoding="utf-8"))
PHRASES: dict[str, tuple[str, ...]] = {word: tuple(phrases) for word, phrases in TABLES["phrases"].items()}
PHOTOGRAPHS: list[dict[str, Any]] = TABLES["photographs"]
EMOJI: list[dict[str, Any]] = TABLES["emoji"]
_FOLDERS = {
    "scratch": "usr/share/scratch/Media/Backgrounds",
    "tuxpaint-data": "usr/share/tuxpaint/templates",
    "plasma-workspace-wallpapers": "usr/share/wallpapers",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
}

VENDORS = ("fluent-emoji-flat", "noto", "twemoji", "emojione")


def scenes(source: str, folder: Path, licence: str) -> Iterator[tuple[Scene, Image.Image]]:
    """Yield the chosen scenes of one source."""
    if source in VENDORS:
        yield from _views(source, folder, licence)
    for row in PHOTOGRAPHS:
        if row["source"] == source and (image := _opened(_file(folder / _FOLDERS[source] / row["file"]))):
            yield _scene(row, f"{source} {row['file']}", licence, row.get("split", "train")), image


def _scene(row: Mapping[str, Any], source: str, licence: str, split: str) -> Scene:
    return Scene(PHRASES[row["word"]], row["word"], source, licence, row["horizon"], split)


def _file(path: Path) -> Path:
    """Return the file, or the image of a wallpaper's folder whose width is nearest to 1280 pixels."""
    if not path.is_dir():
        return path
    files = sorted((path / "contents/images").glob("*x*.*"))
    return min(files, key=lambda file: abs(int(file.stem.split("x")[0]) - 1280)) if files else path


def _opened(path: Path) -> Image.Image | None:
    try:
        with open_lazily(path) as image:
            if image.width * image.height > LARGEST:
                return None
            image.draft("RGB", (2 * SCENE_WIDTH, 2 * SCENE_HEIGHT))
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError):
        return None


def _views(vendor: str, folder: Path, licence: str) -> Iterator[tuple[Scene, Image.Image]]:
    icons = package(folder, "icons.json")
    for row in EMOJI:
        image = icon(icons, row["slug"], 3 * SCENE_WIDTH // 2)
        if image and (tile := _tile(image)):
            split = "heldout" if vendor in row.get("heldout", ()) else "train"
            yield _scene(row, f"{vendor} {row['slug']}", licence, split), tile


def _tile(image: Image.Image) -> Image.Image | None:
    """Return the middle of a drawing without its rounded corners; None unless it is opaque."""
    left, top, right, bottom = image.getbbox() or (0, 0, 1, 1)
    width, height = right - left, bottom - top
    inset = 0.05 * width
    high = min(height - 2 * inset, (width - 2 * inset) * SCENE_HEIGHT / SCENE_WIDTH)
    middle = (top + bottom) / 2 + 0.04 * height  # a little lower than the middle, to show more ground
    cut = image.crop((round(left + inset), round(middle - high / 2), round(right - inset), round(middle + high / 2)))
    low = cut.getchannel("A").histogram()
    if sum(low[250:]) < 0.995 * cut.width * cut.height:
        return None
    return cut.convert("RGB")
