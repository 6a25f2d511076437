"""The parser of all commands."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from blip_diffusion.control_characters import is_unicode
from blip_diffusion.errors import InputError
from blip_diffusion.escaping import printable


class Parser(argparse.ArgumentParser):
    """A parser that refuses empty paths, and a flag given twice, where argparse would keep the last value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _Once)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        """Print the usage and a message, and exit with 2."""
        super().error(printable(message))


def _path(text: str) -> Path:
    """Parse a path. An empty one, as of an unset variable of the shell, would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


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


def check_utf8(values: Iterable[Any]) -> None:
    """Raise `InputError` for text with bytes that aren't UTF-8. Paths may hold them."""
    for value in values:
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and not is_unicode(text):
                raise InputError(f"{text!a} is not UTF-8: type it in a UTF-8 terminal, or write it to --prompts FILE.")
