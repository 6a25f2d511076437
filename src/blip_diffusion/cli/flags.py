"""Flags that several commands share."""

import argparse
import os
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


def recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add the common flags of commands that train within a time limit, except --data, --out, --minutes and --config."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, for example cpu.pairs=8"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that composite pairs (default: one per CPU core but one)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")


def recipe_workers(workers: int | None) -> int:
    """Return the number of worker processes. Raises `InputError` if it is negative."""
    if workers is None:
        return max(1, (os.cpu_count() or 2) - 1)
    if workers < 0:
        raise InputError(f"--workers is {workers}: use 0 or more.")
    return workers


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
