"""One image with its caption: a row of a folder or of a tar shard."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from blip_diffusion import images
from blip_diffusion.control_characters import first_control, is_unicode
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.strict_json import parse_json

MAX_CAPTION = 2000
"""Letters of a caption; a text encoder reads some dozens of words."""
MAX_BYTES = 2**28
"""Bytes of an image file."""
CAPTION_KEYS = ("text", "caption", "prompt")
"""What the caption is called in a table: `text` by the datasets library, the others by other tools."""
MAX_NAME = 200
"""Letters of a category, a subject or a split."""
TRAINED, HELD_OUT = ("train", "training"), ("heldout", "test", "validation", "val")
"""Names of splits."""

Read = Callable[[], bytes]


@dataclass(frozen=True)
class CaptionedImage:
    """An image, its caption, and what is known of the subject in it.

    Args:
        name: Its path, for messages.
        read: Returns the bytes of the image file.
        caption: What the image shows, for example "a dog on the beach".
        category: What its subject is, for example "dog"; may be empty.
        subject: Equal for images of one subject; empty where nothing is known.
        read_mask: Returns the bytes of the mask, white on the subject; `None` where there is none.
        held_out: Whether training must not see it.
    """

    name: str
    read: Read
    caption: str
    category: str = ""
    subject: str = ""
    read_mask: Read | None = None
    held_out: bool = False

    def open(self) -> tuple[Image.Image, Image.Image | None]:
        """Return the image as upright RGB, and its mask (L) or `None`; a cut-out's own alpha is a mask.

        Raises:
            InputError: If either can't be read, or the mask has another shape.
        """
        image, alpha = images.read_image(
            io.BytesIO(self.read()), lambda one: (images.as_rgb(one), images.alpha_of(one))
        )
        if self.read_mask is None:
            return image, alpha
        mask = images.read_image(io.BytesIO(self.read_mask()), images.as_rgb).convert("L")
        if abs(mask.width / mask.height - image.width / image.height) > 0.02:
            raise InputError(
                f"The mask of {self.name} is {mask.width} x {mask.height}, of another shape than its image."
            )
        return image, mask.resize(image.size, Image.Resampling.BILINEAR)


def row_of(name: str, table: Mapping[str, Any], read: Read, read_mask: Read | None = None) -> CaptionedImage:
    """Return the row of a table such as `{"text": "a dog on the beach", "category": "dog", "subject": "rex"}`.

    Raises:
        DataError: If it has no caption, or a value that is no text.
    """
    key = next((key for key in CAPTION_KEYS if table.get(key)), CAPTION_KEYS[0])
    caption = _words(table, key, name, MAX_CAPTION)
    if not any(letter.isprintable() and not letter.isspace() for letter in caption):
        raise DataError(f"{name} has no caption: write one under {CAPTION_KEYS[0]!r}, or into a .txt file beside it.")
    category, subject, split = (_words(table, key, name, MAX_NAME) for key in ("category", "subject", "split"))
    if split and split.lower() not in TRAINED + HELD_OUT:
        raise DataError(f"{name} has the split {split!r}: use {TRAINED[0]}, or {', '.join(HELD_OUT)} to hold it out.")
    return CaptionedImage(name, read, caption, category, subject, read_mask, split.lower() in HELD_OUT)


def _words(table: Mapping[str, Any], key: str, name: str, limit: int) -> str:
    """Return the text under a key with single spaces; empty without that key."""
    value = "" if table.get(key) is None else table[key]
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"{name} has a {key} that is no text: {str(value)[:60]!r}.")
    text = " ".join(str(value).split())
    if len(text) > limit:
        what = "caption" if key in CAPTION_KEYS else key
        raise DataError(f"{name} has a {what} of {len(text)} letters: use at most {limit}.")
    if first_control(text) or not is_unicode(text):
        raise DataError(f"{name} has a {key} with control characters: write it anew as text.")
    return text


def check_categories(rows: Sequence[CaptionedImage]) -> None:
    """Raise `DataError` if a row has no category."""
    if unnamed := [row.name for row in rows if not row.category]:
        raise DataError(
            f"{unnamed[0]} has no category, as {len(unnamed)} of {len(rows)} images: write one into its metadata, or "
            "set data.category for all."
        )


def scene_of(caption: str, category: str) -> str:
    """Return a caption without its subject, as in a prompt.

    "A dog on the beach." becomes "on the beach". A caption that doesn't begin with the category is returned whole.
    """
    found = re.match(rf"\s*(?:an?\s+|the\s+)?{re.escape(category)}\b\s*(.*)", caption, re.IGNORECASE | re.DOTALL)
    return (found[1] if found and category else caption).strip().rstrip(".")


def parse_table(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `DataError` for anything else."""
    try:
        table = parse_json(text)
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON ({str(error)[:80]}).") from error
    if not isinstance(table, dict):
        raise DataError(f'{name} is not a JSON object such as {{"file_name": "1.jpg", "text": "a dog"}}.')
    return table
