"""Views of textured 3D models without a GPU or OpenGL: points on the surface, a z-buffer and one lamp.

The models are the OBJ files of Sweet Home 3D furniture catalogues (`.sh3f`, a zip with a properties file). One model is
a subject; its views from several sides are what a training pair of "same thing, other view" is made from. Beside its
image, each view has the depth and the normals of its surface.
"""

import re
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip_diffusion.data.build.sources import unzip
from blip_diffusion.errors import DataError
from blip_diffusion.fileio import atomic_dir

Floats = NDArray[np.float32]

Views = list[tuple[int, Path]]
"""The azimuth in degrees and the PNG file of each view of a model; `geometry_file` is the file beside it."""

POINTS = 260_000  # a 256-pixel view has few holes if every point covers 2 x 2 pixels
TEXTURE = 512  # longest side of a texture; finer ones alias in a view of 128 pixels
VERSION = 3  # part of the cache's name; increase it when images change
BIAS = 0.008  # share of the model's depth: of coinciding surfaces, the one that faces the viewer is visible
GAP = 2600  # 4 % of 65535 levels of depth: usually more than the slope of a surface over two pixels
LAMP = np.array([-0.45, 0.75, 0.6], np.float32) / np.float32(1.0607)


@dataclass(frozen=True)
class Model:
    """One entry of a furniture catalogue."""

    archive: Path
    key: str  # unique: "blendswap-cc-0/teapot/teapot", or with ".2" for entry 2 if an earlier one has the same OBJ file
    name: str
    group: str  # the catalogue's own category: "Kitchen"
    creator: str
    member: str  # the OBJ file inside the archive
    size: tuple[float, float, float]  # width (x), height (y), depth (z) in centimetres
    rotation: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)  # row-major, applied before scaling; makes y point up
    wall: bool = False  # hangs on a wall: only its front is rendered


@dataclass(frozen=True)
class Cloud:
    """Points on a model's surface, y up, front towards +z."""

    position: Floats  # (3, N)
    normal: Floats  # (3, N), unit or zero
    colour: Floats  # (4, N) in 0..255, straight alpha


class View(NamedTuple):
    """A model from one side."""

    image: Image.Image  # RGBA
    geometry: Image.Image  # RGB, as `_geometry` encodes it; black beside the model


def catalogue(archive: Path) -> list[Model]:
    """Read the models of one `.sh3f` file, in order. Raises `DataError` for another file."""
    try:
        with zipfile.ZipFile(archive) as files:
            text = files.read("PluginFurnitureCatalog.properties").decode("latin1")
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{archive.name} is not a furniture catalogue ({error}): fetch it again.") from error
    entries: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\s*$", text, re.MULTILINE):
        entries.setdefault(number, {})[key] = value.encode("latin1").decode("unicode_escape")
    models: dict[str, Model] = {}
    for number, entry in entries.items():
        if "model" in entry:
            model = _model(archive, entry)
            key = f"{model.key}.{number}" if model.key in models else model.key
            models[key] = replace(model, key=key)
    return list(models.values())


def _model(archive: Path, entry: dict[str, str]) -> Model:
    member = entry["model"].lstrip("/")
    rotation = tuple(float(x) for x in entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split())
    size = (float(entry["width"]), float(entry["height"]), float(entry["depth"]))
    wall = float(entry.get("elevation", 0)) > 0 or entry["category"] == "Doors and windows"
    return Model(archive, member.removesuffix(".obj"), entry["name"], entry["category"], entry["creator"], member, size,
                 rotation, wall)  # fmt: skip


def sample(model: Model, points: int = POINTS) -> Cloud:
    """Sample points on a model's surface, evenly by area and deterministically."""
    import trimesh

    with tempfile.TemporaryDirectory() as folder:
        unzip(model.archive, Path(folder), prefix=model.member.rsplit("/", 1)[0] + "/")
        scene = trimesh.load(Path(folder) / model.member, process=False)
        meshes = scene.dump() if isinstance(scene, trimesh.Scene) else [scene]
        meshes = [mesh for mesh in meshes if len(getattr(mesh, "faces", ()))]
    if not meshes:
        raise DataError(f"{model.key} has no surface.")
    transform = _upright(np.concatenate([mesh.vertices for mesh in meshes]), model)
    corners = [np.asarray(mesh.vertices @ transform.T, np.float32)[mesh.faces] for mesh in meshes]
    areas = [np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1) for c in corners]
    total = sum(float(area.sum()) for area in areas)
    rng = np.random.default_rng(zlib.crc32(model.key.encode()))
    parts = [
        _sample_mesh(mesh, corner, area, transform, max(64, round(points * float(area.sum()) / total)), rng)
        for mesh, corner, area in zip(meshes, corners, areas, strict=True)
        if float(area.sum()) > 0
    ]
    position, normal, colour = (np.ascontiguousarray(np.concatenate(part).T) for part in zip(*parts, strict=True))
    return Cloud(position, normal, colour)


