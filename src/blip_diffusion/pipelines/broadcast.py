"""Broadcast lists: a single prompt, reference or category is repeated to the batch size."""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from blip_diffusion.errors import InputError

T = TypeVar("T")
OneOrMany: TypeAlias = T | Sequence[T]


def as_list(values: OneOrMany[T]) -> list[T]:
    """Return a list or tuple as a list, and anything else as a list of one."""
    return list(values) if isinstance(values, list | tuple) else [values]  # type: ignore[list-item]


def broadcast(values: list[T], size: int) -> list[T]:
    """Repeat a single value to the batch size."""
    return values * size if len(values) == 1 else values


def repeat(values: list[T], copies: int) -> list[T]:
    """Repeat each value, one after another: [a, b] to [a, a, b, b]."""
    return [value for value in values for _ in range(copies)]


def common_length(lengths: dict[str, int]) -> int:
    """Return the length of named lists, ignoring those of length 1. Raises `InputError` if lengths differ."""
    size = max(lengths.values())
    odd = {name: length for name, length in lengths.items() if length not in (1, size)}
    if odd or 0 in lengths.values():
        counts = ", ".join(f"{length} of {name}" for name, length in lengths.items() if length != 1)
        raise InputError(f"The lists don't match ({counts}): give one value, or as many as in the other lists.")
    return size
