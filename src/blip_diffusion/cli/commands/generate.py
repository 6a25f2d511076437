"""`blip-diffusion generate`: generate images of a subject in the scenes that prompts describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from blip_diffusion.cli.flags import (
    MODEL_HELP,
    RESIZE_MODES,
    acceleration_flags,
    adapter_flags,
    adapter_refs,
    backend_flags,
    changed_flags,
    check_adapters,
    check_backend,
    check_screening,
    check_used,
    device_flags,
    screening_flags,
)
from blip_diffusion.cli.startup import importing
from blip_diffusion.cli.subject_flags import (
    box_flag,
    check_subject_files,
    request_subjects,
    several_subjects_flags,
    subjects_of,
    target_of,
)
from blip_diffusion.cli.values import check_file, kind_and_value, path_and_number, prompts_of, seed, size
from blip_diffusion.control_characters import print_json, print_text
from blip_diffusion.errors import InputError
from blip_diffusion.optional_packages import require_package

if TYPE_CHECKING:
    from blip_diffusion.generation.edit_request import EditInput
    from blip_diffusion.generation.request import ControlInput, GenerationRequest

USED_BY_REPRODUCE = (
    "reproduce",
    "command",
    "out",
    "grid",
    "device",
    "model",
    "controlnet",
    "json",
    "quiet",
    "skip_existing",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("prompt", nargs="*", default=[], help='one or more scenes, for example "on the beach"')
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="more scenes, one on each line of a UTF-8 file")
    _subject_flags(parser)
    adapter_flags(parser)
    parser.add_argument("--model", default=None, help=MODEL_HELP)
    parser.add_argument(
        "--upscale", default="", metavar="MODEL", help="a model that enlarges the images, see the guide"
    )
    output_flags(parser)
    sampling_flags(parser)
    box_flag(parser)
    several_subjects_flags(parser)
    control_flags(parser)
    acceleration_flags(parser)
    device_flags(parser)


def sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add steps, guidance, negative prompt and size."""
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument(
        "--guidance-scale", type=float, help="weight of classifier-free guidance; 1 is off (default: the model's)"
    )
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what should not appear")
    parser.add_argument(
        "--prompt-weighting",
        action="store_true",
        help='words have weights: "on the (beach)1.5" or "(beach:1.5)" (extra weighting)',
    )
    parser.add_argument("--size", type=size, metavar="PIXELS", help="image size: 512, or 768x512 for width and height")


def _subject_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--category",
        action="append",
        default=[],
        metavar="WORD",
        help="what the subject is, for example dog; repeat for several subjects, with one --reference for each",
    )
    parser.add_argument(
        "--target-category",
        action="append",
        default=[],
        metavar="WORD",
        help="what to generate the subject as (default: --category)",
    )
    source_flags(parser)


def source_flags(parser: argparse.ArgumentParser) -> None:
    """Add where the subject comes from, and --reproduce."""
    parser.add_argument(
        "--reference",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the reference image of the subject; repeat for the mean of several",
    )
    parser.add_argument(
        "--resize-mode", choices=RESIZE_MODES, help="how the reference becomes square (default: the model's)"
    )
    parser.add_argument(
        "--subject",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="a tuned subject file instead of --reference; repeat to mix several",
    )
    parser.add_argument(
        "--reproduce", type=Path, metavar="PNG", help="regenerate the image in this PNG from its embedded settings"
    )


