"""`blip-diffusion train-mini`: train `mini` from the start within a time limit."""

import argparse
import json
from pathlib import Path

from blip_diffusion.cli.flags import recipe_flags, recipe_workers
from blip_diffusion.control_characters import print_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("--data", type=Path, metavar="FILE", help="the training data (default: world/world.zip)")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), metavar="DIR", help="folder of the run")
    parser.add_argument("--minutes", type=float, default=60, help="training time of all phases (default: 60)")
    parser.add_argument(
        "--config", type=Path, metavar="TOML", help="see configs/mini/recipe.toml (default: its values)"
    )
    recipe_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.devices import device_of
    from blip_diffusion.training.recipe.config import read_recipe
    from blip_diffusion.training.recipe.run import run as train

    workers = recipe_workers(arguments.workers)
    overrides = [*arguments.set, *([f"data={json.dumps(str(arguments.data))}"] if arguments.data else [])]
    config = read_recipe(arguments.config, overrides)
    device = device_of(arguments.device)
    train(
        config,
        arguments.out,
        minutes=arguments.minutes,
        device=device,
        workers=workers,
        resume=arguments.resume,
    )
    print_text(arguments.out / "export")
