"""`blip-diffusion evaluate`: generate the images of a benchmark, score them, and write a report."""

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
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", default="mini", help="mini (default), a folder, or a hub id")
    parser.add_argument(
        "--benchmark", default="mini", metavar="mini|dreambench|DIR",
        help="mini (default), beside the dataset; dreambench, a checkout of it here; or a folder of its layout",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the images and the report")
    parser.add_argument(
        "--condition", default="zero-shot",
        help="zero-shot (default), tuned, no-subject, reference-copy, other-instance or ground-truth",
    )  # fmt: skip
    parser.add_argument("--trainable", choices=TRAINED, default="lora", help=f"{TRAIN_HELP}, for --condition tuned")
    parser.add_argument("--tune-steps", default="auto", metavar="auto|N", help=f"{STEPS_HELP}, for --condition tuned")
    parser.add_argument("--seeds", type=int, default=4, help="images per prompt (default: 4)")
    parser.add_argument("--subjects", type=int, help="evaluate only this many subjects, spread over the benchmark")
    parser.add_argument("--prompts", type=int, help="evaluate only this many prompts, spread over the benchmark")
    parser.add_argument(
        "--metrics", nargs="+", default=(), metavar="NAME[=MODEL]",
        help="focus, lite2, text (default for MiniBench); dino, clip-b32 (default for others); clip-l14",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", type=Path, default=Path("world/world.zip"), metavar="FILE", help="the assets of MiniBench"
    )
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's own)")
    parser.add_argument(
        "--guidance-scale", type=float, help="how strongly the prompt is followed (default: the model's own)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images generated at once (default: 16)")
    parser.add_argument(
        "--shard", metavar="2/8", help="only generate the second of eight parts; score later, without it"
    )
    speed_flags(parser)
    device_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.condition != "tuned":
        check_used(arguments, add_flags, ("trainable", "tune_steps"), f"in --condition {arguments.condition}")

    from blip_diffusion.devices import device_of
    from blip_diffusion.evaluation.evaluate import EvalConfig, evaluate
    from blip_diffusion.evaluation.generators.cache import Shard
    from blip_diffusion.evaluation.reporting.markdown import markdown
    from blip_diffusion.generation.run import dtype_of
    from blip_diffusion.training.personalize.api import TuneConfig

    config = EvalConfig(
        model=arguments.model,
        benchmark=arguments.benchmark,
        condition=arguments.condition,
        seeds=arguments.seeds,
        subjects=arguments.subjects,
        prompts=arguments.prompts,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        metrics=tuple(arguments.metrics),
        dataset=arguments.dataset,
        dtype=arguments.dtype or dtype_of(arguments.preset, arguments.device),
        preset=arguments.preset or "",
        engine=arguments.engine,
        tuning=TuneConfig(train=arguments.trainable, steps=steps_of(arguments.tune_steps, "--tune-steps")),
    )
    report = evaluate(
        config,
        arguments.out,
        shard=Shard.parse(arguments.shard) if arguments.shard else None,
        batch_size=arguments.batch_size,
        device=device_of(arguments.device),
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if report is not None:
        print(markdown(report))
    print(arguments.out)