def output_flags(parser: argparse.ArgumentParser) -> None:
    """Add where images go, how many there are, and what is printed."""
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the images (default: out)"
    )
    parser.add_argument("--num-images", type=int, default=1, metavar="N", help="images per prompt (default: 1)")
    parser.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N|random",
        help="seed of the first image; incremented for each next one (default: 0); it is part of the file name",
    )
    parser.add_argument("--grid", type=Path, metavar="PNG", help="also write all images as one grid")
    screening_flags(parser)
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="keep images that the same command has written",
    )
    backend_flags(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object for each file instead of its path")
    parser.add_argument("--quiet", action="store_true", help="print no paths, bars and warnings, only errors")


def control_flags(parser: argparse.ArgumentParser) -> None:
    """Add --control, --controlnet and --control-guidance-end."""
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="KIND=FILE[:SCALE]",
        help="keep the structure of an image, for example canny=room.png:0.8; mask=FILE is the mask of the subject, "
        "depth=FILE and normal=FILE a map of it or a photo, map=FILE any ready-made control map",
    )
    parser.add_argument(
        "--controlnet", action="append", default=[], metavar="KIND=MODEL", help="the ControlNet for a kind of control"
    )
    parser.add_argument(
        "--control-guidance-end",
        type=float,
        action="append",
        default=[],
        metavar="SHARE",
        help="share of the steps after which the control no longer acts (default: 1); 0.7 keeps more of the subject; "
        "repeat for one for each --control",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if reproduced(arguments, add_flags):
        return
    arguments.prompt = [*arguments.prompt, *prompts_of(arguments.prompts)]
    _check_usage(arguments)
    run_request(arguments)


def reproduced(arguments: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], None]) -> bool:
    """Generate the image of --reproduce again, of a command with these flags. Return whether that was requested."""
    if arguments.reproduce is None:
        return False
    _check_reproduce(arguments, add_flags)
    run_request(arguments)
    return True


def run_request(arguments: argparse.Namespace, edit: Callable[[argparse.Namespace], EditInput] | None = None) -> None:
    """Build the request of checked arguments, of an edit if `edit` reads one from them, and run it."""
    with importing():
        import blip_diffusion.pipelines.pipeline  # noqa: F401  # needed next, imported without the collector
        from blip_diffusion.generation.run import run as generate
    request = _request(arguments, edit)
    generate(
        request,
        arguments.out,
        device=arguments.device,
        grid=arguments.grid,
        on_saved=partial(_print_saved, arguments),
        progress=not arguments.quiet,
        backend=arguments.on,
        actors=arguments.actors,
        skip_existing=arguments.skip_existing,
    )


def _print_saved(arguments: argparse.Namespace, path: Path, prompt: str | None, seed: int | None) -> None:
    if arguments.json:
        print_json({"path": str(path), "prompt": prompt, "seed": seed})
    elif not arguments.quiet:
        print_text(path)


def _request(
    arguments: argparse.Namespace, edit: Callable[[argparse.Namespace], EditInput] | None
) -> GenerationRequest:
    from blip_diffusion.generation.png_metadata import read_request
    from blip_diffusion.generation.request import GenerationRequest, read_reference
    from blip_diffusion.generation.subject_refs import subject_ref
    from blip_diffusion.pipelines.presets import default_dtype

    controlnets = _controlnets(arguments.controlnet)
    if arguments.reproduce is not None:
        return read_request(
            arguments.reproduce, model=arguments.model, controlnets=controlnets, device=arguments.device
        )
    subjects = tuple(subject_ref(*path_and_number("--subject", text, "weight")) for text in arguments.subject)
    category = (arguments.category or [max(subjects, key=lambda subject: subject.weight).category])[0]
    first, *more = [read_reference(path) for path in subjects_of(arguments)[0].references] or [b""]
    return GenerationRequest(
        prompts=tuple(arguments.prompt),
        reference=subjects[0].thumbnail if subjects else first,
        more_references=tuple(more),
        category=category,
        target_category=target_of(arguments) or category,
        subjects=subjects,
        **adapter_refs(arguments),
        model=_model_of(arguments),
        num_images=arguments.num_images,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        negative_prompt=arguments.negative_prompt,
        prompt_weighting=arguments.prompt_weighting,
        safety_checker=arguments.safety_checker,
        watermark=arguments.watermark,
        width=arguments.size and arguments.size[0],
        height=arguments.size and arguments.size[1],
        controls=_controls(arguments, controlnets),
        resize_mode=arguments.resize_mode,
        **request_subjects(arguments),
        preset=arguments.preset or "",
        engine=arguments.engine,
        dtype=arguments.dtype or default_dtype(arguments.preset, arguments.device),
        edit=edit and edit(arguments),
        upscaler=getattr(arguments, "upscale", ""),  # a flag of generate alone
    )


