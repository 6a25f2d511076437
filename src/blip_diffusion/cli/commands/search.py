"""`blip-diffusion search`: find the images of a folder that a sentence describes, with BLIP-2."""

import argparse
from pathlib import Path

from blip_diffusion.cli.commands.caption import image_paths
from blip_diffusion.cli.flags import device_flags
from blip_diffusion.control_characters import print_json, print_text
from blip_diffusion.errors import InputError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of images")
    parser.add_argument("sentence", metavar="SENTENCE", help='what to search for, for example "a red teapot"')
    parser.add_argument(
        "--model", required=True, metavar="MODEL",
        help="a folder of the objective representation, a folder or hub id of transformers' "
        "Blip2ForImageTextRetrieval, or LAVIS' .pth",
    )  # fmt: skip
    parser.add_argument("--base", metavar="MODEL", help="for LAVIS' .pth: the model that has the frozen parts")
    parser.add_argument("--num-images", type=int, default=10, metavar="N", help="how many to print (default: 10)")
    parser.add_argument(
        "--rerank", type=int, default=128, metavar="N",
        help="how many of the best are ranked again by matching; 0 for none (default: 128)",
    )  # fmt: skip
    parser.add_argument(
        "--rerank-score", default="published", choices=("published", "posterior"),
        help="how matching and contrast are added: published (default), as in LAVIS; posterior, for models that this "
        "project trained",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image")
    device_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import torch

    from blip_diffusion.devices import device_of
    from blip_diffusion.pipelines.image_search import ImageSearch

    if arguments.num_images < 1:
        raise InputError(f"--num-images is {arguments.num_images}: use 1 or more.")
    paths = image_paths([arguments.folder])
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    device = device_of(arguments.device)
    search = ImageSearch.from_pretrained(arguments.model, base=arguments.base, torch_dtype=dtype).to(device)
    matches = search(arguments.sentence, paths, rerank=arguments.rerank, rerank_score=arguments.rerank_score)
    for match in matches[: arguments.num_images]:
        path = str(paths[match.index])
        if arguments.json:
            print_json({"path": path, "score": match.score, "cosine": match.cosine, "matching": match.matching})
        else:
            print_text(f"{match.score:7.3f}  {path}")
