"""`blip-diffusion invent`: generate a new subject from a word, without a reference."""

import argparse
from pathlib import Path

from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("category", help="what the subject is, for example teapot")
    parser.add_argument("--model", required=True, help="a folder with a prior of subjects, subject_prior/")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="subject file, name.safetensors; --subject reads it"
    )
    parser.add_argument("--seed", type=int, default=0, help="each seed gives another subject (default: 0)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of the prior (default: 50)")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of the prior; 1 is off (default: 2)")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.generation.limits import MAX_GUIDANCE, MAX_STEPS, check_range

    if arguments.out.suffix != ".safetensors":
        raise InputError(f"--out is {arguments.out}: name a file that ends in .safetensors.")
    check_range("--steps", arguments.steps, 1, MAX_STEPS)
    check_range("--guidance-scale", arguments.guidance_scale, 0, MAX_GUIDANCE)
    if not 0 <= arguments.seed < 2**63:
        raise InputError(f"--seed is {arguments.seed}: use 0 or more, below 2^63.")

    from blip_diffusion.checkpoint.subject_file import check_category, check_name, check_place, write_subject
    from blip_diffusion.fileio import check_writable

    check_name(arguments.out.stem)
    check_category(arguments.category)
    check_place(arguments.out)
    check_writable(arguments.out.parent)

    from blip_diffusion.generation.invent import load_inventor

    invent = load_inventor(arguments.model)
    subject = invent(
        arguments.category,
        name=arguments.out.stem,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance=arguments.guidance_scale,
    )
    write_subject(subject, arguments.out)
    print_text(arguments.out)
