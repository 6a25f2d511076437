"""`blip-diffusion convert`: from any layout to any."""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
    parser.add_argument("model", help="mini, a folder, a hub id, LAVIS' folder or .tar.gz, or a .pth of its tuning")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it is written")
    parser.add_argument("--to", choices=("folder", "lavis"), default="folder", help="layout (default: folder, ours)")
    parser.add_argument("--base", metavar="MODEL", help="what LAVIS tuned from; or whose shapes its files have")
    parser.add_argument("--unet", metavar="PATH", help="take the U-Net of a folder or a Stable Diffusion 1.5 file")
    parser.add_argument("--vae", metavar="PATH", help="take the VAE of a folder or a Stable Diffusion 1.5 file")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
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
