"""Flags that several commands share."""

import argparse
from collections.abc import Callable, Collection

from blip_diffusion.errors import InputError

TRAINABLE = ("embedding", "lora", "cross-attention", "unet")
TRAINABLE_HELP = "what few-shot tuning trains besides the embedding (default: lora)"
TRAIN_STEPS_HELP = "training steps; auto (default) stops early by itself"
RESIZE_MODES = ("crop", "squash", "pad", "subject")
MODEL_HELP = "mini (default), a folder, or a hub id"


def device_flags(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision (default: float32; with a preset, the fastest of the device)",
    )


def acceleration_flags(parser: argparse.ArgumentParser) -> None:
    """Add --preset and --engine."""
    parser.add_argument(
        "--preset",
        choices=("exact", "fast", "turbo"),
        help="exact: same image, faster arithmetic; fast: 10 steps, near-identical; turbo: 2 distilled steps",
    )
    parser.add_argument(
        "--engine",
        choices=("torch", "compiled", "openvino"),
        default="torch",
        help="backend: torch (default), compiled (GPU), openvino (CPU; converts once, about a minute)",
    )


def changed_flags(arguments: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], None]) -> list[str]:
    """Return the names of all arguments that differ from the command's defaults."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return [name for name, value in vars(arguments).items() if value != parser.get_default(name)]


def check_used(
    arguments: argparse.Namespace,
    add_flags: Callable[[argparse.ArgumentParser], None],
    unused: Collection[str],
    where: str,
) -> None:
    """Raise `InputError` for a flag in `unused` that was given, instead of ignoring it."""
    for name in changed_flags(arguments, add_flags):
        if name in unused:
            raise InputError(f"--{name.replace('_', '-')} has no effect {where}: remove it.")


def parse_train_steps(text: str) -> int | None:
    """Return the number of training steps; `None` for "auto"."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--train-steps is {text}: use auto, or a number from 1.")
    return int(text)
