"""Devices and their fastest data types, for generation, training and evaluation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from blip_diffusion.errors import InputError


def device_of(name: str) -> torch.device:
    """Return the device of a flag: `auto` is a GPU if there is one. Raises `InputError` if there is no such device."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else present_device(name)


def present_device(given: Any) -> torch.device:
    """Return a device by its name, its index among GPUs, or itself. Raises `InputError` if there is none here."""
    if not isinstance(given, str | int | torch.device) or isinstance(given, bool):
        raise InputError(f"The device is a {type(given).__name__}: use a name such as cpu or cuda:0.")
    try:
        device = torch.device(given)
        known = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()  # a tensor would take memory
        if not known and torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
        return device
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:
        raise InputError(f"There is no device {str(given)[:100] or 'without a name'} here: use cpu.") from error


def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return the float type that a device computes fastest in.

    bfloat16 if the device supports it, or else float16 on a GPU and float32 on a CPU: a type that a CPU has to emulate
    takes up to eighty times as long.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and has_bfloat16() else torch.float32


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies in bfloat16 (AVX512-BF16, AMX or ARM's) without conversion to float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def current(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which "cuda" without an index, as used by `auto` and accelerate, is this GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
