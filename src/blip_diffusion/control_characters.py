"""Control characters, such as terminal escapes: refused in prompts and names, escaped in all that is printed."""

import json
import re
import sys
from typing import Any, TextIO

from blip_diffusion.errors import InputError
from blip_diffusion.escaping import escaped

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Unicode's category Cc without tab and line breaks, which separate words."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""What Python reads of bytes that aren't UTF-8."""


def first_control(text: str) -> str:
    """Return the first control character of a text other than a tab or a line break; empty without any."""
    return found[0] if (found := CONTROL.search(text)) else ""


def is_unicode(text: str) -> bool:
    """Return whether a text has no surrogates: they stand for bytes that aren't UTF-8, and can't be encoded."""
    return not SURROGATE.search(text)


def check_text(name: str, text: str) -> None:
    """Raise `InputError` for a text with a control character other than a tab or a line break.

    Args:
        name: What the text is: "prompt".
        text: The text.

    Raises:
        InputError: For a terminal escape, for example.

    Example:
        >>> check_text("prompt", "on the beach")
    """
    if letter := first_control(text):
        raise InputError(f"The {name} has the control character {letter!r}: remove it.")


def print_text(text: object, *, lines: bool = False, file: TextIO | None = None) -> None:
    """Print a line, or several lines if `lines` is set, with control characters escaped. All is printed by this."""
    print(escaped(str(text), lines=lines), file=file or sys.stdout, flush=True)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON in ASCII."""
    print(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"), flush=True)
