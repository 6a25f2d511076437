"""A user's photos of one subject: read, checked, cropped to squares, masked, and batched.

Letters: `P` photos, `S` their side, `C H W` latents.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.argument_checks import listed
from blip_diffusion.data.captioned.image_folder import caption_reader
from blip_diffusion.errors import InputError, quoted
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import as_path, path_exists
from blip_diffusion.images import MAX_PHOTOS, ResizeMode

MAX_CLASS_IMAGES = 1000
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif")
"""Suffixes of images in folders; a file given by its path may have any."""

Segmenter = Callable[[Image.Image], Image.Image]
"""An RGB image to a mask of its size, mode L, white on the main subject."""
Masks = Literal["auto", "none"] | Sequence[Path]
"""`auto`: an image's transparency, or else a segmenter; `none`; or files, one per photo."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An image, and the mask of its subject."""

    name: str
    image: Image.Image  # upright RGB
    mask: Image.Image | None = None  # mode L, of the same size: white is the subject
    caption: str = ""  # from the text file beside it


class PhotoBatch(TypedDict):
    """Latents of photos, and masks for the weights of errors."""

    latents: Tensor  # (B, C, H, W)
    mask: Tensor  # (B, 1, H, W) in [0, 1]: 1 on the subject; without a mask, 1 everywhere
    scenes: NotRequired[list[str]]  # B: the rest of each photo's caption, without the subject
    prior: NotRequired[Tensor]  # (B, C, H, W) of class images


Source = str | Path | Image.Image


def read_photos(sources: Sequence[Source], *, masks: Masks = "auto", segmenter: Segmenter | None = None) -> list[Photo]:
    """Read images, image files, and the images in folders.

    An image that can't be used is left out with a warning. Raises `InputError` if none is left, if there are too many,
    and for masks that don't match.
    """
    files = _files(sources)
    mask_files = _mask_files(files, masks)
    read_photo = partial(_read, use_alpha=masks == "auto", segmenter=segmenter, caption_of=caption_reader())
    photos, problems = [], []
    for number, (source, mask) in enumerate(zip(files, mask_files, strict=True), start=1):
        try:
            photos.append(read_photo(source, f"photo {number}", mask))
        except InputError as error:
            problems.append(str(error))
    if not photos:
        raise InputError(f"None of the {len(files)} photos can be used: {problems[0]}")
    for problem in problems:
        warn(f"A photo is left out. {problem}", stacklevel=2)
    return photos


def read_class_images(folder: Path) -> list[Photo]:
    """Read other members of a category, for prior preservation.

    Raises:
        InputError: If there are none or too many, or one can't be read.
    """
    if not path_exists(folder, Path.is_dir):
        raise InputError(f"There is no folder of class images at {folder}: check the path.")
    files = images_in(folder)
    if not 0 < len(files) <= MAX_CLASS_IMAGES:
        raise InputError(f"There are {len(files)} class images in {folder}: use 1 to {MAX_CLASS_IMAGES}.")
    return [Photo(path.name, images.open_image(path)) for path in files]


def _files(sources: Sequence[Source]) -> list[Path | Image.Image]:
    files: list[Path | Image.Image] = []
    for source in listed("photos", sources, "images, files or folders"):
        if isinstance(source, Image.Image):
            files.append(source)
            continue
        path = as_path("a photo", source)
        if not path_exists(path):
            raise InputError(f"There is no photo at {path}: check the path.")
        inside = images_in(path) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"There are no images in {path}: name PNG, JPEG or WebP files, or a folder of them.")
        files += inside
    if not files:
        raise InputError("There are no photos: name one to thirty images of the subject, or a folder of them.")
    if len(files) > MAX_PHOTOS:
        raise InputError(
            f"There are {len(files)} photos: choose at most {MAX_PHOTOS} good ones, three to seven are usual."
        )
    return files


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder; ignore hidden files, such as macOS's `._dog.png`, and warn of subfolders."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if folders := [path.name for path in inside if path.is_dir()]:
        warn(f"Images in {folder / folders[0]} aren't read: name that folder too.", stacklevel=4)
    return [path for path in inside if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]


def _mask_files(files: Sequence[object], masks: Masks) -> Sequence[Path | None]:
    if isinstance(masks, str):
        if masks not in ("auto", "none"):
            raise InputError(f"There are no masks called {quoted(masks)}: use auto, none, or a file for each photo.")
        return [None] * len(files)
    masks = [as_path("a mask", mask) for mask in listed("masks", masks, "files")]
    if len(masks) != len(files):
        raise InputError(f"There are {len(masks)} masks for {len(files)} photos: name one for each, in their order.")
    return masks


