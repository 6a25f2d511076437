"""Check the types and ranges of a call's arguments before anything is computed."""

import operator
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip_diffusion.control_characters import check_text, is_unicode
from blip_diffusion.errors import InputError, quoted


def flag(name: str, value: Any) -> bool:
    """Return a switch as a `bool`. Raises `InputError` for other types, whose truth is easily mistaken."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {quoted(value)}: use True or False.")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of several words. Raises `InputError` for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"There is no {name} {quoted(value)}: use {', '.join(choices[:-1])} or {choices[-1]}.")
    return value


def listed(name: str, value: Any, what: str) -> list[Any]:
    """Return a list or tuple as a list. Raises `InputError` for anything else, such as text or a single value."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is {quoted(value)}: use a list of {what}.")
    return list(value)


def whole_number(name: str, value: Any, lowest: int | None = None, highest: int | None = None) -> int:
    """Return a whole number as an `int`. Raises `InputError` for other types, text included, and outside the range."""
    limits = "" if lowest is None else f" from {lowest}"
    limits += "" if highest is None else f" to {highest}"
    try:
        result = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        result = None
    too_low = result is None or (lowest is not None and result < lowest)
    if result is None or too_low or (highest is not None and result > highest):
        raise InputError(f"{name} is {quoted(value)}: use a whole number{limits}.")
    return result


def number(name: str, value: Any, lowest: float = -float("inf"), highest: float = float("inf")) -> float:
    """Return a finite number as a `float`. Raises `InputError` for other types, text included, or out of range."""
    allowed = "a number" if lowest == -float("inf") else f"a number from {lowest:g}"
    allowed += "" if highest == float("inf") else f" to {highest:g}"
    try:
        result = float("nan") if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        result = float("nan")
    if not isfinite(result) or not lowest <= result <= highest:
        raise InputError(f"{name} is {quoted(value)}: use {allowed}.")
    return result


def texts(name: str, value: Any, hint: str = "") -> list[str]:
    """Return a string, or a list of strings, as a list.

    Raises `InputError` for anything else, `None` included; its message ends in the hint.
    """
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        kind = type(value).__name__ if not isinstance(value, list | tuple) else "list of other types"
        raise InputError(f"{name} is a {kind}: use text, or a list of texts{hint}.")
    for text in values:
        if not is_unicode(text):
            raise InputError(f"{name} {text[:200]!a} is not Unicode text: decode its bytes as UTF-8.")
        check_text(name, text)
    return list(values)


def one_text(name: str, value: Any) -> str:
    """Return a string. Raises `InputError` for anything else, a list included."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {quoted(value)}: use text.")
    return texts(name, value)[0]


def check_tensor(name: str, value: Any) -> None:
    """Raise `InputError` unless a value is a tensor of finite floats."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} is a {kind}: use a tensor of floats.")
    if not value.isfinite().all():
        raise InputError(f"{name} has numbers that are not finite (NaN or infinity).")


def check_finite(result: Tensor) -> Tensor:
    """Return a result. Raises `InputError` if it has NaN or infinity, which would become black pixels."""
    if not result.isfinite().all():
        raise InputError(
            "The result isn't finite (NaN or infinity): a LoRA, an embedding, a scheduler's setting or the weights are "
            "damaged, or float16 is too narrow; try torch_dtype=torch.float32."
        )
    return result


def check_generators(value: Any) -> None:
    """Raise `InputError` unless a value is a `torch.Generator` or a list of them."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(generator, torch.Generator) for generator in values):
        raise InputError(
            f"generator is {quoted(value)}: use torch.Generator().manual_seed(0), for example, or a list of one per "
            "image."
        )


def check_unsupported(cross_attention_kwargs: Any, clip_skip: Any) -> None:
    """Raise `InputError` for arguments of diffusers that this pipeline doesn't support, unless they have no effect."""
    if cross_attention_kwargs is not None and not isinstance(cross_attention_kwargs, Mapping):
        raise InputError(f"cross_attention_kwargs is a {type(cross_attention_kwargs).__name__}: use a dict.")
    if any(key != "scale" or value != 1 for key, value in (cross_attention_kwargs or {}).items()):
        raise InputError(
            "cross_attention_kwargs isn't supported: choose the weight of a LoRA with pipe.set_adapters(name, weight)."
        )
    if clip_skip is not None and whole_number("clip_skip", clip_skip):
        raise InputError(
            "clip_skip isn't supported: subject tokens were trained with the text encoder's last layer. Leave it out."
        )
