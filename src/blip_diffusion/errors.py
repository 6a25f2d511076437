"""What can go wrong for a user, one sentence each.

    BlipDiffusionError          any of the below: one sentence that says what to do
    ├── InputError              a picture, prompt, size or flag that can't be used
    ├── ConfigError             a key or value of a configuration
    ├── CheckpointError         a file or folder of weights that can't be used
    └── DataError               a source, world or data folder that can't be read or built

The command line prints the sentence and exits with 2; every other exception is a bug.
"""


class BlipDiffusionError(Exception):
    """A problem that the caller can mend; the message is one sentence that says how."""


class InputError(BlipDiffusionError, ValueError):
    """A picture, prompt, size or flag that can't be used."""


class ConfigError(BlipDiffusionError, ValueError):
    """A configuration key or value that can't be used."""


class CheckpointError(BlipDiffusionError):
    """Weights that are missing, damaged or made for something else."""


class DataError(BlipDiffusionError):
    """A data source, world file or folder that can't be read or built."""


def reason(error: Exception) -> str:
    """What a library says of a problem, in one line, to be quoted within a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__
