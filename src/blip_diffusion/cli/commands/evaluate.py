"""`blip-diffusion evaluate`: generate a benchmark's images, score them, and write a report."""

import argparse
import sys
from pathlib import Path

from blip_diffusion.cli.flags import (
    MODEL_HELP,
    TRAIN_STEPS_HELP,
    TRAINABLE,
    TRAINABLE_HELP,
    acceleration_flags,
    adapter_flags,
    adapter_refs,
    backend_flags,
    check_adapters,
    check_backend,
    check_used,
    device_flags,
    parse_train_steps,
)
from blip_diffusion.control_characters import print_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", default="mini", help=MODEL_HELP)
    adapter_flags(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the images and the report")
    _benchmark_flags(parser)
    _condition_flags(parser)
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument(
        "--guidance-scale", type=float, help="weight of classifier-free guidance; 1 is off (default: the model's)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images per batch (default: 16)")
    parser.add_argument(
        "--shard", metavar="I/N", help="only generate part I of N; run once without --shard afterwards to score"
    )
    acceleration_flags(parser)
    device_flags(parser)
    backend_flags(parser)


def _benchmark_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--benchmark",
        default="mini",
        metavar="mini|drawings|dreambench|DIR",
        help="mini (default): MiniBench, and drawings: held-back drawings, both next to the dataset; "
        "dreambench: a checkout in ./dreambench; or a folder",
    )
    parser.add_argument(
        "--dataset", type=Path, default=Path("world/world.zip"), metavar="FILE", help="the training data of MiniBench"
    )
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="images per subject and prompt (default: 4)")
    parser.add_argument("--subjects", type=int, metavar="N", help="use N subjects, spread over the benchmark")
    parser.add_argument("--prompts", type=int, metavar="N", help="use N prompts, spread over the benchmark")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        metavar="NAME[=MODEL]",
        help="focus, lite2, text (default for MiniBench); shape, detail (for drawings); "
        "dino, clip-b32 (for others); clip-l14",
    )


def _condition_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--condition",
        default="zero-shot",
        help="zero-shot (default), tuned, or a baseline: reference-copy, other-instance, ground-truth, no-subject",
    )
    parser.add_argument(
        "--trainable", choices=TRAINABLE, default="lora", help=f"{TRAINABLE_HELP}; with --condition tuned"
    )
    parser.add_argument(
        "--train-steps", default="auto", metavar="auto|N", help=f"{TRAIN_STEPS_HELP}; with --condition tuned"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.condition != "tuned":
        check_used(arguments, add_flags, ("trainable", "train_steps"), f"with --condition {arguments.condition}")
    check_adapters(arguments)
    check_backend(arguments)
    if arguments.shard:
        check_used(arguments, add_flags, ("on", "actors"), "with --shard")

    from blip_diffusion.devices import device_of
    from blip_diffusion.evaluation.evaluate import EvalConfig, evaluate
    from blip_diffusion.evaluation.generators.cache import Shard
    from blip_diffusion.evaluation.reporting.markdown import markdown
    from blip_diffusion.pipelines.presets import default_dtype
    from blip_diffusion.training.personalize.config import TuneConfig

    config = EvalConfig(
        model=arguments.model,
        **adapter_refs(arguments),
        benchmark=arguments.benchmark,
        condition=arguments.condition,
        seeds=arguments.seeds,
        subjects=arguments.subjects,
        prompts=arguments.prompts,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        metrics=tuple(arguments.metrics),
        dataset=arguments.dataset,
        dtype=arguments.dtype or default_dtype(arguments.preset, arguments.device),
        preset=arguments.preset or "",
        engine=arguments.engine,
        tuning=TuneConfig(trainable=arguments.trainable, steps=parse_train_steps(arguments.train_steps)),
    )
    report = evaluate(
        config,
        arguments.out,
        shard=Shard.parse(arguments.shard) if arguments.shard else None,
        batch_size=arguments.batch_size,
        device=device_of(arguments.device),
        log=lambda line: print_text(line, file=sys.stderr),
        backend=arguments.on,
        actors=arguments.actors,
    )
    if report is not None:
        print_text(markdown(report), lines=True)
    print_text(arguments.out)
