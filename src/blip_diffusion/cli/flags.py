"""Flags that several commands share: the same word for the same thing everywhere."""

import argparse
from collections.abc import Callable, Collection

from blip_diffusion.errors import InputError

TRAINED = ("embedding", "lora", "cross-attention", "unet")
TRAIN_HELP = "what few-shot tuning moves beside the embedding (default: lora)"
STEPS_HELP = "of tuning; auto (default): as many as are good for it"


def device_flags(parser: argparse.ArgumentParser) -> None:
    """Where it computes, and in what precision."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, mps")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision (default: float32; with a preset, the fastest that the device computes in)",
    )


def said(arguments: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], None]) -> list[str]:
    """What has another value than the command's own, by its name in `arguments`."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return [name for name, value in vars(arguments).items() if value != parser.get_default(name)]


def check_used(
    arguments: argparse.Namespace,
    add_flags: Callable[[argparse.ArgumentParser], None],
    unused: Collection[str],
    where: str,
) -> None:
    """Raises `InputError` for a flag of `unused` that was said: it has no say there, and so would be dropped."""
    for name in said(arguments, add_flags):
        if name in unused:
            raise InputError(f"--{name.replace('_', '-')} has no say {where}: leave it out.")


def steps_of(text: str, flag: str) -> int | None:
    """A number of steps of tuning; `None` stops by itself."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{flag} is {text}: use auto, or a number from 1.")
    return int(text)


def speed_flags(parser: argparse.ArgumentParser) -> None:
    """How fast, at what price."""
    parser.add_argument(
        "--preset",
        choices=("exact", "fast", "turbo"),
        help="exact: the same picture sooner; fast: nearly as good, much sooner; turbo: previews",
    )
    parser.add_argument(
        "--engine", choices=("torch", "compiled", "openvino"), default="torch",
        help="what runs the networks: openvino on CPUs (a minute to convert, once), compiled on GPUs (default: torch)",
    )  # fmt: skip
