"""The command line: parse, call one function, show the result or one sentence. Torch is imported where it is used."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from blip_diffusion import __version__
from blip_diffusion.errors import BlipDiffusionError, InputError

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Exit codes: 0, 2 for what the caller can mend, 130 when interrupted."""
    parsed = build_parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command(parsed)
    except BlipDiffusionError as error:
        print(f"blip-diffusion: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("blip-diffusion: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags; a flag means the same everywhere."""
    parser = argparse.ArgumentParser(prog="blip-diffusion", description="One picture and a sentence in, pictures out.")
    parser.add_argument("--version", action="version", version=f"blip-diffusion {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _generate_flags(commands.add_parser("generate", help="draw a subject in the scene that a sentence describes"))
    _train_flags(commands.add_parser("train", help="train what a TOML file says"))
    _convert_flags(commands.add_parser("convert", help="write a model in our folder layout, in another precision"))
    data = commands.add_parser("data", help="build the training world, and look at it")
    parts = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _build_flags(parts.add_parser("build", help="fetch the open packages and pack the world"))
    _sheet_flags(parts.add_parser("sheet", help="draw a page of training samples with their captions"))
    return parser


# ----------------------------------------------------------------------------------------------------------- generate


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_generate)
    parser.add_argument(
        "prompt", nargs="*", help='the scene, for example "on the beach"; several make several pictures'
    )
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the picture of the subject")
    parser.add_argument("--category", metavar="WORD", help="what the subject is, for example dog")
    parser.add_argument("--target-category", metavar="WORD", help="what it shall be drawn as (default: the category)")
    parser.add_argument("--again", type=Path, metavar="PNG", help="make the picture of this file once more")
    parser.add_argument("--model", default=None, help="mini (default), a folder, or a hub id")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where pictures go (default: out)")
    parser.add_argument("--count", type=int, default=1, help="pictures of each prompt (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the others count up (default: 0)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="how strongly the prompt is followed (default: the model's own)")
    parser.add_argument("--negative", default="", metavar="WORDS", help="what shall not be seen")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the pictures (default: the model's own)")
    parser.add_argument(
        "--fit", choices=("crop", "squash", "pad"), default="crop", help="how the reference is cut square"
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also draw all pictures on one page")
    _device_flags(parser)


def _device_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, mps")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")


def _generate(arguments: argparse.Namespace) -> None:
    from blip_diffusion.interfaces import service

    if arguments.again is not None:
        order = service.order_of(arguments.again, model=arguments.model)
    else:
        if not arguments.prompt or arguments.reference is None or not arguments.category:
            raise InputError(
                "Say a prompt, --reference FILE and --category WORD; blip-diffusion generate --help tells more."
            )
        order = service.Order(
            prompts=tuple(arguments.prompt),
            reference=service.reference_bytes(arguments.reference),
            category=arguments.category,
            target_category=arguments.target_category or arguments.category,
            model=arguments.model or "mini",
            count=arguments.count,
            seed=arguments.seed,
            steps=arguments.steps,
            guidance=arguments.guidance,
            negative=arguments.negative,
            size=arguments.size,
            fit=arguments.fit,
            dtype=arguments.dtype,
        )
    for path in service.draw(order, arguments.out, device=arguments.device, sheet=arguments.sheet):
        print(path)


# -------------------------------------------------------------------------------------------------------------- train


def _train_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_train)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME-OF-CONFIG)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value, for example train.steps=9"
    )
    parser.add_argument("--minutes", type=float, help="stop, save and export before this much time has passed")
    parser.add_argument("--resume", metavar="latest|DIR", help="go on from a checkpoint")


def _train(arguments: argparse.Namespace) -> None:
    from blip_diffusion.training.run import run

    folder = arguments.out or Path("runs") / arguments.config.stem
    overrides = [*arguments.set, *([f"train.minutes={arguments.minutes}"] if arguments.minutes else [])]
    resume: bool | Literal["latest"] | Path = False
    if arguments.resume:
        resume = "latest" if arguments.resume == "latest" else Path(arguments.resume)
    result = run(arguments.config, folder, overrides=overrides, resume=resume)
    print(
        f"{result.step} steps, {result.samples} samples, {result.seconds / 60:.1f} minutes ({result.stopped}): {folder}"
    )


# ------------------------------------------------------------------------------------------------------------ convert


def _convert_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_convert)
    parser.add_argument("model", help="mini, a folder, or a hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it is written")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights")


def _convert(arguments: argparse.Namespace) -> None:
    import torch

    from blip_diffusion.pipelines.generate import BlipDiffusionPipeline

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    BlipDiffusionPipeline.from_pretrained(arguments.model).save_pretrained(arguments.out, torch_dtype=dtype)
    print(arguments.out)


# --------------------------------------------------------------------------------------------------------------- data


def _build_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_build)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets world.zip, and cache/ with downloads"
    )
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="only these packages (default: all)")
    parser.add_argument("--views", type=int, default=8, help="sides from which a solid is seen (default: 8)")
    parser.add_argument("--size-limit", type=float, default=40, metavar="MIB", help="of the packed world (default: 40)")


def _build(arguments: argparse.Namespace) -> None:
    from blip_diffusion.data.build import build

    print(build(arguments.out, sources=arguments.sources, views=arguments.views,
                size_limit_mib=arguments.size_limit, progress=lambda line: print(line, flush=True)))  # fmt: skip


def _sheet_flags(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_sheet)
    parser.add_argument("--world", type=Path, default=Path("world/world.zip"), metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="PNG")
    parser.add_argument("--count", type=int, default=24, help="samples on the page (default: 24)")
    parser.add_argument("--seed", type=int, default=0)


def _sheet(arguments: argparse.Namespace) -> None:
    from blip_diffusion.data.compose import Composer, ComposerConfig, sheet
    from blip_diffusion.data.world import World

    composer = Composer(World.load(arguments.world), ComposerConfig(), batch_size=arguments.count, seed=arguments.seed)
    sheet(composer(0), arguments.out)
    print(arguments.out)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"blip-diffusion: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
