"""`blip-diffusion edit`: replace the subject of a photo and keep the rest."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_diffusion.cli.commands import generate
from blip_diffusion.cli.flags import MODEL_HELP, acceleration_flags, adapter_flags, check_used, device_flags
from blip_diffusion.cli.subject_flags import SINGLE_SUBJECT, box_flag
from blip_diffusion.cli.values import check_file
from blip_diffusion.errors import InputError

if TYPE_CHECKING:
    from blip_diffusion.generation.edit_request import EditInput


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run, category=None)
    parser.add_argument("photo", nargs="?", type=Path, metavar="PHOTO", help="the photo that is edited")
    parser.add_argument("--from", dest="source", metavar="WORD", help="category of the subject to replace: dog")
    parser.add_argument(
        "--to",
        dest="target_category",
        metavar="WORD",
        help="category of the new subject (default: --from, or the subject file's)",
    )
    parser.add_argument("--prompt", default="", metavar="TEXT", help='the scene, for example "on the beach"')
    parser.add_argument(
        "--mask",
        default="auto",
        metavar="auto|subject|none|FILE",
        help="region that may change: auto (default) compares two predictions, subject uses the subject finder, none "
        "is the whole photo; or an image of the photo's size, white there",
    )
    parser.add_argument(
        "--inversion",
        choices=("direct", "ddpm", "ddim", "none"),
        default="direct",
        help="direct (default); ddpm: another edit for each seed; ddim: as published; none: fresh noise",
    )
    parser.add_argument(
        "--keep-attention", type=float, default=0.0, metavar="SHARE", help="keep attention maps in the first steps: 0.4"
    )
    parser.add_argument("--keep-shape", action="store_true", help="keep the attention maps of the old subject too")
    edit_flags(parser)


def edit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `edit` and `inpaint` share."""
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the sampling steps, from the last (default: 1)",
    )
    parser.add_argument(
        "--feather", type=int, default=3, metavar="PIXELS", help="width of the blended edge in the mask (default: 3)"
    )
    generate.source_flags(parser)
    adapter_flags(parser)
    parser.add_argument("--model", default=None, help=MODEL_HELP)
    generate.output_flags(parser)
    generate.sampling_flags(parser)
    box_flag(parser)
    parser.set_defaults(**SINGLE_SUBJECT)
    generate.control_flags(parser)
    acceleration_flags(parser)
    device_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if generate.reproduced(arguments, add_flags):
        return
    if arguments.photo is None or not (arguments.source or "").strip():
        raise InputError("A photo and --from WORD are needed: see blip-diffusion edit --help.")
    if arguments.keep_shape and not arguments.keep_attention:
        raise InputError("--keep-shape has no effect without --keep-attention: give 0.4, for example.")
    from blip_diffusion.generation.edit_request import MASK_METHODS

    mask_file = None if arguments.mask in MASK_METHODS else Path(arguments.mask)
    if not arguments.subject and arguments.target_category is None:
        arguments.target_category = arguments.source
    arguments.category = arguments.target_category
    check(arguments, add_flags, [arguments.photo, *([] if mask_file is None else [mask_file])])
    settings = {
        "source_category": arguments.source,
        "mask": MASK_METHODS.get(arguments.mask, "difference"),
        "inversion": arguments.inversion,
        "keep_attention": arguments.keep_attention,
        "keep_shape": arguments.keep_shape,
    }
    generate.run_request(arguments, partial(edit_input, mask_file=mask_file, settings=settings))


def check(arguments: argparse.Namespace, add: Any, files: list[Path]) -> None:
    """Raise `InputError` for mistakes found before torch is imported, and make the prompt a list of one."""
    for path in files:
        check_file("image", path)
    if arguments.subject and arguments.reference:
        raise InputError("--subject and --reference exclude each other: give one of them.")
    if not arguments.reference:
        check_used(arguments, add, ("resize_mode",), "without --reference")
    if not 0 < arguments.strength <= 1:
        raise InputError(f"--strength is {arguments.strength}: use a number above 0, up to 1.")
    prompt = arguments.prompt or ""
    arguments.prompt = [prompt or "edit"]  # an edit's prompt may be empty, unlike that of `generate`
    for name in ("category", "target_category"):  # lists, as `generate` has for several subjects
        word = getattr(arguments, name)
        setattr(arguments, name, [word] if word else [])
    generate.check_values(arguments)
    arguments.prompt = [prompt]


def edit_input(arguments: argparse.Namespace, *, mask_file: Path | None, settings: dict[str, Any]) -> EditInput:
    """Return the edit settings of checked arguments."""
    from blip_diffusion.generation.edit_request import EditInput, image_ref

    return EditInput(
        photo=image_ref(arguments.photo),
        mask_file=None if mask_file is None else image_ref(mask_file),
        strength=arguments.strength,
        feather=arguments.feather,
        **settings,
    )
