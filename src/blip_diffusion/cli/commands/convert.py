"""`blip-diffusion convert`: from any layout to any."""

import argparse
from pathlib import Path

from blip_diffusion.cli.flags import check_used
from blip_diffusion.errors import InputError

MODEL, SUBJECT = ("name", "category", "rank"), ("unet", "vae", "dtype")
UNUSED = {"folder": MODEL, "lavis": MODEL, "subject": SUBJECT}
"""What has no say in a layout."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
    parser.add_argument("model", help="mini, a folder, a hub id, LAVIS' folder or .tar.gz, or a .pth of its tuning")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it is written")
    parser.add_argument(
        "--to", choices=("folder", "lavis", "subject"), default="folder", help="layout (default: folder, ours)"
    )
    parser.add_argument("--base", metavar="MODEL", help="what LAVIS tuned from; or whose shapes its files have")
    parser.add_argument("--unet", metavar="PATH", help="take the U-Net of a folder or a Stable Diffusion 1.5 file")
    parser.add_argument("--vae", metavar="PATH", help="take the VAE of a folder or a Stable Diffusion 1.5 file")
    parser.add_argument("--name", metavar="WORD", help="of the subject that LAVIS' tuning saved, for --to subject")
    parser.add_argument("--category", metavar="WORD", help="what that subject is")
    parser.add_argument("--rank", type=int, default=8, help="of the LoRA that keeps what was tuned; 0 for none (8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    check_used(arguments, add_flags, UNUSED[arguments.to], f"in --to {arguments.to}")
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
    print(arguments.out)


def _convert_subject(arguments: argparse.Namespace) -> None:
    from blip_diffusion.checkpoint.lora_extraction import convert_tuned

    if not (arguments.base and arguments.name and arguments.category):
        raise InputError("A subject needs --base MODEL, which it was tuned from, --name WORD and --category WORD.")
    kept = convert_tuned(
        Path(arguments.model),
        arguments.base,
        arguments.out,
        name=arguments.name,
        category=arguments.category,
        rank=arguments.rank,
    )
    print(f"{kept:.0%} of what was tuned in the U-Net is kept: {arguments.out}")
