"""The packed asset library: named cut-outs of subjects and named scenes in one zip file.

cutouts.jsonl           one `CutOut` per line     cutouts/00000.webp  RGBA, trimmed, longest side <= 128
scenes.jsonl            one `Scene` per line       scenes/000.webp     RGB, 160 pixels high
                        geometry/000.webp          depth and normals of 64 cut-outs of 3D models, in their order
LICENCES.md             every source with its licence and authors
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from blip_diffusion.control_characters import first_control
from blip_diffusion.data.synthetic.geometry import FLAT, PER_SHEET, SIDE, Planes, planes_in, planes_of, sheet_of
from blip_diffusion.errors import DataError, reason
from blip_diffusion.fileio import atomic_file, path_exists
from blip_diffusion.images import open_lazily
from blip_diffusion.strict_json import parse_json

Pixels = NDArray[np.uint8]

CUTOUT_SIZE = 128
SCENE_HEIGHT, SCENE_WIDTH = 160, 208
GEOMETRY_QUALITY = 70
"""WebP quality of depth and normals: the mean error of normals is 3.2 degrees, of 5,325 views in 4.8 MiB."""
MAX_TABLE, MAX_IMAGE = 2**25, 2**22
"""Bytes of a table and of an image."""
MAX_ROWS = 30_000
"""Rows of a table: the pixels of as many cut-outs take 2 GB of memory."""
PERMISSIVE = ("MIT", "Apache-2.0", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "PD")


@dataclass(frozen=True)
class CutOut:
    """One image of one subject, without its background."""

    identity: str  # shared by all views, poses and styles of one subject; decides the split
    category: str  # head noun in prompts: "teapot"
    name: str  # the longer name: "silver teapot"; may equal the category
    kind: str  # "3d" | "emoji" | "photo" | "drawing" | "outline"
    source: str  # package and path in it
    licence: str  # SPDX id, or "PD"
    view: str = ""  # azimuth in degrees, pose letter or style
    animate: bool = False  # people and animals: they wear hats
    split: str = "train"  # "train" | "heldout"

    def __post_init__(self) -> None:
        _check_types(self)


def is_3d(row: CutOut) -> bool:
    """Return whether a cut-out shows a 3D model; these have depth and normals."""
    return row.kind == "3d"


class CutOutImage(NamedTuple):
    """A cut-out with its pixels."""

    row: CutOut
    image: Image.Image  # RGBA, trimmed
    geometry: Image.Image | None = None  # RGB, of the same size: see `geometry.planes_of`


@dataclass(frozen=True)
class Scene:
    """One image of a scene."""

    phrases: tuple[str, ...]  # its phrases in prompts: ("on the beach", "at the beach")
    word: str  # its class for the scene metric: "beach"
    source: str
    licence: str
    horizon: float = 0.6  # fraction of the height at which the ground begins
    split: str = "train"

    def __post_init__(self) -> None:
        _check_types(self)


def _check_types(row: CutOut | Scene) -> None:
    """Raise `ValueError` for a value of another type than its field's, or an empty one where there is no default."""
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if field.type is float:
            fits = isinstance(value, int | float) and 0 <= value <= 1
        elif field.type in (str, bool):
            fits = isinstance(value, field.type)  # a class, as the names are not strings here
        else:
            fits = isinstance(value, tuple) and all(isinstance(one, str) and one for one in value)
        if any(first_control(text) for text in (value if isinstance(value, tuple) else [str(value)])):
            raise ValueError(f"{field.name} has control characters: {value!r:.60}")
        if not fits or (field.default is dataclasses.MISSING and not value):
            raise ValueError(f"{field.name} is {str(value)[:60]!r}")


