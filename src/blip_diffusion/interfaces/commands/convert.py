"""`blip-diffusion convert`: write a model in our folder layout, in another precision."""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
    parser.add_argument("model", help="mini, a folder, or a hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it is written")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    import torch

    from blip_diffusion.pipelines.generate import BlipDiffusionPipeline

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    BlipDiffusionPipeline.from_pretrained(arguments.model).save_pretrained(arguments.out, torch_dtype=dtype)
    print(arguments.out)
