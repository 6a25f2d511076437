"""The errors that a user can correct, one sentence each, each class with a stable code.

    BlipDiffusionError   "error"              any of the below
    ├── InputError       "invalid_input"      an image, prompt, size or flag that can't be used
    ├── ConfigError      "invalid_config"     a key or value of a configuration
    ├── CheckpointError  "invalid_checkpoint" a file or folder of weights that can't be used
    └── DataError        "invalid_data"       a source, dataset or data folder that can't be read or built

The command line prints the sentence and exits with 2; every other exception is a bug.
"""

from typing import Any, ClassVar

from blip_diffusion.escaping import printable

MAX_REASON = 400
"""Most characters of a library's message."""
MAX_QUOTED = 100
"""Longest quotation of a value, in characters."""


class BlipDiffusionError(Exception):
    """A problem that the caller can correct; the message is one sentence that says how.

    Example:
        >>> try:
        ...     pipe("on the beach")
        ... except BlipDiffusionError as error:
        ...     print(error.code, error)
    """

    code: ClassVar[str] = "error"
    """Stable identifier of the kind of error, unlike the message."""

    def __str__(self) -> str:
        """Return the message on one line; it may quote names of untrusted files, so control characters are escaped."""
        return printable(super().__str__())


class InputError(BlipDiffusionError, ValueError):
    """An image, prompt, size or flag that can't be used."""

    code: ClassVar[str] = "invalid_input"


class ConfigError(BlipDiffusionError, ValueError):
    """A configuration key or value that can't be used."""

    code: ClassVar[str] = "invalid_config"


class CheckpointError(BlipDiffusionError):
    """Weights that are missing, damaged or made for something else."""

    code: ClassVar[str] = "invalid_checkpoint"


class DataError(BlipDiffusionError):
    """A data source, dataset file or folder that can't be read or built."""

    code: ClassVar[str] = "invalid_data"


def reason(error: Exception) -> str:
    """Return a library's message as one line, to be quoted within a sentence."""
    lines = str(error).strip().splitlines()
    return printable(lines[0].rstrip(".: "), MAX_REASON) if lines else type(error).__name__


def quoted(value: Any) -> str:
    """Return a value's representation as a short line, also of arrays and tensors."""
    text = repr(value) if isinstance(value, str | bytes) else " ".join(repr(value).split())
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 2]} …"
