"""`blip-diffusion train-control`: train adapters for structure control of a trained model within a time limit."""

import argparse
import json
from pathlib import Path

from blip_diffusion.cli.flags import recipe_flags, recipe_workers
from blip_diffusion.control_characters import print_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--model", default="mini", metavar="DIR", help="the model: mini (default) or a folder")
    parser.add_argument("--data", type=Path, metavar="FILE", help="the training data (default: world/world.zip)")
    parser.add_argument(
        "--hint", nargs="+", default=["canny"], metavar="KIND",
        help="control images of the adapters: canny (edges, the default), mask (of the subject), depth, normal; "
        "with one of the last two, all subjects are 3D models",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/control"), metavar="DIR", help="folder of the run")
    parser.add_argument("--minutes", type=float, default=10, help="training time of all adapters (default: 10)")
    parser.add_argument("--config", type=Path, metavar="TOML", help="settings that override the defaults")
    recipe_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.devices import device_of
    from blip_diffusion.training.recipe.control_run import read_control_recipe, run_control

    workers = recipe_workers(arguments.workers)
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
        print_text(arguments.out / hint / "export")
