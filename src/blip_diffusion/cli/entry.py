"""The entry point of a process: an interrupt ends it with one line and exit code 130, during imports too."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = b"blip-diffusion: interrupted\n"
IMPORTS = "<frozen importlib._bootstrap>"


def run() -> int:
    """Run the command line of this process and return its exit code.

    Compiled modules that are being imported replace a KeyboardInterrupt by other errors, or lose it. During an import
    the process therefore ends at once; otherwise KeyboardInterrupt is raised, as usual, so that files are cleaned up.
    """
    signal.signal(signal.SIGINT, _interrupt)
    try:
        from blip_diffusion.cli.main import main

        return main()
    except KeyboardInterrupt:
        _exit()
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the result is complete: shutdown is not interrupted


def _interrupt(_number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == IMPORTS:
            _exit()
        frame = frame.f_back
    raise KeyboardInterrupt


def _exit() -> None:
    """End the process without the interpreter's shutdown, which could print a traceback."""
    sys.stdout.flush()
    os.write(2, INTERRUPTED)
    os._exit(130)
