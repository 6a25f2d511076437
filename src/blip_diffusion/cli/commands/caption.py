"""`blip-diffusion caption`: write captions of images, or answer questions about them, with BLIP-2."""

import argparse
import json
import os
from pathlib import Path

from blip_diffusion.cli.flags import device_flags
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError

BATCH = 16


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    parser.add_argument(
        "--model", required=True, metavar="MODEL",
        help="a folder of the objective language, a BLIP-2 folder or hub id of transformers, or LAVIS' .pth",
    )  # fmt: skip
    parser.add_argument("--base", metavar="MODEL", help="for LAVIS' .pth: the model that has the frozen parts")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="words that the captions begin with")
    parser.add_argument("--question", metavar="TEXT", help="answer this question instead of writing captions")
    parser.add_argument("--num-beams", type=int, default=5, metavar="N", help="width of the beam search (default: 5)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest caption in tokens (default: 30, answers 10)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="JSONL",
        help="write a line with file_name and text for each image, in the format of an image folder's metadata.jsonl "
        "(default: print them)",
    )  # fmt: skip
    device_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from blip_diffusion.fileio import check_writable, write_text

    if arguments.question is not None and arguments.prompt:
        raise InputError("--question has a prompt of its own: leave --prompt out.")
    if arguments.out is not None:
        if arguments.out.is_dir():
            raise InputError(f"--out {arguments.out} is a folder: name a file, for example captions.jsonl.")
        check_writable(arguments.out.parent)
    paths = image_paths(arguments.images)
    names = [] if arguments.out is None else _file_names(paths, arguments.out)
    captions = _captions(arguments, paths)
    if arguments.out is None:
        _print_captions(paths, captions)
        return
    rows = ({"file_name": name, "text": text} for name, text in zip(names, captions, strict=True))
    try:
        write_text(arguments.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError:  # a full disk: the captions, which took long, are not lost
        _print_captions(paths, captions)
        raise
    print_text(arguments.out)


def _file_names(paths: list[Path], out: Path) -> list[str]:
    """Return the paths of images relative to a table. Raises `InputError` for one that isn't UTF-8."""
    from blip_diffusion.fileio import check_unicode

    start = out.resolve().parent
    relative = [Path(os.path.relpath(path.resolve(), start)) for path in paths]
    for path in relative:
        check_unicode(path, flag="The image")
    return [path.as_posix() for path in relative]


def _print_captions(paths: list[Path], captions: list[str]) -> None:
    for path, text in zip(paths, captions, strict=True):
        print_text(f"{path}: {text}")


def image_paths(sources: list[Path]) -> list[Path]:
    """Return image files from files and folders. Raises `InputError` if one is missing or a folder has none."""
    from blip_diffusion.data.photos import images_in
    from blip_diffusion.fileio import path_exists

    paths: list[Path] = []
    for source in sources:
        if not path_exists(source):
            raise InputError(f"There is no image at {source}: check the path.")
        inside = images_in(source) if source.is_dir() else [source]
        if not inside:
            raise InputError(f"There are no images in {source}: name PNG, JPEG or WebP files, or a folder of them.")
        paths += inside
    return paths


def _captions(arguments: argparse.Namespace, paths: list[Path]) -> list[str]:
    import torch

    from blip_diffusion.devices import device_of
    from blip_diffusion.images import open_image
    from blip_diffusion.pipelines.captioner import Captioner

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    device = device_of(arguments.device)
    captioner = Captioner.from_pretrained(arguments.model, base=arguments.base, torch_dtype=dtype).to(device)
    limit = {} if arguments.max_new_tokens is None else {"max_new_tokens": arguments.max_new_tokens}
    texts: list[str] = []
    for first in range(0, len(paths), BATCH):
        images = [open_image(path) for path in paths[first : first + BATCH]]
        if arguments.question is not None:
            texts += captioner.answer(images, arguments.question, arguments.num_beams, **limit)
        else:
            texts += captioner(images, arguments.prompt, arguments.num_beams, **limit)
    return texts
