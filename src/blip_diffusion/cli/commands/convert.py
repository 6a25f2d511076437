"""`blip-diffusion convert`: convert a model or a tuned subject between layouts and precisions."""

import argparse
from pathlib import Path

from blip_diffusion.cli.flags import check_used
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError

MODEL_UNUSED, SUBJECT_UNUSED = ("name", "category", "rank"), ("unet", "vae", "dtype")
UNUSED = {"folder": MODEL_UNUSED, "lavis": MODEL_UNUSED, "subject": SUBJECT_UNUSED}
"""The layouts, with the flags that have no effect in each."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument(
        "model", help="mini, a folder, a hub id, a LAVIS folder or .tar.gz, or a .pth of LAVIS' fine-tuning"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder or file")
    parser.add_argument(
        "--to", choices=("folder", "lavis", "subject"), default="folder", help="output layout (default: folder)"
    )
    parser.add_argument("--base", metavar="MODEL", help="the model that was fine-tuned, or that has the same shapes")
    parser.add_argument("--unet", metavar="PATH", help="take the U-Net from a folder or a Stable Diffusion 1.5 file")
    parser.add_argument("--vae", metavar="PATH", help="take the VAE from a folder or a Stable Diffusion 1.5 file")
    parser.add_argument("--name", metavar="WORD", help="name of the subject, with --to subject")
    parser.add_argument("--category", metavar="WORD", help="what the subject is, with --to subject")
    parser.add_argument(
        "--rank", type=int, default=8, help="rank of the extracted LoRA, 0 for none, with --to subject (default: 8)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision of the weights")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    check_used(arguments, add_flags, UNUSED[arguments.to], f"with --to {arguments.to}")
    if arguments.to == "subject":
        _convert_subject(arguments)
        return

    import torch

    from blip_diffusion.checkpoint.convert import convert

    convert(
        arguments.model,
        arguments.out,
        to=arguments.to,
        base=arguments.base,
        unet=arguments.unet,
        vae=arguments.vae,
        dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
    )
    print_text(arguments.out)


def _convert_subject(arguments: argparse.Namespace) -> None:
    from blip_diffusion.checkpoint.lora_extraction import convert_tuned

    if not (arguments.base and arguments.name and arguments.category):
        raise InputError("--to subject needs --base MODEL (the model that was fine-tuned), --name and --category.")
    explained = convert_tuned(
        Path(arguments.model),
        arguments.base,
        arguments.out,
        name=arguments.name,
        category=arguments.category,
        rank=arguments.rank,
    )
    print_text(f"the LoRA explains {explained:.0%} of the U-Net's change: {arguments.out}")