def _read(
    source: Path | Image.Image,
    name: str,
    mask: Path | None,
    *,
    use_alpha: bool,
    segmenter: Segmenter | None,
    caption_of: Callable[[Path], str],
) -> Photo:
    if isinstance(source, Image.Image):
        images.check_size(source, name)
        image, alpha = _opened(source)
    else:
        name, (image, alpha) = source.name, images.read_image(source, _opened)
    caption = caption_of(source) if isinstance(source, Path) else ""
    if mask is not None:
        return Photo(name, image, _mask(mask, image), caption)
    if not use_alpha:
        return Photo(name, image, caption=caption)
    if alpha is None and segmenter is not None:
        predicted = _predicted(segmenter, image)
        alpha = predicted if predicted.getextrema()[1] else None  # an empty mask: no subject was detected
    return Photo(name, image, alpha, caption)


def _predicted(segmenter: Segmenter, image: Image.Image) -> Image.Image:
    """Return the mask of a segmenter. Raises `InputError` if it is no mask of the image's size."""
    mask = segmenter(image)
    if not isinstance(mask, Image.Image) or (mask.mode, mask.size) != ("L", image.size):
        raise InputError(f"The segmenter returned {quoted(mask)}: return an image of mode L, as large as the photo.")
    return mask


def _opened(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    return images.as_rgb(image), images.alpha_of(image)


def _mask(path: Path, image: Image.Image) -> Image.Image:
    mask = images.read_image(path, _painted)
    if abs(mask.width / mask.height - image.width / image.height) > 0.02:
        raise InputError(f"The mask {path} is {mask.width} x {mask.height}, of another shape than its photo.")
    if mask.getextrema()[1] == 0:
        raise InputError(f"The mask {path} is entirely black: paint the subject white in it.")
    return mask.resize(image.size, Image.Resampling.BILINEAR)


def _painted(mask: Image.Image) -> Image.Image:
    """Return a mask's white part, or the opaque part of a cut-out."""
    alpha = images.alpha_of(mask)
    return images.as_rgb(mask).convert("L") if alpha is None else alpha


def squares(photos: Sequence[Photo], size: int, fit: ResizeMode = "crop") -> tuple[Tensor, Tensor]:
    """Return pixels (P, 3, S, S) and masks (P, 1, S, S) of photos, in [0, 1]; a missing mask is 1 everywhere."""
    pixels = images.to_tensor([images.fit_square(photo.image, size, fit) for photo in photos])
    covered = images.to_tensor([_square_mask(photo.mask, size, fit) for photo in photos])[:, :1]
    empty = [photo.name for photo, mask in zip(photos, covered, strict=True) if not mask.any()]
    if empty and fit == "crop":
        raise InputError(f"The subject of {empty[0]} lies outside the middle square: use --resize-mode pad.")
    if empty:
        raise InputError(f"The subject of {empty[0]} is too small to be visible at {size} x {size}: crop the photo.")
    return pixels, covered


def _square_mask(mask: Image.Image | None, size: int, fit: ResizeMode) -> Image.Image:
    if mask is None:
        return Image.new("RGB", (size, size), "white")
    return images.fit_square(mask.convert("RGB"), size, fit, bars="black")  # the added bars don't belong to the subject


class PhotoBatches:
    """The batch of an index: every photo equally often, in a new random order for each epoch."""

    def __init__(
        self,
        latents: Tensor,
        masks: Tensor,
        *,
        batch_size: int,
        seed: int = 0,
        prior: Tensor | None = None,
        scenes: Sequence[str] = (),
    ) -> None:
        """`latents` (P, C, H, W), `masks` (P, 1, S, S) of any size, `prior` (K, C, H, W), P `scenes` or none."""
        self.latents, self.prior, self.scenes = latents, prior, scenes
        self.masks = F.interpolate(masks, latents.shape[-2:], mode="area")
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, index: int) -> PhotoBatch:
        rows = self._rows(index, len(self.latents), "photos")
        batch = PhotoBatch(latents=self.latents[rows], mask=self.masks[rows])
        if any(self.scenes):
            batch["scenes"] = [self.scenes[row] for row in rows.tolist()]
        if self.prior is not None:
            batch["prior"] = self.prior[self._rows(index, len(self.prior), "prior")]
        return batch

    def _rows(self, index: int, count: int, purpose: str) -> Tensor:
        positions = range(index * self.batch_size, (index + 1) * self.batch_size)
        return torch.tensor([self._order(at // count, count, purpose)[at % count] for at in positions])

    def _order(self, epoch: int, count: int, purpose: str) -> list[int]:
        return random.Random(f"{self.seed} {purpose} {epoch}").sample(range(count), count)
