"""`blip-diffusion inpaint`: generate a subject in the white region of a mask, and keep all other pixels."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from blip_diffusion.cli.commands import generate
from blip_diffusion.cli.commands.edit import check, edit_flags, edit_input
from blip_diffusion.errors import InputError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run, target_category=None)
    parser.add_argument("photo", nargs="?", type=Path, metavar="PHOTO", help="the photo")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='the scene, for example "on the beach"')
    parser.add_argument("--mask", type=Path, metavar="FILE", help="an image of the photo's size, white where to paint")
    parser.add_argument("--category", metavar="WORD", help="what the subject is, for example dog")
    parser.add_argument(
        "--resamplings",
        type=int,
        default=2,
        metavar="N",
        help="repetitions of each step, which remove seams (default: 2)",
    )
    edit_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if generate.reproduced(arguments, add_flags):
        return
    if arguments.photo is None or arguments.mask is None or not (arguments.subject or arguments.category):
        raise InputError(
            "A photo, --mask FILE, and --category WORD or --subject FILE are needed: see blip-diffusion inpaint --help."
        )
    check(arguments, add_flags, [arguments.photo, arguments.mask])
    settings = {"kind": "inpaint", "resamplings": arguments.resamplings}
    generate.run_request(arguments, partial(edit_input, mask_file=arguments.mask, settings=settings))
