"""JSON, which comes from untrusted files: all of it is parsed here."""

import json
from typing import Any


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: The JSON text.
        finite: Whether NaN and Infinity, which Python's json reads and JSON doesn't have, are errors.

    Returns:
        The value.

    Raises:
        ValueError: If the text is not JSON, has too many levels, or has an object with a key twice, of which Python's
            json keeps the last value.

    Example:
        >>> parse_json('{"steps": 50}')
        {'steps': 50}
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant if finite else None)
    except RecursionError as error:
        raise ValueError("it has too many levels") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"the key {repeated[:60]!r} is given twice")
    return table


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
