"""Photos and masks of edits, as uploads: checked, saved in the store, and referred to by their digest. No torch."""

import io
from collections.abc import Callable
from typing import Any, TypeVar

from PIL import Image, ImageChops

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.generation.edit_request import EditInput, ImageRef
from blip_diffusion.serving.store import Store

Read = TypeVar("Read")


def edit_input(store: Store, photo_file: bytes, mask_file: bytes | None, **settings: Any) -> EditInput:
    """Save a photo and a mask, and return the edit that refers to them by id.

    Args:
        store: Gets the files.
        photo_file: An image file.
        mask_file: An image file of the photo's size, white where the photo may change; or transparent there, as in
            OpenAI's API. `None`: the mask is predicted.
        settings: Other fields of `EditInput`.

    Raises:
        InputError: If a file is not an image, the mask has another size or is empty, or a setting is out of range.
    """
    size = _read(photo_file, "photo", images.as_rgb).size
    mask = None if mask_file is None else _saved(store, _painted(mask_file, size))
    return EditInput(photo=_saved(store, photo_file), mask_file=mask, **settings)


def _saved(store: Store, data: bytes) -> ImageRef:
    digest = store.add_photo(data)
    return ImageRef(digest, digest)


def _painted(data: bytes, size: tuple[int, int]) -> bytes:
    """Return a mask file that is white where the photo may change, after checking it."""
    mask, by_alpha = _read(data, "mask", _mask)
    if mask.size != size:
        raise InputError(f"The mask has {mask.size} pixels and the photo {size}: make them equal.")
    if not any(mask.histogram()[128:]):
        raise InputError("The mask is empty: make the region that is to change white, or transparent.")
    return images.png_bytes(mask) if by_alpha else data


def _mask(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return a mask (mode L), white where the photo may change, and whether it is the image's transparency."""
    alpha = images.alpha_of(image)
    return (images.as_rgb(image).convert("L"), False) if alpha is None else (ImageChops.invert(alpha), True)


def _read(data: bytes, name: str, read: Callable[[Image.Image], Read]) -> Read:
    try:
        return images.read_image(io.BytesIO(data), read)
    except InputError as error:
        raise InputError(str(error).replace("The image within", f"The {name}")) from error