def _check_usage(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for mistakes that can be detected before torch is imported."""
    _check_subject(arguments)
    check_values(arguments)


def check_values(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for numbers out of range and files that are missing."""
    from blip_diffusion.generation.limits import check_limits

    check_backend(arguments)
    check_limits(
        prompts=arguments.prompt,
        num_images=arguments.num_images,
        steps=arguments.steps,
        seed=arguments.seed,
        guidance_scale=arguments.guidance_scale,
    )
    check_subject_files(arguments)
    if arguments.prompt_weighting:
        require_package("compel", "weighting", "--prompt-weighting")
    check_screening(arguments)
    for text in arguments.subject:
        check_file("subject", path_and_number("--subject", text, "weight")[0])
    check_adapters(arguments)
    _controlnets(arguments.controlnet)
    _control_ends(arguments)


def _check_subject(arguments: argparse.Namespace) -> None:
    """Raise `InputError` unless there is a prompt and exactly one source of the subject."""
    words_explained = arguments.reference or arguments.lora or arguments.embedding
    if not (arguments.prompt and (arguments.subject or (words_explained and arguments.category))):
        raise InputError(
            "A prompt, --reference FILE and --category WORD are needed, or a prompt and --subject FILE: "
            "see blip-diffusion generate --help."
        )
    if arguments.subject and arguments.reference:
        raise InputError("--subject and --reference exclude each other: give one of them.")
    if not arguments.reference:
        where = "with --subject" if arguments.subject else "without --reference"
        check_used(arguments, add_flags, ("resize_mode",), where)


def _check_reproduce(arguments: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    """Raise `InputError` for flags next to --reproduce that the PNG file decides."""
    ignored = [
        f"the {name}" if name in ("prompt", "photo") else f"--{name.replace('_', '-')}"
        for name in changed_flags(arguments, add_flags)
        if name not in USED_BY_REPRODUCE
    ]
    if ignored:
        raise InputError(f"--reproduce takes all settings from the PNG: remove {', '.join(ignored)}, or --reproduce.")


def _controlnets(texts: list[str]) -> dict[str, str]:
    """Parse `--controlnet canny=FOLDER`, at most one per kind."""
    pairs = [kind_and_value("--controlnet", text, "MODEL") for text in texts]
    kinds = [kind for kind, _ in pairs]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise InputError(f"--controlnet {kind} is given twice: give one for each kind.")
    return dict(pairs)


def _control_ends(arguments: argparse.Namespace) -> list[float]:
    """Return the end of each --control; one number is for all of them."""
    from blip_diffusion.generation.limits import check_control_end

    ends, count = arguments.control_guidance_end, len(arguments.control)
    if ends and not count:
        raise InputError("--control-guidance-end has no effect: add --control KIND=FILE.")
    if len(ends) > 1 and len(ends) != count:
        raise InputError(f"There are {len(ends)} --control-guidance-end for {count} --control: give one, or one each.")
    for end in ends:
        check_control_end(end)
    return list(ends) if len(ends) > 1 else (ends or [1.0]) * count


def _model_of(arguments: argparse.Namespace) -> str:
    return "mini" if arguments.model is None else str(arguments.model)


def _controls(arguments: argparse.Namespace, controlnets: dict[str, str]) -> tuple[ControlInput, ...]:
    """Parse `--control canny=room.png:0.8` and compute the control maps at the size of the generated image."""
    from blip_diffusion.checkpoint.default_size import default_side
    from blip_diffusion.generation.request import read_control

    controls, side = [], None
    if arguments.control:
        side = min(arguments.size) if arguments.size else default_side(_model_of(arguments))
    for text, end in zip(arguments.control, _control_ends(arguments), strict=True):
        kind, rest = kind_and_value("--control", text, "FILE")
        path, scale = path_and_number("--control", rest, "scale")
        controls.append(read_control(kind, path, scale, controlnets.get(kind, ""), end=end, side=side))
    for unused in controlnets.keys() - {control.kind for control in controls}:
        raise InputError(f"--controlnet {unused} has no effect: add --control {unused}=FILE.")
    return tuple(controls)