@dataclass(frozen=True)
class AssetLibrary:
    """The library in memory: `pixels[i]` belongs to `cutouts[i]`, `scene_pixels[j]` to `scenes[j]`."""

    cutouts: tuple[CutOut, ...]
    pixels: Tensor  # (N, 4, 128, 128) uint8, straight alpha, centred
    scenes: tuple[Scene, ...]
    scene_pixels: Tensor  # (M, 3, 160, 208) uint8
    geometry: Tensor | None = None  # (N, 3, 64, 64) uint8: see `geometry`

    def subset(self, *, split: str | None = None, permissive: bool = False) -> "AssetLibrary":
        """Return the part of one split, and optionally only rows with a permissive licence."""

        def keeps(rows: Sequence[CutOut | Scene]) -> list[int]:
            return [
                i
                for i, row in enumerate(rows)
                if split in (None, row.split) and (not permissive or row.licence in PERMISSIVE)
            ]

        cut, scn = keeps(self.cutouts), keeps(self.scenes)
        return AssetLibrary(
            tuple(self.cutouts[i] for i in cut),
            self.pixels[cut],
            tuple(self.scenes[i] for i in scn),
            self.scene_pixels[scn],
            None if self.geometry is None else self.geometry[cut],
        )

    @staticmethod
    def load(path: str | Path, *, geometry: bool = False) -> "AssetLibrary":
        """Load a packed library.

        Args:
            path: The file.
            geometry: Whether to load depth and normals too.

        Raises:
            DataError: If the file is missing or not a library, or has no depth and normals where they are needed.
        """
        path = Path(path)
        if not path_exists(path, Path.is_file):
            raise DataError(
                f"There is no dataset at {path}: make one with `blip-diffusion data build --out {path.parent}`."
            )
        try:
            with zipfile.ZipFile(path) as archive:
                cutouts = [CutOut(**row) for row in _rows(archive, "cutouts.jsonl")]
                scenes = [_scene_of(row) for row in _rows(archive, "scenes.jsonl")]
                blobs = [_read(archive, f"cutouts/{i:05d}.webp", MAX_IMAGE) for i in range(len(cutouts))]
                scene_blobs = [_read(archive, f"scenes/{i:03d}.webp", MAX_IMAGE) for i in range(len(scenes))]
                sheet_blobs = _sheet_blobs(archive, cutouts) if geometry else []
            Image.init()  # Pillow loads plugins on first use, which is not thread-safe
            with ThreadPoolExecutor() as pool:
                pixels = _stack(list(pool.map(_cutout_pixels, blobs)), 4, CUTOUT_SIZE, CUTOUT_SIZE)
                scene_pixels = _stack(list(pool.map(_scene_pixels, scene_blobs)), 3, SCENE_HEIGHT, SCENE_WIDTH)
                sheets = list(pool.map(_sheet_planes, sheet_blobs))
        except Exception as error:  # for damaged files, zipfile, zlib and Pillow raise errors of many types
            raise DataError(f"{path} is not a packed dataset ({reason(error)}): build it again.") from error
        if geometry and not sheets:
            raise DataError(f"{path} has no depth and normals of 3D models: build it again with this version.")
        planes = _geometry_rows(cutouts, sheets) if geometry else None
        return AssetLibrary(tuple(cutouts), pixels, tuple(scenes), scene_pixels, planes)


def pack(
    path: Path,
    cutouts: Sequence[CutOutImage],
    scenes: Sequence[tuple[Scene, Image.Image]],
    licences: str,
    *,
    quality: int = 82,
) -> None:
    """Write a library of trimmed RGBA cut-outs and RGB scenes; the same rows give the same bytes."""
    with atomic_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        rows = (json.dumps(dataclasses.asdict(one.row)) for one in cutouts)
        _write(archive, "cutouts.jsonl", "\n".join(rows).encode())
        _write(archive, "scenes.jsonl", "\n".join(json.dumps(dataclasses.asdict(row)) for row, _ in scenes).encode())
        _write(archive, "LICENCES.md", licences.encode())
        for i, one in enumerate(cutouts):
            _write(archive, f"cutouts/{i:05d}.webp", _webp(_fit(one.image), quality))
        for i, (_, image) in enumerate(scenes):
            _write(archive, f"scenes/{i:03d}.webp", _webp(_cover(image), quality))
        planes = [planes_of(one.geometry, _fit(one.image).getchannel("A")) for one in cutouts if one.geometry]
        for i in range(0, len(planes), PER_SHEET):
            sheet = sheet_of(planes[i : i + PER_SHEET])
            _write(archive, f"geometry/{i // PER_SHEET:03d}.webp", _webp(sheet, GEOMETRY_QUALITY))


