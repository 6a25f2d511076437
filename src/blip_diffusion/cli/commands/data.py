"""`blip-diffusion data build | sheet`: build the training data and look at samples."""

import argparse
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from blip_diffusion.cli.flags import backend_flags, check_backend, check_used
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError

if TYPE_CHECKING:
    from blip_diffusion.data.benchmarks.dreambench import Bench

MAX_SAMPLES = 1000
MAX_VIEWS = 24
"""With more views their angles would be closer together than the random jitter."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the two subcommands of `data`."""
    parts = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _build_flags(parts.add_parser("build", help="download the open packages and pack them into world.zip"))
    _sheet_flags(parts.add_parser("sheet", help="write a grid of training samples with their captions"))


def _build_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_build)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for world.zip, and cache/ with downloads"
    )
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="use only these packages (default: all)")
    parser.add_argument(
        "--views", type=int, default=8, metavar="N", help="views rendered of each 3D object (default: 8)"
    )
    parser.add_argument(
        "--benchmark",
        nargs="?",
        const="mini",
        choices=("mini", "drawings"),
        help="mini (no value): also build MiniBench in DIR/bench, from an existing DIR/world.zip if there is one; "
        "drawings: only build the benchmark of held-back drawings in DIR/drawings",
    )
    parser.add_argument(
        "--size-limit", type=float, default=40, metavar="MIB", help="largest size of world.zip (default: 40)"
    )
    backend_flags(parser)


def _build(arguments: argparse.Namespace) -> None:
    path = arguments.out / "world.zip"
    _check_build(arguments, path)
    if arguments.benchmark == "drawings":
        _build_drawings(arguments.out)
        return

    from blip_diffusion.data.benchmarks.minibench import build_bench
    from blip_diffusion.data.build.build import build
    from blip_diffusion.data.build.render_pool import process_pool, ray_pool
    from blip_diffusion.data.synthetic.assets import AssetLibrary

    if not (arguments.benchmark and path.is_file()):
        pool = partial(ray_pool, actors=arguments.actors) if arguments.on == "ray" else process_pool
        path = build(arguments.out, sources=arguments.sources, views=arguments.views, pool=pool,
                     size_limit_mib=arguments.size_limit, progress=lambda line: print_text(line))  # fmt: skip
        print_text(path)
    if arguments.benchmark:
        _print_benchmark(build_bench(AssetLibrary.load(path), arguments.out / "bench"), arguments.out / "bench")


def _build_drawings(out: Path) -> None:
    from blip_diffusion.data.benchmarks.registry import DRAWINGS
    from blip_diffusion.data.build.drawings import build_drawings

    _print_benchmark(build_drawings(out / DRAWINGS, out / "cache"), out / DRAWINGS)


def _print_benchmark(bench: "Bench", folder: Path) -> None:
    print_text(f"{folder}: {len(bench.subjects)} subjects, {len(bench.prompt_ids)} prompts, {bench.digest}")


def _check_build(arguments: argparse.Namespace, world: Path) -> None:
    """Raise `InputError` before an hour of work instead of after it."""
    from blip_diffusion.data.benchmarks.minibench import check_place
    from blip_diffusion.fileio import check_writable

    check_writable(arguments.out)
    check_backend(arguments)
    if not 1 <= arguments.views <= MAX_VIEWS:
        raise InputError(f"--views is {arguments.views}: use a number from 1 to {MAX_VIEWS}.")
    if not 0 < arguments.size_limit < inf:
        raise InputError(f"--size-limit is {arguments.size_limit:g}: use a number above 0, in MiB.")
    if arguments.benchmark:
        check_place(arguments.out / ("bench" if arguments.benchmark == "mini" else arguments.benchmark))
    unused = ("sources", "views", "size_limit", "on", "actors")
    if arguments.benchmark == "drawings":
        check_used(arguments, _build_flags, unused, "with --benchmark drawings")
    elif arguments.benchmark and world.is_file():
        check_used(arguments, _build_flags, unused, f"with the existing {world}")


def _sheet_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_sheet)
    parser.add_argument(
        "--dataset", type=Path, default=Path("world/world.zip"), metavar="FILE", help="the training data"
    )
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="PNG", help="output file")
    parser.add_argument("--num-images", type=int, default=24, metavar="N", help="samples in the grid (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def _sheet(arguments: argparse.Namespace) -> None:
    from blip_diffusion.data.synthetic.assets import AssetLibrary
    from blip_diffusion.data.synthetic.pair_sampler import PairSampler, sheet
    from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
    from blip_diffusion.fileio import check_writable

    if not 1 <= arguments.num_images <= MAX_SAMPLES:
        raise InputError(f"--num-images is {arguments.num_images}: use a number from 1 to {MAX_SAMPLES}.")
    if arguments.out.suffix.lower() != ".png" or arguments.out.is_dir():
        raise InputError(f"--out {arguments.out} must be a file that ends in .png, for example samples.png.")
    check_writable(arguments.out.parent)
    world, size = AssetLibrary.load(arguments.dataset), arguments.num_images
    sampler = PairSampler(world, SyntheticConfig(), batch_size=size, seed=arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(sampler(0), arguments.out)
    print_text(arguments.out)
