"""`blip-diffusion train`: train what a TOML file says."""

import argparse
from pathlib import Path
from typing import Literal


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME-OF-CONFIG)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value, for example train.steps=9"
    )
    parser.add_argument("--minutes", type=float, help="stop, save and export before this much time has passed")
    parser.add_argument("--resume", metavar="latest|DIR", help="go on from a checkpoint")
    parser.add_argument(
        "--score", action="store_true", help="wherever samples are drawn, score 24 pictures of MiniBench and log it"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from blip_diffusion.training.pretrain import run as train

    folder = arguments.out or Path("runs") / arguments.config.stem
    overrides = [*arguments.set, *([f"train.minutes={arguments.minutes}"] if arguments.minutes is not None else [])]
    resume: bool | Literal["latest"] | Path = False
    if arguments.resume:
        resume = "latest" if arguments.resume == "latest" else Path(arguments.resume)
    beside = []
    if arguments.score:
        from blip_diffusion.evaluation.callback import EvalCallback

        beside.append(EvalCallback)
    result = train(arguments.config, folder, overrides=overrides, resume=resume, beside=beside)
    if result.stopped == "signal":
        print(f"stopped after {result.step} steps, nothing exported; the same command with --resume latest goes on")
        raise KeyboardInterrupt
    print(
        f"{result.step} steps, {result.samples} samples, {result.seconds / 60:.1f} minutes ({result.stopped}): {folder}"
    )
