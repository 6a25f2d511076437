"""Checks of the types and ranges of arguments: each returns the argument, or raises one sentence with its name."""

import inspect
import operator
from collections.abc import Sequence
from math import isfinite
from typing import Any, TypeVar

import numpy as np

from blip_diffusion.control_characters import check_text, is_unicode
from blip_diffusion.errors import InputError, quoted, reason

T = TypeVar("T")


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


def function(name: str, value: Any, *arguments: str, optional: bool = True) -> None:
    """Raise `InputError` unless a value is a function of these positional arguments, or `None` if that is allowed.

    The arguments of a builtin are not known.
    """
    if not callable(value) and not (optional and value is None):
        raise InputError(f"{name} is {quoted(value)}: use a function.")
    try:
        accepts = None if value is None else inspect.signature(value)
    except (TypeError, ValueError):
        return
    try:
        if accepts is not None:
            accepts.bind(*arguments)
    except TypeError as error:
        listing = f"{', '.join(arguments[:-1])} and {arguments[-1]}" if arguments[1:] else arguments[0]
        raise InputError(f"{name} can't be called ({reason(error)}): use a function of {listing}.") from error


def instance(name: str, value: Any, kind: type[T]) -> T:
    """Return an object of a class. Raises `InputError` for anything else, the class itself included."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is {quoted(value)}: use a {kind.__name__}.")
    return value
