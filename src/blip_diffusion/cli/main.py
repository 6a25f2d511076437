"""The entry point: parse, call one command, print its result or one sentence. Torch is imported where it is used."""

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from blip_diffusion import __version__
from blip_diffusion.cli.commands import (
    app,
    caption,
    convert,
    data,
    doctor,
    edit,
    evaluate,
    evaluate_captions,
    evaluate_edits,
    generate,
    inpaint,
    invent,
    search,
    serve,
    train,
    train_control,
    train_mini,
    tune,
    tune_many,
)
from blip_diffusion.cli.parser import Parser, check_utf8
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import BlipDiffusionError, reason
from blip_diffusion.escaping import escaped, printable

COMMANDS = (
    ("generate", generate, "generate images of a subject in the scenes that prompts describe"),
    ("invent", invent, "generate a new subject from a word, without a reference"),
    ("edit", edit, "replace the subject of a photo and keep the rest"),
    ("inpaint", inpaint, "generate a subject in the white region of a mask and keep all other pixels"),
    ("app", app, "open a web page: generate, gallery, subjects, tuning, comparison"),
    ("serve", serve, "serve an HTTP API: OpenAI-compatible images, durable jobs, tuned subjects"),
    ("tune", tune, "personalize a model for your subject from a few photos"),
    ("tune-many", tune_many, "personalize a model for each subject of a folder, also on a Ray cluster"),
    ("train", train, "train a model from a TOML configuration"),
    ("train-mini", train_mini, "train mini from the start within a time limit"),
    ("train-control", train_control, "train adapters for structure control of a model within a time limit"),
    ("evaluate", evaluate, "score a model on a benchmark, with lower and upper bounds, and write a report"),
    ("evaluate-edits", evaluate_edits, "score edits of EditBench or PIE-Bench"),
    ("evaluate-captions", evaluate_captions, "score captions and retrieval of BLIP-2 on held-out images"),
    ("caption", caption, "write captions of images, or answer questions about them, with BLIP-2"),
    ("search", search, "find the images of a folder that a sentence describes, with BLIP-2"),
    ("convert", convert, "convert a model or a tuned subject between layouts and precisions"),
    ("data", data, "build the training data and look at samples"),
    ("doctor", doctor, "list devices, installed extras, metrics and models"),
)
Command = Callable[[argparse.Namespace], None]
CLOSED = 141
"""Exit code of a command whose output nothing reads any more: that of the signal SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0, 1 for a full disk or too little memory, 2 for an error that the user can correct, 130 when
        interrupted, 141 when the reader of the output, such as `head`, has ended.
    """
    _escape_unprintable()
    logging.setLogRecordFactory(EscapedRecord)
    try:
        try:
            _run(arguments)
        finally:
            _flush_output()
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except Exception as error:
        output_is_lost = _discard_output()
        return CLOSED if output_is_lost and isinstance(error, BrokenPipeError) else _exit_code(error)
    return 0


class EscapedRecord(logging.LogRecord):
    """A message of a library's log, which may quote untrusted files: control characters are escaped."""

    def getMessage(self) -> str:  # noqa: N802  # logging's name
        """Return the message."""
        return escaped(super().getMessage(), lines=True)


def _run(arguments: Sequence[str] | None) -> None:
    parsed = build_parser().parse_args(arguments)
    command: Command = parsed.command
    check_utf8(vars(parsed).values())
    with warnings.catch_warnings():
        warnings.showwarning = _ignore_warning if getattr(parsed, "quiet", False) else _show_warning
        command(parsed)


def _flush_output() -> None:
    """Write what was printed. The interpreter's shutdown would not report a full disk in a sentence."""
    if sys.stdout is not None:  # as with >&-
        sys.stdout.flush()


def _discard_output() -> bool:
    """Return whether the output can't be written. It is then discarded, or the shutdown would fail on it again."""
    try:
        _flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _exit_code(error: Exception) -> int:
    """Print the message of an error and return the exit code. A bug is raised again."""
    from blip_diffusion.fileio import is_bad_name, is_full

    if is_full(error):
        _print_error(f"The disk is full ({reason(error)}): free some space and run it again; complete files were kept.")
        return 1
    if isinstance(error, BlipDiffusionError):
        _print_error(str(error))
        return 2
    if is_bad_name(error):
        name = str(getattr(error, "filename", None) or "")
        _print_error(f"No file can have the name {name[:200]} ({reason(error)[:60]}): choose another.")
        return 2
    if _is_out_of_memory(error):
        _print_error(
            f"There is not enough memory ({reason(error)[:200]}): use a smaller size, or fewer images at once."
        )
        return 1
    raise error


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out, of the machine (also in PyTorch's allocator) or of a GPU."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _escape_unprintable() -> None:
    """Escape characters that the terminal's encoding lacks, instead of failing when results are printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands. A flag means the same in each of them."""
    parser = Parser(
        prog="blip-diffusion",
        description="Generate images of your subject in any scene, from one reference image and a text prompt.",
    )
    parser.add_argument("--version", action="version", version=f"blip-diffusion {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module, summary in COMMANDS:
        module.add_flags(commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."))
    return parser


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _print_error(str(message))


def _ignore_warning(*_: Any, **__: Any) -> None:
    pass


def _print_error(sentence: str) -> None:
    print_text(f"blip-diffusion: {printable(sentence)}", file=sys.stderr)
