"""Extract named cut-outs from source folders: RGBA images trimmed to their opaque part, each with an identity.

All views of a 3D model share an identity; so do all poses of a costume, and the shaded and flat Fluent emoji of a name.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip_diffusion.data.build import naming, render
from blip_diffusion.data.build.naming import Name
from blip_diffusion.data.build.render_pool import Pool, render_all
from blip_diffusion.data.synthetic.assets import CutOut, CutOutImage
from blip_diffusion.images import open_lazily
from blip_diffusion.strict_json import parse_json

SVG_SIZE = 160  # width in pixels of rasterised SVGs; 128 are kept
SMALLEST = 40  # least pixels of the longer side; smaller images are too coarse for training
LARGEST = 40_000_000  # most pixels of a file; larger ones may be decompression bombs

EMOJI_GROUPS = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")
CATALOGUES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0",
    "Scopia": "CC-BY-3.0",
}  # fmt: skip  (KatorLegaz: the United States version)
NO_STAMPS = ("symbols", "town/roadsigns", "town/flags", "military", "medical", "people/body_parts", "seasonal/hanukkah")
ALIVE = frozenset({"bat", "bird", "butterfly", "cat", "chick", "deer", "ghost", "rabbit", "snowman", "spider"})


def trim(image: Image.Image, *, solid: bool = True) -> Image.Image | None:
    """Crop an image to its opaque part; `None` if that is too small, nearly empty, or an opaque tile.

    `solid=False` lets a full rectangle pass: an envelope or the front of a cupboard is one.
    """
    image = image.convert("RGBA")
    pixels = np.array(image)
    alpha = pixels[..., 3]
    alpha[alpha < 12], alpha[alpha > 243] = 0, 255
    left, top, right, bottom = visible_box(image)
    box = pixels[top:bottom, left:right]
    if not box.size:
        return None
    cover = float((box[..., 3] > 128).mean())
    if max(box.shape[:2]) < SMALLEST or cover < 0.03 or (solid and cover > 0.97):
        return None
    return Image.fromarray(box, "RGBA")


def visible_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the part of an RGBA image that `trim` keeps; zeros for none."""
    return image.getchannel("A").point(lambda value: 255 * (value > 20)).getbbox() or (0, 0, 0, 0)


def opened(path: Path) -> Image.Image | None:
    """Open an image file; None if it is unreadable, a bomb, or has no transparency."""
    try:
        with open_lazily(path) as image:
            if image.width * image.height > LARGEST:
                return None
            if image.mode not in ("RGBA", "LA") and "transparency" not in image.info:
                return None
            return image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def rasterised(svg: str, width: int = SVG_SIZE) -> Image.Image | None:
    """Rasterise an SVG at a width; None if that fails."""
    import resvg_py

    try:
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True))
        return open_lazily(io.BytesIO(data)).convert("RGBA")
    except (ValueError, OSError):
        return None


def icon(icons: dict[str, Any], slug: str, width: int = SVG_SIZE) -> Image.Image | None:
    """Rasterise an icon of an iconify package; `None` if it is missing."""
    entry = icons["icons"].get(slug)
    if entry is None:
        return None
    wide, high = (entry.get(key, icons.get(key, 16)) for key in ("width", "height"))
    return rasterised(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {wide} {high}">{entry["body"]}</svg>',
        width,
    )


def package(folder: Path, file: str) -> dict[str, Any]:
    """Read a JSON file of an unpacked npm package."""
    content: dict[str, Any] = parse_json((folder / "package" / file).read_text("utf8"))
    return content


def emoji_names(flat: Path) -> dict[str, tuple[Name, bool]]:
    """Return the name of each slug in the object groups, and whether it is an animal.

    Groups are those of Fluent's flat package for all vendors, because other vendors group the same emoji differently.
    """
    groups = package(flat, "metadata.json")["categories"]
    names = {}
    for group in EMOJI_GROUPS:
        for slug in groups.get(group, ()):
            if name := naming.emoji(slug):
                names[slug] = (name, group == EMOJI_GROUPS[0] and not {name.name, name.category} & naming.PLANTS)
    return names


def emoji(vendor: str, folder: Path, flat: Path, licence: str) -> Iterator[CutOutImage]:
    """Yield the drawings of one iconify vendor; Fluent's share their identity with `fluent_3d`."""
    icons = package(folder, "icons.json")
    kind = "outline" if vendor == "openmoji" else "emoji"
    family, view = ("fluent", "flat") if vendor == "fluent-emoji-flat" else (vendor, "")
    for slug, (name, animate) in sorted(emoji_names(flat).items()):
        drawing = icon(icons, slug)
        if drawing and (image := trim(drawing, solid=False)):
            row = CutOut(f"{family}:{slug}", *name, kind, f"{vendor} {slug}", licence, view, animate)
            yield CutOutImage(row, image)


