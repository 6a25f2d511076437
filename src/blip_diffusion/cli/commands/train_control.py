"""`blip-diffusion train-control`: train adapters for structure control of a finished model within a time limit."""

import argparse
import json
import os
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", default="mini", metavar="DIR", help="the model: mini (default) or a folder")
    parser.add_argument("--data", type=Path, metavar="FILE", help="the training data (default: world/world.zip)")
    parser.add_argument(
        "--hint", nargs="+", default=["canny"], metavar="KIND",
        help="what the adapters read: canny (edges, the default), mask (of the subject), or both",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/control"), metavar="DIR", help="folder of the run")
    parser.add_argument("--minutes", type=float, default=10, help="training time of all adapters (default: 10)")
    parser.add_argument("--config", type=Path, metavar="TOML", help="what differs from the defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, for example cpu.pairs=8"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that composite pairs (default: one per CPU core but one)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.devices import device_of
    from blip_diffusion.errors import InputError
    from blip_diffusion.training.recipe.control_run import read_control_recipe, run_control

    workers = max(1, (os.cpu_count() or 2) - 1) if arguments.workers is None else arguments.workers
    if workers < 0:
        raise InputError(f"--workers is {workers}: use 0 or more.")
    paths = {"model": arguments.model, "data": arguments.data}
    overrides = [*arguments.set, *(f"{key}={json.dumps(str(path))}" for key, path in paths.items() if path)]
    config = read_control_recipe(arguments.config, overrides)
    run_control(
        config,
        arguments.hint,
        arguments.out,
        minutes=arguments.minutes,
        device=device_of(arguments.device),
        workers=workers,
        resume=arguments.resume,
    )
    for hint in arguments.hint:
        print(arguments.out / hint / "export")
