"""Limits on the numbers and types of an untrusted configuration, checked before anything is built from it."""

import inspect
import types
from collections.abc import Mapping
from math import isfinite
from typing import Any, Union, get_args, get_origin

MAX_NUMBER = 10**6
"""Largest number: vocabularies and training steps are below."""
MAX_COUNTS = 200
MAX_TIMESTEPS = 10_000
MAX_ORDER = 10
MAX_SIDE = 4096
MAX_LATENT_SIDE = 256
"""Side of the latents that a U-Net generates by default: 2048 pixels."""
MAX_LIST, MAX_DEPTH = 10_000, 8
COUNTS = ("layers", "heads", "blocks", "depth", "num_hidden_layers", "num_attention_heads", "layers_per_block",
          "transformer_layers_per_block", "num_layers", "norm_num_groups", "num_query_tokens")  # fmt: skip
"""Keys of numbers of layers, heads and the like."""
SIDES = ("size", "image_size", "sample_size", "height", "width", "shortest_edge", "patch_size")


def check_config(table: Any, key: str = "", depth: int = 0) -> None:
    """Raise `ValueError` for a number that is too large or not finite.

    Args:
        table: A configuration, or a part of it.
        key: The key of the part.
        depth: Nesting depth of the part.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it has too many levels")
    if isinstance(table, Mapping):
        for name, value in table.items():
            check_config(value, str(name), depth + 1)
    elif isinstance(table, list | tuple):
        if len(table) > (64 if key.endswith(("block_types", "channels")) else MAX_LIST):
            raise ValueError(f"{key[:60]} has {len(table)} values")
        for value in table:
            check_config(value, key, depth + 1)
    elif isinstance(table, int | float) and not isinstance(table, bool):
        most = _most(key)
        if not isfinite(table) or abs(table) > most:
            raise ValueError(f"{key[:60]} is {str(table)[:20]}, at most {most} is allowed")


def _most(key: str) -> int:
    """Return the largest number under a key."""
    if key.endswith("_order"):  # of a solver: many are slow
        return MAX_ORDER
    if key.endswith("_timesteps"):
        return MAX_TIMESTEPS
    return MAX_COUNTS if key in COUNTS else MAX_SIDE if key in SIDES else MAX_NUMBER


def check_parameters(kind: type, table: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a setting of another type than that of the parameter of a class of diffusers.

    `None` is accepted where it, or false, is the default: files of older versions have it.
    """
    for name, parameter in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]
        value = table.get(name, parameter.default)
        if value is parameter.default or (value is None and parameter.default is False):
            continue
        if parameter.annotation is not parameter.empty and not _is_of(value, parameter.annotation):
            raise ValueError(f"{name} is {str(value)[:60]!r}, use {_words(parameter.annotation)}")


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value of JSON is of a type. Of lists, diffusers doesn't annotate the length."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, one) for one in arguments)
    if hint is Any:
        return True
    if (origin or hint) in (list, tuple):
        inner = [one for one in arguments if one is not ...] or [Any]
        return isinstance(value, list | tuple) and all(any(_is_of(one, kind) for kind in inner) for one in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float if hint is float else origin or hint)


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def check_sample_size(side: Any) -> None:
    """Raise `ValueError` for a U-Net's `sample_size` that is no side of latents."""
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_LATENT_SIDE:
        raise ValueError(f"sample_size is {str(side)[:60]}, use a whole number from 1 to {MAX_LATENT_SIDE}")
