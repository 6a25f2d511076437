"""The command line: parse, call one function, show the result or one sentence. Torch is imported where it is used."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from blip_diffusion import __version__
from blip_diffusion.cli.commands import convert, data, evaluate, generate, train, tune
from blip_diffusion.errors import BlipDiffusionError

COMMANDS = (
    ("generate", generate, "draw a subject in the scene that a sentence describes"),
    ("tune", tune, "learn a subject of one's own from a few photos"),
    ("train", train, "train what a TOML file says"),
    ("evaluate", evaluate, "score a model on a bench, with floors, ceilings and a page of all pictures"),
    (
        "convert",
        convert,
        "write a model as our folder or as LAVIS' files, with other parts or precision; or a tuned subject",
    ),
    ("data", data, "build the training world, and look at it"),
)
Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Exit codes: 0, 2 for what the caller can mend, 130 when interrupted."""
    parsed = build_parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command(parsed)
    except BlipDiffusionError as error:
        print(f"blip-diffusion: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("blip-diffusion: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags; a flag means the same everywhere."""
    parser = argparse.ArgumentParser(prog="blip-diffusion", description="One picture and a sentence in, pictures out.")
    parser.add_argument("--version", action="version", version=f"blip-diffusion {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module, summary in COMMANDS:
        module.add_flags(commands.add_parser(name, help=summary))
    return parser


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"blip-diffusion: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
