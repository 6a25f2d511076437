"""Control characters, such as terminal escapes: refused in prompts and names, escaped in all that is printed."""

import json
import sys
import unicodedata
from typing import Any, TextIO

from blip_diffusion.errors import InputError

MAX_LINE = 2000
"""Most characters of a message; names in untrusted files may have any length."""
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Control characters that change the displayed order of text."""
BLANKS = "\t\n\r"
"""Control characters that text may have: they separate words."""


def first_control(text: str) -> str:
    """Return the first control character of a text other than a tab or a line break; empty without any."""
    return next((one for one in text if unicodedata.category(one) == "Cc" and one not in BLANKS), "")


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


def escaped(text: str, *, lines: bool = False) -> str:
    """Return text with control characters escaped, and line breaks as well unless `lines` is set."""
    return "".join(_escaped(letter) if _is_control(letter) and not (lines and letter == "\n") else letter
                   for letter in text)  # fmt: skip


def printable(text: str) -> str:
    """Return text with control characters and line breaks escaped, shortened to MAX_LINE."""
    return escaped(text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} … {text[-MAX_LINE // 2 :]}")


def print_text(text: object, *, lines: bool = False, file: TextIO | None = None) -> None:
    """Print a line, or several lines if `lines` is set, with control characters escaped. All is printed by this."""
    print(escaped(str(text), lines=lines), file=file or sys.stdout, flush=True)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON in ASCII."""
    print(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"), flush=True)


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in BIDI


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
