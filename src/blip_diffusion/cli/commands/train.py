"""`blip-diffusion train`: train a model from a TOML configuration."""

import argparse
from datetime import timedelta
from pathlib import Path

from blip_diffusion.control_characters import print_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="what to train; see configs/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME-OF-CONFIG)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, for example train.steps=9"
    )
    parser.add_argument("--minutes", type=float, help="stop, save and export within this time")
    parser.add_argument("--resume", metavar="latest|DIR", help="continue from a checkpoint")
    parser.add_argument(
        "--eval-during-training", action="store_true", help="score 24 images of MiniBench whenever samples are made"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.training.pretrain import run as train

    folder = arguments.out or Path("runs") / arguments.config.stem
    overrides = [*arguments.set, *([f"train.minutes={arguments.minutes}"] if arguments.minutes is not None else [])]
    resume = False if arguments.resume is None else arguments.resume
    hooks = []
    if arguments.eval_during_training:
        from blip_diffusion.evaluation.callback import EvalCallback

        hooks.append(EvalCallback)
    result = train(arguments.config, folder, overrides=overrides, resume=resume, extra_hooks=hooks)
    if result.stopped == "signal":
        advice = "run it again with --resume latest to continue"
        print_text(f"stopped after {result.step} steps, nothing exported; {advice}")
        raise KeyboardInterrupt
    duration = timedelta(seconds=round(result.seconds))
    print_text(f"{result.step} steps, {result.samples} samples, {duration} ({result.stopped}): {folder}")
