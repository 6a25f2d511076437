"""Values of flags: files, files with numbers, sizes, seeds. Imports nothing slow."""

import argparse
import os
from pathlib import Path

from blip_diffusion.errors import InputError

MAX_PROMPTS_FILE = 10**6
"""Bytes of a --prompts FILE."""


def check_file(what: str, path: Path) -> None:
    """Raise `InputError` if there is no such file."""
    from blip_diffusion.fileio import path_exists

    if not path_exists(path, Path.is_file):
        raise InputError(f"There is no {what} at {path}: check the path.")


def prompts_of(path: Path | None) -> list[str]:
    """Return the prompts in a file, one per line; empty lines are skipped."""
    if path is None:
        return []
    check_file("list of prompts", path)
    if path.stat().st_size > MAX_PROMPTS_FILE:
        raise InputError(f"--prompts {path} has {path.stat().st_size} bytes: use at most {MAX_PROMPTS_FILE}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not at other separators, as U+2028
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {path} can't be read ({error}): use a UTF-8 text file.") from error
    return [line.strip() for line in lines if line.strip()]


def path_and_number(flag: str, text: str, name: str) -> tuple[Path, float]:
    """Parse FILE or FILE:NUMBER; without a number it is 1."""
    from blip_diffusion.fileio import path_exists

    if ":" not in text or path_exists(Path(text), Path.is_file):
        return Path(text), 1.0
    path, number = text.rsplit(":", 1)
    try:
        return Path(path), float(number)
    except ValueError:
        raise InputError(f"{flag} {text} has the {name} {number!r}: use a number, for example 0.5.") from None


def seed(text: str) -> int:
    """Parse a number, or choose one for "random"."""
    if text == "random":
        return int.from_bytes(os.urandom(4))
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: use a number, or random") from None


def size(text: str) -> tuple[int, int]:
    """Parse a width and height."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: use 512, or 768x512 for width and height")
    return int(sides[0]), int(sides[-1])


def kind_and_value(flag: str, text: str, value: str) -> tuple[str, str]:
    """Parse KIND=VALUE; `value` is the name of VALUE in the flag's help."""
    kind, sign, rest = text.partition("=")
    if not (kind and sign and rest):
        raise InputError(f"{flag} {text} can't be parsed: write KIND={value}.")
    return kind, rest
