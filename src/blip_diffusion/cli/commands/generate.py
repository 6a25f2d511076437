"""`blip-diffusion generate`: draw a subject in the scene that a sentence describes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from blip_diffusion.cli.flags import check_used, device_flags, said, speed_flags
from blip_diffusion.cli.startup import importing
from blip_diffusion.errors import InputError

if TYPE_CHECKING:
    from blip_diffusion.generation.run import ControlOrder

BESIDE_AGAIN = ("again", "command", "out", "sheet", "device", "model", "controlnet")
"""What may be said with `--again`: where, and of which model and nets."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(command=run)
    parser.add_argument(
        "prompt", nargs="*", default=[], help='the scene, for example "on the beach"; several make several pictures'
    )
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the picture of the subject")
    parser.add_argument("--category", metavar="WORD", help="what the subject is, for example dog")
    parser.add_argument(
        "--subject",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="a tuned subject instead of a reference; several are mixed",
    )
    parser.add_argument("--target-category", metavar="WORD", help="what it shall be drawn as (default: the category)")
    parser.add_argument(
        "--again",
        type=Path,
        metavar="PNG",
        help="make the picture of this file once more; no prompt, no other flag of how",
    )
    parser.add_argument("--model", default=None, help="mini (default), a folder, or a hub id")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where pictures go (default: out)")
    parser.add_argument("--count", type=int, default=1, help="pictures of each prompt (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the others count up (default: 0)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="how strongly the prompt is followed (default: the model's own)")
    parser.add_argument("--negative", default="", metavar="WORDS", help="what shall not be seen")
    parser.add_argument(
        "--size", type=_size, metavar="PIXELS", help="of the pictures: 512, or 768x512 (default: the model's own)"
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="KIND=FILE[:SCALE]",
        help="keep the structure of a picture, for example canny=room.png:0.8; map=FILE is such a drawing already",
    )
    parser.add_argument(
        "--controlnet", action="append", default=[], metavar="KIND=MODEL", help="which ControlNet looks at it"
    )
    parser.add_argument(
        "--fit", choices=("crop", "squash", "pad"), default="crop", help="how the reference is cut square"
    )
    speed_flags(parser)
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also draw all pictures on one page")
    device_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if arguments.again is not None:
        _check_again(arguments)
    with importing():
        import blip_diffusion.pipelines.pipeline  # noqa: F401  # which the service needs next
        from blip_diffusion.generation import run as service
        from blip_diffusion.generation.subject_refs import subject_order

    if arguments.again is not None:
        order = service.order_of(arguments.again, model=arguments.model, nets=_nets(arguments.controlnet))
    else:
        if not arguments.prompt or not (arguments.subject or (arguments.reference and arguments.category)):
            raise InputError(
                "Say a prompt, and --reference FILE with --category WORD or --subject FILE; "
                "blip-diffusion generate --help tells more."
            )
        if arguments.subject and arguments.reference:
            raise InputError("A tuned subject needs no reference: say --subject or --reference.")
        if arguments.subject:
            check_used(arguments, add_flags, ("fit",), "with --subject")
        subjects = tuple(subject_order(*_weighted(text)) for text in arguments.subject)
        category = arguments.category or max(subjects, key=lambda subject: subject.weight).category
        order = service.Order(
            prompts=tuple(arguments.prompt),
            reference=service.reference_bytes(arguments.reference) if arguments.reference else subjects[0].picture,
            category=category,
            target_category=arguments.target_category or category,
            subjects=subjects,
            model=arguments.model or "mini",
            count=arguments.count,
            seed=arguments.seed,
            steps=arguments.steps,
            guidance=arguments.guidance,
            negative=arguments.negative,
            width=arguments.size and arguments.size[0],
            height=arguments.size and arguments.size[1],
            controls=_controls(arguments.control, _nets(arguments.controlnet)),
            fit=arguments.fit,
            preset=arguments.preset or "",
            engine=arguments.engine,
            dtype=arguments.dtype or service.dtype_of(arguments.preset, arguments.device),
        )
    for path in service.draw(order, arguments.out, device=arguments.device, sheet=arguments.sheet):
        print(path)


def _check_again(arguments: argparse.Namespace) -> None:
    """Raises `InputError` for what is asked beside `--again`: a picture's file says it all, so it would be dropped."""
    dropped = [
        "the prompt" if name == "prompt" else f"--{name.replace('_', '-')}"
        for name in said(arguments, add_flags)
        if name not in BESIDE_AGAIN
    ]
    if dropped:
        raise InputError(
            f"--again makes a picture as it was made before: leave out {', '.join(dropped)}, or leave out --again."
        )


def _weighted(text: str) -> tuple[Path, float]:
    """`rex.safetensors` or `rex.safetensors:0.3`."""
    if Path(text).is_file() or ":" not in text:
        return Path(text), 1.0
    path, number = text.rsplit(":", 1)
    try:
        return Path(path), float(number)
    except ValueError:
        raise InputError(f"--subject {text} has the weight {number!r}: use a number, 0.5 is half of it.") from None


def _size(text: str) -> tuple[int, int]:
    """Width and height."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: use 512, or 768x512 for width and height")
    return int(sides[0]), int(sides[-1])


def _nets(named: list[str]) -> dict[str, str]:
    """`--controlnet canny=FOLDER`, any number of them, one a kind."""
    return dict(_pair("--controlnet", text) for text in named)


def _controls(asked: list[str], nets: dict[str, str]) -> tuple[ControlOrder, ...]:
    """`--control canny=room.png:0.8`, any number of them, each with the net of its kind."""
    from blip_diffusion.generation import run as service

    controls = []
    for text in asked:
        kind, rest = _pair("--control", text)
        path, scale = rest, 1.0
        if not Path(rest).is_file() and ":" in rest:
            path, number = rest.rsplit(":", 1)
            try:
                scale = float(number)
            except ValueError:
                raise InputError(f"--control {text} has the scale {number!r}: use a number, 1 is usual.") from None
        controls.append(service.control_order(kind, Path(path), scale, nets.get(kind, "")))
    for idle in nets.keys() - {control.kind for control in controls}:
        raise InputError(f"--controlnet {idle} has nothing to look at: say --control {idle}=FILE.")
    return tuple(controls)


def _pair(flag: str, text: str) -> tuple[str, str]:
    kind, sign, rest = text.partition("=")
    if not (kind and sign and rest):
        raise InputError(f"{flag} {text} can't be understood: write KIND={'FILE' if flag == '--control' else 'MODEL'}.")
    return kind, rest