def fluent_3d(folder: Path, flat: Path, licence: str) -> Iterator[CutOutImage]:
    """Yield the shaded emoji, named by the flat package, which has the code points."""
    names = emoji_names(flat)
    slugs = package(flat, "chars.json")
    for path in sorted((folder / "package" / "assets").glob("*.webp")):
        code = path.stem.replace("-fe0f", "")
        slug = slugs.get(code)
        if slug not in names:
            continue
        drawing, (name, animate) = opened(path), names[slug]
        if drawing and (image := trim(drawing, solid=False)):
            source = f"fluent-emoji-3d {code}"
            row = CutOut(f"fluent:{slug}", *name, "emoji", source, licence, "shaded", animate)
            yield CutOutImage(row, image)


def stamps(folder: Path, licence: str) -> Iterator[CutOutImage]:
    """Yield Tux Paint's stamps, named by their first sentence; of a stamp as SVG and PNG, the SVG."""
    root = folder / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*")):
        key = path.relative_to(root).with_suffix("").as_posix()
        text = path.with_suffix(".txt")
        if path.suffix not in (".png", ".svg") or not text.is_file() or key.endswith("_mirror"):
            continue
        if key.startswith(NO_STAMPS) or (path.suffix == ".png" and path.with_suffix(".svg").is_file()):
            continue
        name = naming.stamp(key, text.read_text("utf8", "replace").split("\n")[0])
        drawing = name and (opened(path) if path.suffix == ".png" else rasterised(path.read_text("utf8", "replace")))
        if name and drawing and (image := trim(drawing)):
            kind = "drawing" if path.suffix == ".svg" or "cartoon" in key else "photo"
            animate = key.startswith(("animals", "people")) or name.category in ALIVE
            row = CutOut(f"tux:{key}", *name, kind, f"tuxpaint-stamps {key}", licence, "", animate)
            yield CutOutImage(row, image)


def costumes(folder: Path, licence: str) -> Iterator[CutOutImage]:
    """Yield Scratch costumes; the poses of a figure share an identity."""
    root = folder / "usr/share/scratch/Media/Costumes"
    for group in ("Animals", "Fantasy", "People", "Things", "Transportation"):
        for path in sorted((root / group).glob("*")):
            named = naming.costume(path.stem) if path.suffix in (".png", ".gif") else None
            drawing = named and opened(path)
            if named and drawing and (image := trim(drawing)):
                name, subject, pose = named
                kind = "photo" if path.stem in naming.COSTUME_PHOTOS else "drawing"
                animate = group in ("Animals", "Fantasy", "People")
                identity = f"scratch:{subject}"
                row = CutOut(identity, *name, kind, f"scratch {group}/{path.name}", licence, pose, animate)
                yield CutOutImage(row, image)


def furniture_models(folder: Path) -> list[tuple[render.Model, Name, str]]:
    """Return the models of the Sweet Home 3D catalogues to use, with names and licences."""
    models = []
    for catalogue, licence in CATALOGUES.items():
        for model in render.catalogue(folder / f"usr/share/sweethome3d/furniture/{catalogue}.sh3f"):
            if name := naming.furniture(model.name, model.key.rsplit("/", 1)[-1]):
                models.append((model, name, licence))
    return models


def furniture(
    folder: Path, cache: Path, views: int, *, pool: Pool, progress: Callable[[str], None]
) -> Iterator[CutOutImage]:
    """Yield views of the furniture models, rendered unless `cache` holds them."""
    models = furniture_models(folder)
    facts = {model.key: (name, licence) for model, name, licence in models}
    only = [model for model, _, _ in models]
    for model, images in render_all(only, cache, views, pool=pool, progress=progress):
        name, licence = facts[model.key]
        for azimuth, path in images:
            whole = open_lazily(path)
            if image := trim(whole, solid=False):
                geometry = open_lazily(render.geometry_file(path)).crop(visible_box(whole))
                source = f"sweethome3d-furniture {model.member}"
                animate = model.group == "Characters"
                identity = f"sweethome:{model.key}"
                row = CutOut(identity, *name, "3d", source, licence, str(azimuth), animate)
                yield CutOutImage(row, image, geometry)
