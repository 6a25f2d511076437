"""Write generated images: file names, collisions, metadata, and the grid of all images."""

import io
import itertools
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from PIL import Image, ImageOps, PngImagePlugin

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.fileio import atomic_file, check_writable, is_full
from blip_diffusion.generation.png_metadata import METADATA, encode, read_raw
from blip_diffusion.generation.request import GenerationRequest

MAX_NAME = 48


def png_files(request: GenerationRequest, results: list[Image.Image], jobs: list[tuple[str, int]]) -> list[bytes]:
    """Return the PNG file of each (prompt, seed), which holds its settings."""
    pairs = zip(results, jobs, strict=True)
    return [png_with_metadata(image, _metadata(request, job)) for image, job in pairs]


def save_images(
    request: GenerationRequest, files: list[bytes], jobs: list[tuple[str, int]], out: Path, taken: set[Path]
) -> list[Path]:
    """Write the PNG file of each (prompt, seed), never over a file in `taken` or over a file of another request.

    The new files are added to `taken`.
    """
    paths: list[Path] = []
    for data, job in zip(files, jobs, strict=True):
        path = _destination(request, job, out, taken)
        _save(data, path)
        taken.add(path)
        paths.append(path)
    return paths


def existing_images(request: GenerationRequest, jobs: list[tuple[str, int]], out: Path) -> list[Path]:
    """Return the files that the same request has written for each (prompt, seed); none unless all exist."""
    paths: list[Path] = []
    for job in jobs:
        paths.append(_destination(request, job, out, set(paths)))
    return paths if all(path.exists() for path in paths) else []


def _destination(request: GenerationRequest, job: tuple[str, int], out: Path, taken: set[Path]) -> Path:
    """Return the path of an image. If it exists, the same request has written it."""
    prompt, seed = job
    title = prompt if request.edit is None or prompt else request.edit.title(request.target_category)
    return _free_path(out / f"{_slug(title)}-{seed}.png", _metadata(request, job), taken)


def _metadata(request: GenerationRequest, job: tuple[str, int]) -> str:
    prompt, seed = job
    return encode(request, prompt=prompt, seed=seed, num_images=1)


def save_grid(request: GenerationRequest, results: list[Image.Image], path: Path, taken: set[Path]) -> Path:
    """Write the grid of all images of a request and return its path."""
    metadata = encode(request)
    path = _free_path(path, metadata, taken)
    _save(png_with_metadata(_grid(request, results), metadata), path, flag="--grid")
    return path


def check_grid_path(path: Path) -> None:
    """Raise `InputError` if the grid cannot be written there. Called before anything is generated."""
    check_writable(path.parent, flag="--grid")
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"--grid {path} must be a file that ends in .png, for example grid.png.")
    if path.exists() and read_raw(path) is None:
        raise InputError(f"--grid {path} exists and was not written by blip-diffusion: choose another name.")


def _free_path(path: Path, metadata: str, taken: set[Path]) -> Path:
    """Return the first of `path` and its variants with _2, _3 … that doesn't belong to another request."""
    others = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(
        candidate
        for candidate in itertools.chain([path], others)
        if candidate not in taken and (not candidate.exists() or read_raw(candidate) == metadata)
    )


def png_with_metadata(image: Image.Image, metadata: str, others: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return an image as a PNG file that holds its settings.

    Args:
        image: The image.
        metadata: What `png_metadata.encode` returns.
        others: Further text chunks, by name.

    Returns:
        The bytes of the file.
    """
    information = PngImagePlugin.PngInfo()
    for name, text in {METADATA: metadata, **others}.items():
        information.add_text(name, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


def _save(data: bytes, path: Path, *, flag: str = "--out") -> None:
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        if is_full(error):
            raise
        raise InputError(f"{path} can't be written ({error.strerror or error}): choose another {flag}.") from error


def _slug(prompt: str) -> str:
    """Return the letters and digits of a prompt, of any script, joined by `-`."""
    letters = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else "-" for c in prompt.lower()[: 4 * MAX_NAME])
    return re.sub("-+", "-", "".join(letters)).strip("-")[:MAX_NAME].strip("-") or "image"


def _grid(request: GenerationRequest, results: list[Image.Image]) -> Image.Image:
    """Place the reference at the left, one column per prompt, one row per seed."""
    reference = Image.new("RGB", results[0].size, "white")
    if request.reference:
        reference = images.as_rgb(images.open_image(io.BytesIO(request.reference)))
    if request.blend_row:
        return _row_of_mixtures(request, results, reference)
    first = ImageOps.pad(reference, results[0].size, color="white")
    if results[0].width == results[0].height:
        mode = "pad" if request.resize_mode in (None, "subject") else request.resize_mode
        first = images.fit_square(reference, results[0].width, mode)
    blank = Image.new("RGB", first.size, "white")
    cells = []
    for copy in range(request.num_images):
        cells += [first if copy == 0 else blank, *results[copy :: request.num_images]]
    return images.grid(cells, len(request.prompts) + 1)


def _row_of_mixtures(request: GenerationRequest, results: list[Image.Image], first: Image.Image) -> Image.Image:
    """Place the mixtures from left to right between the two references, one row per prompt and seed."""
    last = images.as_rgb(images.open_image(io.BytesIO(request.more_subjects[0].references[0])))
    ends = [ImageOps.pad(one, results[0].size, color="white") for one in (first, last)]
    rows = len(results) // request.blend_row  # results: all prompts and seeds of one mixture after another
    cells = [cell for row in range(rows) for cell in (ends[0], *results[row::rows], ends[1])]
    return images.grid(cells, request.blend_row + 2)
