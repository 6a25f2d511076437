"""`blip-diffusion tune-many`: personalize a model for each subject of a folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from blip_diffusion.cli.commands.tune import (
    SETTINGS,
    check_method,
    method_flags,
    training_flags,
    tune_config,
)
from blip_diffusion.cli.flags import adapter_refs, backend_flags, check_backend, flags_for_settings
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError

if TYPE_CHECKING:
    from blip_diffusion.training.personalize.many import Outcome


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument(
        "subjects", type=Path, metavar="DIR", help="folder whose subfolders CATEGORY/NAME/ hold the photos"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("tuned"), metavar="DIR", help="folder for NAME.safetensors (default: tuned)"
    )
    parser.add_argument("--masks", choices=("auto", "none"), default="auto", help="auto (default), or none")
    method_flags(parser)
    training_flags(parser)
    backend_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    check_method(arguments, add_flags)
    check_backend(arguments)

    from blip_diffusion.training.personalize.many import ManyConfig, subjects_in, tune_many

    settings = ManyConfig(
        arguments.out.resolve(),
        str(Path(arguments.model).resolve()) if Path(arguments.model).is_dir() else arguments.model,
        tune_config(arguments),
        **adapter_refs(arguments),
        masks=arguments.masks,
    )
    subjects = subjects_in(arguments.subjects)
    with flags_for_settings(SETTINGS, {"steps": "--train-steps"}):
        outcomes = tune_many(subjects, settings, backend=arguments.on, actors=arguments.actors, on_ended=_print)
    if outcomes[-1].state == "stopped":
        print_text("stopped; run the same command to continue")
        raise KeyboardInterrupt
    if failed := [outcome.name for outcome in outcomes if outcome.state == "failed"]:
        raise InputError(f"{len(failed)} of {len(outcomes)} subjects were not tuned: {', '.join(failed)}.")


def _print(outcome: "Outcome") -> None:
    steps = f" after {outcome.step} steps" if outcome.step else ""
    print_text(f"{outcome.name}: {outcome.problem or f'{outcome.state}{steps}, {outcome.out}'}")
