"""Check the tensors, generators and options of a call before anything is computed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.argument_checks import whole_number
from blip_diffusion.errors import InputError, quoted


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
