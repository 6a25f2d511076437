"""`blip-diffusion evaluate`: pictures of a bench, what judges say of them, and how far that can be trusted."""

import argparse
import sys
from pathlib import Path

from blip_diffusion.cli.flags import (
    STEPS_HELP,
    TRAIN_HELP,
    TRAINED,
    check_used,
    device_flags,
    speed_flags,
    steps_of,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", default="mini", help="mini (default), a folder, or a hub id")
    parser.add_argument(
        "--bench", default="mini", metavar="mini|dreambench|DIR",
        help="mini (default), beside the world; dreambench, a checkout of it here; or a folder of its layout",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the pictures and the report")
    parser.add_argument(
        "--method", default="zero-shot",
        help="zero-shot (default), tuned, reference-copy, other-instance, ground-truth or no-subject",
    )  # fmt: skip
    parser.add_argument("--train", choices=TRAINED, default="lora", help=f"{TRAIN_HELP}, for the method tuned")
    parser.add_argument("--tune-steps", default="auto", metavar="auto|N", help=f"{STEPS_HELP}, likewise")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt (default: 4)")
    parser.add_argument("--subjects", type=int, help="only so many, from all over the bench")
    parser.add_argument("--prompts", type=int, help="only so many, from all over the bench")
    parser.add_argument(
        "--judges", nargs="+", default=(), metavar="NAME[=MODEL]",
        help="focus, lite2, text (the default for MiniBench); dino, clip-b32 (for others); clip-l14",
    )  # fmt: skip
    parser.add_argument("--world", type=Path, default=Path("world/world.zip"), metavar="FILE", help="MiniBench's world")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="how strongly the prompt is followed (default: the model's own)")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at once (default: 16)")
    parser.add_argument("--shard", metavar="2/8", help="only draw the second of eight parts; score without it, later")
    speed_flags(parser)
    device_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if arguments.method != "tuned":
        check_used(arguments, add_flags, ("train", "tune_steps"), f"in --method {arguments.method}")

    from blip_diffusion.devices import device_of
    from blip_diffusion.evaluation.evaluate import EvalConfig, evaluate
    from blip_diffusion.evaluation.generators.cache import Shard
    from blip_diffusion.evaluation.reporting.markdown import markdown
    from blip_diffusion.interfaces.service import dtype_of
    from blip_diffusion.training.tune import TuneConfig

    order = EvalConfig(
        model=arguments.model,
        bench=arguments.bench,
        method=arguments.method,
        seeds=arguments.seeds,
        subjects=arguments.subjects,
        prompts=arguments.prompts,
        steps=arguments.steps,
        guidance=arguments.guidance,
        judges=tuple(arguments.judges),
        world=arguments.world,
        dtype=arguments.dtype or dtype_of(arguments.preset, arguments.device),
        preset=arguments.preset or "",
        engine=arguments.engine,
        tuning=TuneConfig(train=arguments.train, steps=steps_of(arguments.tune_steps, "--tune-steps")),
    )
    report = evaluate(
        order,
        arguments.out,
        shard=Shard.parse(arguments.shard) if arguments.shard else None,
        batch=arguments.batch,
        device=device_of(arguments.device),
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if report is not None:
        print(markdown(report))
    print(arguments.out)
