"""The benchmark `drawings`: 24 drawings that are not in the training data, on plain backgrounds of known colour.

On a plain background the subject's mask is the difference from the background. So the metrics `shape` and `detail`
need no trained network. The benchmark has MiniBench's layout and contains its cut-outs.
"""

import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import ASSETS, Bench
from blip_diffusion.data.benchmarks.minibench import (
    BenchContents,
    bench_sampler,
    check_place,
    pair_spec_of,
    write_bench,
)
from blip_diffusion.data.benchmarks.registry import DRAWINGS
from blip_diffusion.data.build.sources import Source, fetch
from blip_diffusion.data.synthetic.assets import AssetLibrary, CutOut, CutOutImage, pack
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import DataError
from blip_diffusion.images import open_lazily

SOURCE = Source(
    "openclipart-png", "apt", "openclipart-png", "1:0.18+dfsg-19", "CC-PDDC",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "drawings that are never trained on", "the Open Clip Art Library's contributors",
)  # fmt: skip
BACKGROUNDS = ("white", "grey", "blue", "yellow")
"""Plain colours of the prompts."""
LICENCE = "Drawings of openclipart-png, in the public domain (CC-PDDC).\n"
_LIVING = frozenset({"ladybug", "fish", "dinosaur", "horse", "monkey", "owl", "lion"})


@dataclass(frozen=True)
class Drawing:
    """One drawing of the package: a folder name, the category word, and the file below `share/openclipart/png`."""

    name: str
    category: str
    file: str


def read_list() -> list[Drawing]:
    """Read the list of drawings."""
    text = (Path(__file__).parent / "tables" / "drawings.toml").read_text(encoding="utf-8")
    return [Drawing(**row) for row in tomllib.loads(text)["drawings"]]


def build_drawings(out: Path, cache: Path, *, progress: Callable[[str], None] = print) -> Bench:
    """Fetch the package and build the benchmark in `out`.

    Raises:
        DataError: If `out` is not a benchmark's folder, or the package can't be fetched or read.
    """
    check_place(out)
    return write_drawings(fetch([SOURCE], cache, progress=progress)[SOURCE.name], read_list(), out)


def write_drawings(package: Path, drawings: list[Drawing], out: Path) -> Bench:
    """Build the benchmark of the drawings in an unpacked package."""
    folder = package / "usr/share/openclipart/png"
    cutouts = [CutOutImage(_row(drawing), _cutout(folder / drawing.file)) for drawing in drawings]
    assets = out.parent / f".{out.name}-{ASSETS}"
    try:
        pack(assets, cutouts, [], LICENCE, quality=95)
        world = AssetLibrary.load(assets)
        prompts = [PromptSpec(scene=f"on a plain {colour} background") for colour in BACKGROUNDS]
        rows = {drawing.name: i for i, drawing in enumerate(drawings)}
        return write_bench(BenchContents(DRAWINGS, world, rows, prompts, prompts), _reference(world), out, assets)
    finally:
        assets.unlink(missing_ok=True)


def _row(drawing: Drawing) -> CutOut:
    return CutOut(
        f"openclipart:{drawing.name}", drawing.category, drawing.name, "drawing", f"{SOURCE.name} {drawing.file}",
        SOURCE.licence, animate=drawing.name in _LIVING, split="heldout",
    )  # fmt: skip


def _cutout(path: Path) -> Image.Image:
    """Read a drawing, trimmed to its opaque part."""
    try:
        image = open_lazily(path).convert("RGBA")
    except OSError as error:
        raise DataError(f"{path} can't be read: remove its folder in cache/unpacked, and build again.") from error
    return image.crop(image.getchannel("A").point(lambda value: 255 * (value >= 64)).getbbox())


def _reference(world: AssetLibrary) -> Callable[[int], Tensor]:
    """Return a function from a drawing to its reference image (1, 3, S, S), on a plain background."""
    sampler = bench_sampler(world)

    def reference(row: int) -> Tensor:
        rng = random.Random(f"drawing {world.cutouts[row].identity}")
        request = PromptSpec(scene=f"on a plain {BACKGROUNDS[0]} background")
        return sampler.render([pair_spec_of(sampler, row, request, rng)], rng)["reference"]

    return reference
