"""`blip-diffusion data build | sheet`: build the training world, and look at it."""

import argparse
from math import inf
from pathlib import Path

from blip_diffusion.cli.flags import check_used
from blip_diffusion.errors import InputError

MOST = 1000
"""Samples on a page."""
MOST_VIEWS = 24
"""Sides of a solid: more would be closer together than they are shaken."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The two commands of `data`."""
    parts = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _build_flags(parts.add_parser("build", help="fetch the open packages and pack the world"))
    _sheet_flags(parts.add_parser("sheet", help="draw a page of training samples with their captions"))


def _build_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_build)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets world.zip, and cache/ with downloads"
    )
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="only these packages (default: all)")
    parser.add_argument("--views", type=int, default=8, help="sides from which a solid is seen (default: 8)")
    parser.add_argument(
        "--bench",
        action="store_true",
        help="make MiniBench of it too, in DIR/bench; a world.zip in DIR is taken as it is",
    )
    parser.add_argument("--size-limit", type=float, default=40, metavar="MIB", help="of the packed world (default: 40)")


def _build(arguments: argparse.Namespace) -> None:
    path = arguments.out / "world.zip"
    _check_build(arguments, path)

    from blip_diffusion.data.benchmarks.minibench import build_bench
    from blip_diffusion.data.build.build import build
    from blip_diffusion.data.synthetic.assets import World

    if not (arguments.bench and path.is_file()):
        path = build(arguments.out, sources=arguments.sources, views=arguments.views,
                     size_limit_mib=arguments.size_limit, progress=lambda line: print(line, flush=True))  # fmt: skip
        print(path)
    if arguments.bench:
        bench = build_bench(World.load(path), arguments.out / "bench")
        print(f"{arguments.out / 'bench'}: {len(bench.subjects)} subjects, {len(bench.asked)} prompts, {bench.digest}")


def _check_build(arguments: argparse.Namespace, world: Path) -> None:
    """Before an hour of work, not after it."""
    from blip_diffusion.data.benchmarks.minibench import check_place
    from blip_diffusion.fileio import check_writable

    check_writable(arguments.out)
    if not 1 <= arguments.views <= MOST_VIEWS:
        raise InputError(f"--views is {arguments.views}: use a number from 1 to {MOST_VIEWS}.")
    if not 0 < arguments.size_limit < inf:
        raise InputError(f"--size-limit is {arguments.size_limit:g}: use a number above 0, in MiB.")
    if arguments.bench:
        check_place(arguments.out / "bench")
    if arguments.bench and world.is_file():
        unused = ("sources", "views", "size_limit")
        check_used(arguments, _build_flags, unused, f"beside {world}, which is taken as it is")


def _sheet_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_sheet)
    parser.add_argument("--world", type=Path, default=Path("world/world.zip"), metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="PNG")
    parser.add_argument("--count", type=int, default=24, help="samples on the page (default: 24)")
    parser.add_argument("--seed", type=int, default=0)


def _sheet(arguments: argparse.Namespace) -> None:
    from blip_diffusion.data.synthetic.assets import World
    from blip_diffusion.data.synthetic.pair_sampler import Composer, ComposerConfig, sheet
    from blip_diffusion.fileio import check_writable

    if not 1 <= arguments.count <= MOST:
        raise InputError(f"--count is {arguments.count}: use a number from 1 to {MOST}.")
    if arguments.out.suffix.lower() != ".png" or arguments.out.is_dir():
        raise InputError(f"--out {arguments.out} should be a file that ends in .png, as samples.png.")
    check_writable(arguments.out.parent)
    composer = Composer(World.load(arguments.world), ComposerConfig(), batch_size=arguments.count, seed=arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(composer(0), arguments.out)
    print(arguments.out)