def _upright(vertices: NDArray[Any], model: Model) -> Floats:
    """Return the 3 x 3 matrix that turns a model upright and scales it to the catalogue's size."""
    rotation = np.array(model.rotation).reshape(3, 3)
    extent = np.ptp(vertices @ rotation.T, axis=0)
    scale = np.where(extent > 1e-6, np.array(model.size) / np.maximum(extent, 1e-6), 1)
    return np.asarray(np.diag(scale) @ rotation, np.float32)


def _sample_mesh(
    mesh: Any, corners: Floats, area: Floats, transform: Floats, points: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    edges = np.cumsum(area, dtype=np.float64)
    face = np.searchsorted(edges, (np.arange(points) + rng.random(points)) / points * edges[-1]).clip(max=len(area) - 1)
    steps = np.arange(points)[None] * np.array([[0.7548776662466927], [0.5698402909980532]])
    u, v = ((steps + rng.random((2, 1))) % 1).astype(
        np.float32
    )  # Roberts' R2 sequence is more even than random numbers
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    weight = np.stack([1 - u - v, u, v], axis=1)[:, :, None]
    position = (corners[face] * weight).sum(1)
    if "vertex_normals" in mesh._cache:  # the file's normals, smooth on curved surfaces
        smooth = np.asarray(mesh.vertex_normals @ np.linalg.inv(transform), np.float32)
        normal = (smooth[mesh.faces[face]] * weight).sum(1)
    else:
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[face]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return position, normal, _colours(mesh, face, weight)


def _colours(mesh: Any, face: NDArray[np.int64], weight: Floats) -> Floats:
    material, uv = getattr(mesh.visual, "material", None), getattr(mesh.visual, "uv", None)
    diffuse = np.asarray(getattr(material, "diffuse", (180, 180, 180, 255)), np.float32)
    opacity = float(np.ravel((getattr(material, "kwargs", None) or {}).get("d", 1.0))[0])
    texture = getattr(material, "image", None)
    if texture is None or uv is None or len(uv) != len(mesh.vertices):
        colour = np.tile(diffuse[:4], (len(face), 1)).astype(np.float32)
        colour[:, 3] = 255
    else:
        texture.thumbnail((TEXTURE, TEXTURE), Image.Resampling.BOX)
        pixels = np.asarray(texture.convert("RGBA"), np.float32)
        at = (np.asarray(uv, np.float32)[mesh.faces[face]] * weight).sum(1) % 1
        rows = ((1 - at[:, 1]) * (pixels.shape[0] - 1)).astype(np.int64)
        colour = pixels[rows, (at[:, 0] * (pixels.shape[1] - 1)).astype(np.int64)]
    colour[:, 3] *= opacity
    return colour


def view(cloud: Cloud, azimuth: float, elevation: float, size: int = 128) -> View:
    """Render a view that fills `size` pixels, from `azimuth` degrees right of the front and `elevation` above."""
    a, e = np.radians(azimuth), np.radians(elevation)
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    rotation = np.asarray(tilt @ turn, np.float32)
    frame = 2 * size
    pixel, level = _project(cloud, rotation, frame)
    solid = cloud.colour[3] >= 250
    owner = _splat(pixel, level, np.flatnonzero(solid), frame)
    image, nearest = _shade(cloud, owner, rotation), owner
    glass = np.flatnonzero(~solid & (cloud.colour[3] >= 12))
    if len(glass):
        pane = _splat(pixel, level, glass, frame)
        hidden = (owner >= 0) & (level[pane] <= level[owner])
        pane = np.where(hidden, -1, pane)
        image, nearest = _over(_shade(cloud, pane, rotation), image), np.where(pane >= 0, pane, owner)
    return View(_shrink(_despeckle(image), size), _geometry(cloud, nearest, rotation, size))


def _turned(points: Floats, rotation: Floats) -> Floats:
    """Return `rotation @ points` without the threads of a matrix library, because the pool's processes are parallel."""
    return np.einsum("ji,in->jn", rotation, points)


def _project(cloud: Cloud, rotation: Floats, frame: int) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Return every point's pixel, as an index into the flat frame, and its depth level (higher is nearer)."""
    x, y, z = _turned(cloud.position, rotation)
    left, low, right, high = x.min(), y.min(), x.max(), y.max()
    scale = (frame - 4) / max(right - left, high - low, 1e-6)
    columns = ((x - (left + right) / 2) * scale + frame / 2).astype(np.int32)
    rows = ((((low + high) / 2 - y) * scale) + frame / 2).astype(np.int32)
    facing = _turned(cloud.normal, rotation[2:])[0] >= 0
    toward = (z - z.min()) / max(np.ptp(z), 1e-6) + facing * np.float32(BIAS)
    return rows * frame + columns, (toward * (65534 / (1 + BIAS))).astype(np.uint16)


def _splat(
    pixel: NDArray[np.int32], level: NDArray[np.uint16], use: NDArray[np.int64], frame: int
) -> NDArray[np.int32]:
    """Return the nearest of the used points at every pixel (frame, frame), -1 for none.

    Every point covers 2 x 2 pixels; remaining holes of one pixel are filled.
    """
    use = use[np.argsort(level[use], kind="stable")]  # a radix sort: uint16
    owner = np.full(frame * frame, -1, np.int32)
    target = pixel[use]
    for step in (frame + 1, frame, 1, 0):
        owner[target + step] = use
    square = owner.reshape(frame, frame)
    return _fill(square, np.where(square >= 0, level[square].astype(np.int32), -GAP - 1))


def _shade(cloud: Cloud, owner: NDArray[np.int32], rotation: Floats) -> Floats:
    """Return colours (H, W, 4) under a lamp above the viewer's left shoulder; both sides of a surface are lit."""
    visible = owner >= 0
    index = owner[visible]
    normal = _facing_normals(cloud, index, rotation)
    light = 0.55 + 0.12 * normal[1] + 0.48 * np.maximum(_turned(normal, LAMP[None])[0], 0)
    image = np.zeros((*owner.shape, 4), np.float32)
    image[visible, :3] = np.minimum(cloud.colour[:3, index] * light, 255).T
    image[visible, 3] = cloud.colour[3, index]
    return image


def _facing_normals(cloud: Cloud, index: NDArray[np.int32], rotation: Floats) -> Floats:
    """Return the normals (3, N) of points, x right, y up, z to the viewer; both sides of a surface face the viewer."""
    normal = _turned(cloud.normal[:, index], rotation)
    return np.where(normal[2] < 0, -normal, normal)


def _geometry(cloud: Cloud, owner: NDArray[np.int32], rotation: Floats, size: int) -> Image.Image:
    """Return normals and depth of the nearest points, glass included, as an RGB image of `size` pixels.

    Red and green are the normal's x (right) and y (up) as 128 + 127 n; z is positive. Blue is 255 / (1 + d), where d is
    the distance behind the model's nearest point in longest sides of the view: the inverse depth seen by a camera one
    side before that point.
    """
    visible = owner >= 0
    index = owner[visible]
    x, y, z = _turned(cloud.position, rotation)
    planes = np.zeros((*owner.shape, 4), np.float32)
    planes[visible, :3] = _facing_normals(cloud, index, rotation).T
    planes[visible, 3] = 1 / (1 + (z.max() - z[index]) / max(np.ptp(x), np.ptp(y), 1e-6))
    sums = planes.reshape(size, 2, size, 2, 4).sum((1, 3))
    normal = sums[..., :2] / np.maximum(np.linalg.norm(sums[..., :3], axis=2, keepdims=True), 1e-6)
    covered = visible.reshape(size, 2, size, 2).sum((1, 3))[..., None]
    depth = sums[..., 3:] / np.maximum(covered, 1)
    encoded = np.concatenate([128 + 127 * normal, 255 * depth], axis=2) * (covered > 0)
    return Image.fromarray(encoded.round().astype(np.uint8), "RGB")


def _fill(owner: NDArray[np.int32], level: NDArray[np.int32]) -> NDArray[np.int32]:
    """Fill a pixel between two neighbours that both lie clearly nearer to the camera."""
    for axis, step in ((0, 1), (1, 1), (0, 2), (1, 2)):
        before, after = np.roll(level, step, axis), np.roll(level, -step, axis)
        hole = np.minimum(before, after) > level + GAP
        owner = np.where(hole, np.roll(owner, step, axis), owner)
        level = np.where(hole, before, level)
    return owner


def _over(front: Floats, back: Floats) -> Floats:
    """Composite two straight-alpha images in 0..255."""
    a, b = front[..., 3:] / 255, back[..., 3:] / 255
    alpha = a + b * (1 - a)
    rgb = (front[..., :3] * a + back[..., :3] * b * (1 - a)) / np.maximum(alpha, 1e-6)
    return np.concatenate([rgb, alpha * 255], axis=2)


def _despeckle(image: Floats) -> Floats:
    """Replace pixels that stand out from all neighbours, an artefact of close layers."""
    rgb = np.pad(image[..., :3].astype(np.uint8), ((1, 1), (1, 1), (0, 0)), mode="edge")
    opaque = np.pad(image[..., 3] > 250, 1)
    height, width = image.shape[:2]
    windows = [(slice(y, y + height), slice(x, x + width)) for y in range(3) for x in range(3)]
    middle = _median9([rgb[window] for window in windows])
    inside = np.logical_and.reduce([opaque[window] for window in windows])
    differs = np.abs(image[..., :3] - middle).max(2) > 24
    return np.where((inside & differs)[..., None], np.concatenate([middle, image[..., 3:]], axis=2), image)


def _median9(p: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return the median of nine arrays by Paeth's network ("Median finding on a 3 x 3 grid", Graphics Gems, 1990)."""
    network = "12 45 78 01 34 67 12 45 78 03 58 47 36 14 25 47 42 64 42"
    for i, j in (map(int, pair) for pair in network.split()):
        p[i], p[j] = np.minimum(p[i], p[j]), np.maximum(p[i], p[j])
    return p[4]


def _shrink(image: Floats, size: int) -> Image.Image:
    """Apply a 2 x 2 box filter weighted by alpha, so that edges keep their colour."""
    blocks = image.reshape(size, 2, size, 2, 4)
    alpha = blocks[..., 3:]
    weight = alpha.sum((1, 3))
    rgb = (blocks[..., :3] * alpha).sum((1, 3)) / np.maximum(weight, 1e-6)
    return Image.fromarray(np.concatenate([rgb, weight / 4], axis=2).round().astype(np.uint8), "RGBA")


def angles(model: Model, views: int) -> list[tuple[int, int]]:
    """Return integer azimuths and elevations in degrees, all around, or in front of wall objects."""
    rng = np.random.default_rng(zlib.crc32(model.key.encode()))
    elevation = rng.integers(14, 27, views)
    if model.wall:
        azimuth = np.linspace(-65, 65, views) + rng.integers(-5, 6, views)
    else:
        azimuth = 25 + np.arange(views) * 360 / views + rng.integers(-12, 13, views)
    return [(round(float(a)) % 360, int(e)) for a, e in zip(azimuth, elevation, strict=True)]


def render(model: Model, folder: Path, views: int) -> Views:
    """Render all views that `folder` lacks; return azimuth and PNG file of each."""
    target = folder / f"{model.key}-{views}-v{VERSION}"
    files = [(azimuth, target / f"{azimuth:03d}.png") for azimuth, _ in angles(model, views)]
    if not target.is_dir():
        cloud = sample(model)
        with atomic_dir(target) as partial:
            for (azimuth, path), (_, elevation) in zip(files, angles(model, views), strict=True):
                image, geometry = view(cloud, azimuth, elevation)
                image.save(partial / path.name)
                geometry.save(geometry_file(partial / path.name))
    return files


def geometry_file(image: Path) -> Path:
    """Return the file of a view's geometry, beside that of its image."""
    return image.with_name(f"{image.stem}-geometry.png")
