"""Benchmarks by name: their folders, and the assets that they were made of."""

from pathlib import Path

from blip_diffusion.data.benchmarks.dreambench import ASSETS, Bench, read_bench, read_dreambench
from blip_diffusion.data.benchmarks.minibench import fingerprint, unknown_to
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import DataError

MINI, DRAWINGS, DREAMBENCH = "mini", "drawings", "dreambench"
"""Benchmarks with a name. The drawings are in a folder of that name."""


def load_benchmark(name: str, dataset: Path) -> tuple[Bench, AssetLibrary | None]:
    """Load a full benchmark, and the assets that it was made of, if any.

    Args:
        name: `mini`, `drawings`, `dreambench`, or a folder in DreamBench's layout.
        dataset: The training data: MiniBench and the drawings are next to it.

    Raises:
        DataError: If there is no such benchmark, or it was made of other assets.
    """
    if name == DREAMBENCH:
        return read_dreambench(Path("dreambench")), None
    folder = _folder(name, dataset)
    bench = read_bench(folder)
    if not bench.world:
        return bench, None
    included = folder / ASSETS  # if it is not made of the training data
    world = AssetLibrary.load(included if included.is_file() else dataset)
    check_made_of(bench, world, folder)
    return bench, world


def _folder(name: str, dataset: Path) -> Path:
    if name == MINI:
        return minibench_folder(dataset)
    folder = dataset.parent / DRAWINGS if name == DRAWINGS else Path(name)
    if folder.is_dir():
        return folder
    if name == DRAWINGS:
        make = f"`blip-diffusion data build --benchmark drawings --out {folder.parent}`"
        raise DataError(f"There are no drawings at {folder}: make them with {make}.")
    raise DataError(f"There is no benchmark at {folder}: use mini, drawings, dreambench, or a folder of its layout.")


def minibench_folder(dataset: Path) -> Path:
    """Return the folder of MiniBench, next to the file of its assets. Raises `DataError` if it isn't there."""
    folder = dataset.parent / "bench"
    if not folder.is_dir():
        raise DataError(
            f"There is no MiniBench at {folder}: make it with `blip-diffusion data build --benchmark --out "
            f"{dataset.parent}`."
        )
    return folder


def check_made_of(bench: Bench, world: AssetLibrary, folder: Path) -> None:
    """Raise `DataError` if a benchmark was made of other assets, or has prompts that these can't show."""
    if fingerprint(world) != bench.world:
        raise DataError(
            f"{folder} was made of another dataset than the given one: make it again with `blip-diffusion data build "
            "--benchmark`, or name its --dataset."
        )
    if unknown := unknown_to(world, bench):
        raise DataError(
            f"{folder} needs {unknown}, which its dataset lacks: make it again with `data build --benchmark`."
        )
