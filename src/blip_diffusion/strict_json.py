"""JSON, which comes from untrusted files: all of it is parsed here."""

import json
from math import isfinite
from typing import Any

MAX_LEVELS = 100


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: The JSON text.
        finite: Whether numbers that are not finite are errors: NaN and Infinity, which Python's json reads and JSON
            doesn't have, and those too large for a float, such as 1e999.

    Returns:
        The value.

    Raises:
        ValueError: If the text is not JSON, has too many levels, or has an object with a key twice, of which Python's
            json keeps the last value.

    Example:
        >>> parse_json('{"steps": 50}')
        {'steps': 50}
    """
    constant, number = (_no_constant, _finite) if finite else (None, None)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=constant, parse_float=number)
    except RecursionError as error:
        raise ValueError("it has too many levels") from error
    _check_levels(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:60]!r} is given twice")
            seen.add(name)
    return table


def _check_levels(value: Any) -> None:
    """Raise `ValueError` for more than MAX_LEVELS levels: code that copies or writes tables is recursive."""
    level = [value]
    for _ in range(MAX_LEVELS):
        level = [one for table in level if isinstance(table, dict | list) for one in _inside(table)]
        if not level:
            return
    raise ValueError("it has too many levels")


def _inside(table: dict[str, Any] | list[Any]) -> list[Any]:
    """Return the tables and lists in a table or a list."""
    values = table.values() if isinstance(table, dict) else table
    return [value for value in values if isinstance(value, dict | list)]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:60]} is too large for a number")
    return number
