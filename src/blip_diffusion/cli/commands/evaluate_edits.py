"""`blip-diffusion evaluate-edits`: edit photos whose true answer is known, and score what stayed and what changed."""

import argparse
import sys
from pathlib import Path

from blip_diffusion.cli.flags import MODEL_HELP


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", default="mini", help=MODEL_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the images and the table")
    parser.add_argument(
        "--dataset",
        type=Path,
        default=Path("world/world.zip"),
        metavar="FILE",
        help="the asset library, with MiniBench beside it",
    )
    parser.add_argument("--edits", type=int, default=60, metavar="N", help="number of edits (default: 60)")
    parser.add_argument(
        "--conditions",
        nargs="+",
        metavar="NAME",
        help="copy, generate, truth, inpaint-2, or INVERSION/MASK[/attention], for example direct/difference",
    )
    parser.add_argument("--strength", type=float, default=1.0, help="share of the steps that are run (default: 1)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument(
        "--metrics",
        nargs="*",
        metavar="NAME",
        help="focus, text, structure, perceptual, lpips (default: the first three)",
    )
    parser.add_argument("--lpips", type=Path, metavar="DIR", help="folder of LPIPS' two published files")
    parser.add_argument(
        "--engine", choices=("torch", "compiled", "openvino"), default="torch", help="backend (default: torch)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.devices import device_of
    from blip_diffusion.evaluation.editing.editbench import DEFAULT, EditBenchConfig, evaluate_edits

    metrics = EditBenchConfig.metrics if arguments.metrics is None else tuple(arguments.metrics)
    if arguments.lpips is not None and arguments.metrics is None:
        metrics += ("lpips",)
    config = EditBenchConfig(
        model=arguments.model,
        dataset=arguments.dataset,
        edits=arguments.edits,
        conditions=tuple(arguments.conditions or DEFAULT),
        strength=arguments.strength,
        steps=arguments.steps,
        engine=arguments.engine,
        metrics=metrics,
        lpips=arguments.lpips,
    )
    evaluate_edits(
        config,
        arguments.out,
        device=device_of(arguments.device),
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print((arguments.out / "edits.md").read_text(encoding="utf-8"))
    print(arguments.out)
