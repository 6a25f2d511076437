"""One of a thing serves all: how prompts, references, words and pictures of different number meet."""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from blip_diffusion.errors import InputError

T = TypeVar("T")
OneOrMany: TypeAlias = T | Sequence[T]


def many(values: OneOrMany[T]) -> list[T]:
    """A list of one or of all."""
    return list(values) if isinstance(values, list | tuple) else [values]  # type: ignore[list-item]


def words(values: OneOrMany[str]) -> list[str]:
    """The same of strings, which are sequences themselves."""
    return [values] if isinstance(values, str) else list(values)


def spread(values: list[T], size: int) -> list[T]:
    """One of a thing serves all."""
    return values * size if len(values) == 1 else values


def copied(values: list[T], copies: int) -> list[T]:
    """Each so many times, one after another."""
    return [value for value in values for _ in range(copies)]


def common_length(lengths: dict[str, int]) -> int:
    """The one length of named lists, those of one aside. Raises `InputError` where they don't match."""
    size = max(lengths.values())
    odd = {name: length for name, length in lengths.items() if length not in (1, size)}
    if odd or 0 in lengths.values():
        counts = ", ".join(f"{length} of {name}" for name, length in lengths.items() if length != 1)
        raise InputError(f"The lists don't match ({counts}): use one of a thing, or as many as of the others.")
    return size