def _rows(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    lines = [line for line in _read(archive, name, MAX_TABLE).decode().splitlines() if line]
    if len(lines) > MAX_ROWS:
        raise ValueError(f"{name} has {len(lines)} rows, at most {MAX_ROWS} are allowed")
    return [parse_json(line) for line in lines]


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return a member of an archive. Raises `ValueError` for one that unpacks to more bytes than allowed."""
    info = archive.getinfo(name)
    if info.file_size > most:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes, at most {most} are allowed")
    return archive.read(info)


def _scene_of(row: dict[str, Any]) -> Scene:
    phrases = row["phrases"]
    return Scene(**{**row, "phrases": tuple(phrases) if isinstance(phrases, list) else phrases})


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, alpha_quality=90, method=4)
    return buffer.getvalue()


def _fit(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.thumbnail((CUTOUT_SIZE, CUTOUT_SIZE), Image.Resampling.LANCZOS)
    return image


def _cover(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    scale = max(SCENE_WIDTH / image.width, SCENE_HEIGHT / image.height)
    image = image.resize(
        (max(SCENE_WIDTH, round(image.width * scale)), max(SCENE_HEIGHT, round(image.height * scale))),
        Image.Resampling.LANCZOS,
    )
    left, top = (image.width - SCENE_WIDTH) // 2, (image.height - SCENE_HEIGHT) // 2
    return image.crop((left, top, left + SCENE_WIDTH, top + SCENE_HEIGHT))


def _cutout_pixels(blob: bytes) -> Pixels:
    image = open_lazily(io.BytesIO(blob))
    if max(image.size) > CUTOUT_SIZE:
        raise ValueError(f"a cut-out is {image.width} x {image.height}, larger than {CUTOUT_SIZE}")
    frame = Image.new("RGBA", (CUTOUT_SIZE, CUTOUT_SIZE))
    frame.paste(image.convert("RGBA"), ((CUTOUT_SIZE - image.width) // 2, (CUTOUT_SIZE - image.height) // 2))
    return np.asarray(frame).transpose(2, 0, 1)


def _scene_pixels(blob: bytes) -> Pixels:
    image = open_lazily(io.BytesIO(blob))
    if image.size != (SCENE_WIDTH, SCENE_HEIGHT):
        raise ValueError(f"a scene is {image.width} x {image.height}, not {SCENE_WIDTH} x {SCENE_HEIGHT}")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _sheet_blobs(archive: zipfile.ZipFile, cutouts: Sequence[CutOut]) -> list[bytes]:
    """Return the sheets of geometry of all cut-outs of 3D models; none for a library without geometry."""
    count = -(-sum(map(is_3d, cutouts)) // PER_SHEET)
    if not count or "geometry/000.webp" not in archive.namelist():
        return []
    return [_read(archive, f"geometry/{i:03d}.webp", MAX_IMAGE) for i in range(count)]


def _sheet_planes(blob: bytes) -> Planes:
    return planes_in(open_lazily(io.BytesIO(blob)))


def _geometry_rows(cutouts: Sequence[CutOut], sheets: Sequence[Planes]) -> Tensor:
    """Return the planes (N, 3, 64, 64) of all cut-outs; flat ones face the viewer."""
    result = torch.tensor(FLAT, dtype=torch.uint8).view(3, 1, 1).repeat(len(cutouts), 1, SIDE, SIDE)
    rows = [i for i, row in enumerate(cutouts) if is_3d(row)]
    result[rows] = torch.from_numpy(np.concatenate(sheets))[: len(rows)]
    return result


def _stack(arrays: list[Pixels], *shape: int) -> Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros((0, *shape), dtype=torch.uint8)
