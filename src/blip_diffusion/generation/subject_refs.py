"""References to tuned subject files in a request: path, weight, and a digest that proves the file is unchanged.

Torch is imported where a subject file is read.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from blip_diffusion import images
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

MAX_THUMBNAIL = 512


@dataclass(frozen=True)
class SubjectRef:
    """A subject file and its weight in a mixture. PNG metadata hold the file's digest, not the file.

    Args:
        path: The subject file.
        sha256: Digest of the file.
        weight: Share in the mixture; finite.
        category: What the subject is.
        thumbnail: PNG bytes, for the grid; not stored in PNG metadata.

    Raises:
        InputError: If `weight` is not finite.
    """

    path: str
    sha256: str
    weight: float = 1.0
    category: str = ""
    thumbnail: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise InputError(f"The weight of --subject {self.path} is {self.weight}: use a number, for example 0.5.")


def subject_ref(path: Path, weight: float = 1.0) -> SubjectRef:
    """Read a subject file and refer to it. Raises `CheckpointError` if it can't be read."""
    from blip_diffusion.checkpoint.subject_file import read_subject

    subject = read_subject(path)
    return SubjectRef(str(path), sha256_of(path), weight, subject.category, thumbnail_png(subject.thumbnail))


def load_subjects(pipe: Any, refs: tuple[SubjectRef, ...]) -> Tensor:
    """Load and activate subjects, and return the tokens (1, Q, D) of their mixture. Weights are normalised to 1."""
    from blip_diffusion.checkpoint.subject_file import read_subject
    from blip_diffusion.pipelines.blending import shares

    names: list[str] = []
    for ref in refs:
        subject = read_subject(ref.path)
        if sha256_of(Path(ref.path)) != ref.sha256:
            raise CheckpointError(f"{ref.path} has changed since the image was generated: restore the old file.")
        duplicate = subject.name in names
        names.append(pipe.load_subject(subject, name=f"{subject.name}-{len(names)}" if duplicate else None).name)
    weights = [ref.weight for ref in refs]
    pipe.set_subjects(names, shares(weights) if len(refs) > 1 else weights)
    embedding: Tensor = pipe.subject_embeds()
    return embedding


def thumbnail_png(thumbnail: bytes) -> bytes:
    """Re-encode a subject's thumbnail, which is untrusted, as PNG; white if there is none or it is too large."""
    white = Image.new("RGB", (64, 64), "white")

    def small(opened: Image.Image) -> Image.Image:
        return opened.convert("RGB") if max(opened.size) <= MAX_THUMBNAIL else white

    try:
        return images.png_bytes(images.read_image(io.BytesIO(thumbnail), small))
    except InputError:
        return images.png_bytes(white)
