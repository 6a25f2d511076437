"""Tuned subjects in an order: which files, how much of each, and proof that they are still the same."""

import hashlib
import io
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.checkpoint.subject_file import Subject, read_subject
from blip_diffusion.errors import CheckpointError, InputError


@dataclass(frozen=True)
class SubjectOrder:
    """A subject's file, and how much of it. The file itself is too large to go into pictures: its digest does."""

    path: str
    sha256: str
    weight: float = 1.0
    category: str = ""
    picture: bytes = field(default=b"", repr=False)  # a PNG of its thumbnail

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise InputError(f"The weight of --subject {self.path} is {self.weight}: use a number, 0.5 is half of it.")


def subject_order(path: Path, weight: float = 1.0) -> SubjectOrder:
    """An order for a subject's file. Raises `CheckpointError` for one that can't be read."""
    subject = read_subject(path)
    return SubjectOrder(str(path), _digest(path), weight, subject.category, _thumbnail(subject))


def load_subjects(pipe: Any, orders: tuple[SubjectOrder, ...]) -> Tensor:
    """Makes a pipeline draw these, and answers their mixture's embedding (1, Q, D). Several share their weights out."""
    names: list[str] = []
    for order in orders:
        subject = read_subject(order.path)
        if _digest(Path(order.path)) != order.sha256:
            raise CheckpointError(f"{order.path} is another file than the one that was drawn: find the old one.")
        taken = names.count(subject.name)
        names.append(pipe.load_subject(subject, name=f"{subject.name}-{len(names)}" if taken else None).name)
    total = sum(order.weight for order in orders) if len(orders) > 1 else 1.0
    if not total:
        raise InputError("The weights of the subjects cancel each other out: give them others.")
    pipe.set_subjects(names, [order.weight / total for order in orders])
    embedding: Tensor = pipe.active_embedding()
    return embedding


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _thumbnail(subject: Subject) -> bytes:
    """Decoded and written anew: a file may hold anything. White where there is none, or one of another size."""
    white = Image.new("RGB", (64, 64), "white")

    def small(opened: Image.Image) -> Image.Image:
        return opened.convert("RGB") if max(opened.size) <= 512 else white

    try:
        return images.png_bytes(images.read_picture(io.BytesIO(subject.thumbnail), small))
    except InputError:
        return images.png_bytes(white)
