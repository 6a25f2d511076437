"""Where it computes: one answer for drawing, training and judging."""

from contextlib import AbstractContextManager, nullcontext

import torch

from blip_diffusion.errors import InputError


def device_of(name: str) -> torch.device:
    """The device of a flag: `auto` is a GPU where there is one. Raises `InputError` for one that isn't here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"There is no device {name} here: use --device cpu.") from error


def current(device: torch.device) -> AbstractContextManager[None]:
    """Within it, a GPU that is asked for without its number, as by `auto` and by accelerate, is this one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
