"""Flags that several commands share: the same word for the same thing everywhere."""

import argparse

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
