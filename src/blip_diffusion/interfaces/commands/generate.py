"""`blip-diffusion generate`: draw a subject in the scene that a sentence describes."""

import argparse
from pathlib import Path

from blip_diffusion.errors import InputError
from blip_diffusion.interfaces.commands.flags import device_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
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
    device_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
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
