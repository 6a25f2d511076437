"""`blip-diffusion evaluate-captions`: score captions and retrieval of BLIP-2 on held-out composites."""

import argparse
from pathlib import Path

from blip_diffusion.control_characters import print_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", metavar="MODEL", help="a model that writes captions, as of the objective language")
    parser.add_argument(
        "--search-model", metavar="MODEL", help="a model that compares images with words, as of representation"
    )
    parser.add_argument(
        "--dataset", type=Path, default=Path("world/world.zip"), metavar="FILE", help="the training data"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report and the sheet")
    parser.add_argument("--num-images", type=int, default=1000, metavar="N", help="composites (default: 1000)")
    parser.add_argument("--num-beams", type=int, default=5, metavar="N", help="width of the beam search (default: 5)")
    parser.add_argument(
        "--vqa", action="store_true", help="also score answers to questions about each image (needs --model)"
    )
    parser.add_argument(
        "--probe-images", type=int, default=0, metavar="N",
        help="also name categories and scenes by linear probes of the image encoder of --model, fitted to N images "
        "(default: 0; 0: none)",
    )  # fmt: skip
    parser.add_argument(
        "--rerank",
        type=int,
        default=32,
        metavar="N",
        help="candidates that matching ranks again (default: 32; 0: none)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the composites (default: 0)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.devices import device_of
    from blip_diffusion.evaluation.blip2.report import evaluate_captions

    text = evaluate_captions(
        arguments.dataset,
        arguments.out,
        model=arguments.model,
        search_model=arguments.search_model,
        num_images=arguments.num_images,
        num_beams=arguments.num_beams,
        vqa=arguments.vqa,
        probe_images=arguments.probe_images,
        rerank=arguments.rerank,
        device=str(device_of(arguments.device)),
        seed=arguments.seed,
    )
    print_text(text, lines=True)
    print_text(arguments.out)
