"""Escaping of foreign words, such as names in untrusted files, in errors, warnings and all that is printed."""

import re
import warnings

MAX_LINE = 2000
"""Most characters of a message; names in untrusted files may have any length."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, separators of lines, surrogates, and characters that change the displayed order of text."""


def escaped(text: str, *, lines: bool = False) -> str:
    """Return text with control characters escaped, and line breaks as well unless `lines` is set."""
    return UNPRINTABLE.sub(lambda found: "\n" if lines and found[0] == "\n" else _escaped(found[0]), text)


def printable(text: str, most: int = MAX_LINE) -> str:
    """Return text with control characters and line breaks escaped, shortened to so many characters."""
    return escaped(text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}")


def warn(message: str, *, stacklevel: int) -> None:
    """Issue a warning that quotes foreign words; `stacklevel` is that of `warnings.warn`."""
    warnings.warn(printable(message), stacklevel=stacklevel + 1)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
