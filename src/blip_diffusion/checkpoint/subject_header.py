"""The header of a subject file, read without torch and without the tensors."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.strict_json import parse_json

EMBEDDING, WEIGHTS, LORA = "subject_embedding.lora", "weights.", "unet."
TABLE, THUMBNAIL = "blip-diffusion", "modelspec.thumbnail"
DATA_URI = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class SubjectHeader:
    """The fields of a subject file's header; untrusted.

    Args:
        name: The subject's name.
        category: The subject's category, for example "dog".
        base: Fingerprint of the model that it was tuned for.
        thumbnail: A JPEG, or empty.
    """

    name: str
    category: str
    base: str
    thumbnail: bytes


def read_subject_header(path: Path) -> SubjectHeader:
    """Read the header of a subject file.

    Args:
        path: A safetensors file. Its layout is checked by safetensors; no tensor is read.

    Raises:
        CheckpointError: If the file is missing, damaged, or not a subject file.

    Example:
        >>> read_subject_header(Path("rex.safetensors")).category
        'dog'
    """
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            shape = file.get_slice(EMBEDDING).get_shape() if EMBEDDING in file.keys() else []  # noqa: SIM118
        table = parse_json(header[TABLE], finite=True)
        name, category, base = (text_of(table, key) for key in ("name", "category", "base"))
        thumbnail = decode_thumbnail(header)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"This is not a subject file, or it is damaged ({reason(error)}).") from error
    if len(shape) != 3 or shape[0] != 1:
        raise CheckpointError(
            "This file has no subject tokens of shape (1, Q, D): blip-diffusion tune makes such files."
        )
    return SubjectHeader(name, category, base, thumbnail)


def text_of(table: Mapping[str, Any], key: str) -> str:
    """Return an entry of a header's table. Raises `ValueError` if it is no text."""
    value = table[key]
    if not isinstance(value, str):
        raise ValueError(f"its {key} is no text")
    return value


def decode_thumbnail(header: Mapping[str, str]) -> bytes:
    """Return the thumbnail in a safetensors header, or nothing."""
    return base64.b64decode(header.get(THUMBNAIL, "").removeprefix(DATA_URI))
