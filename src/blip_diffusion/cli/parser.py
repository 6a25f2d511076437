"""The parser of all commands, and the escaping of untrusted text for a terminal."""

import argparse
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from blip_diffusion.errors import InputError

MAX_LINE = 2000
"""Most characters of a message; names in untrusted files may have any length."""
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Control characters that change the displayed order of text."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses a flag given twice, where argparse would keep the last value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def error(self, message: str) -> NoReturn:
        """Print the usage and a message, and exit with 2."""
        super().error(printable(message))


class _Once(argparse.Action):
    """Store one value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._filled: argparse.Namespace | None = None

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None and self._filled is namespace:
            raise argparse.ArgumentError(self, "is given twice: give it once")
        self._filled = namespace
        setattr(namespace, self.dest, values)


def printable(text: str) -> str:
    """Return text with control characters and line breaks escaped, shortened to MAX_LINE."""
    shown = text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} … {text[-MAX_LINE // 2 :]}"
    return "".join(_escaped(letter) if _is_control(letter) else letter for letter in shown)


def check_utf8(values: Iterable[Any]) -> None:
    """Raise `InputError` for text with bytes that aren't UTF-8. Paths may hold them."""
    for value in values:
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and any(unicodedata.category(letter) == "Cs" for letter in text):
                raise InputError(f"{text!a} is not UTF-8: type it in a UTF-8 terminal, or write it to --prompts FILE.")


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in BIDI


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
