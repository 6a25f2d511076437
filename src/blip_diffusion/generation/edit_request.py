"""The edit of a request: photo and mask by path and digest, and the settings. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from blip_diffusion import images
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import path_exists, sha256_of
from blip_diffusion.generation.limits import check_letters

MaskMethod = Literal["difference", "subject", "none"]
MASK_METHODS: dict[str, MaskMethod] = {"auto": "difference", "subject": "subject", "none": "none"}
"""Methods that predict a mask, by the words of the command line and of the server."""


@dataclass(frozen=True)
class ImageRef:
    """Reference to an image file; PNG metadata contain its path and digest, not the image.

    Args:
        path: Path of the file.
        sha256: SHA-256 digest of the file.
    """

    path: str
    sha256: str

    def open(self) -> Image.Image:
        """Open the image, upright RGB. Raises `CheckpointError` if the file is missing or has changed."""
        if not path_exists(Path(self.path), Path.is_file):
            raise CheckpointError(f"The edited image {self.path} is missing: put it there again.")
        if sha256_of(Path(self.path)) != self.sha256:
            raise CheckpointError(f"{self.path} has changed since it was edited: find the old file.")
        return images.open_image(Path(self.path))


def image_ref(path: Path) -> ImageRef:
    """Return the reference to a file. Raises `InputError` if it is missing or not an image."""
    images.open_image(path)
    return ImageRef(str(path), sha256_of(path))


@dataclass(frozen=True)
class EditInput:
    """Settings of an edit; see `BlipDiffusionPipeline.edit` and `inpaint`.

    Args:
        photo: The photo.
        kind: "edit" replaces a subject, "inpaint" generates one in the masked region.
        source_category: Category of the subject to replace.
        mask: Method that predicts the mask, without `mask_file`.
        mask_file: An image of the photo's size, white in the region that may change.
        inversion: Inversion method.
        strength: Share in (0, 1] of the steps that are run.
        keep_attention: Share of the steps, from the first, in which the photo's cross-attention maps are kept.
        keep_shape: Whether the new subject has the old subject's maps.
        resamplings: Number of times that `inpaint` takes each step.
        feather: Width in pixels of the blended edge.

    Raises:
        InputError: If a required value is missing, or a number is out of range.
    """

    photo: ImageRef
    kind: Literal["edit", "inpaint"] = "edit"
    source_category: str = ""
    mask: MaskMethod = "difference"
    mask_file: ImageRef | None = None
    inversion: Literal["direct", "ddpm", "ddim", "none"] = "direct"
    strength: float = 1.0
    keep_attention: float = 0.0
    keep_shape: bool = False
    resamplings: int = 2
    feather: int = 3

    def __post_init__(self) -> None:
        check_letters(category=self.source_category)
        if self.kind == "edit" and not self.source_category.strip():
            raise InputError("--from is empty: name the subject of the photo, for example dog.")
        if self.kind == "inpaint" and self.mask_file is None:
            raise InputError("Inpainting needs --mask FILE, white in the region to generate.")
        for flag, value in (("--strength", self.strength), ("--keep-attention", self.keep_attention)):
            if not 0 <= value <= 1:
                raise InputError(f"{flag} is {value}: use a number from 0 to 1.")
        if not 1 <= self.resamplings <= 20:
            raise InputError(f"--resamplings is {self.resamplings}: use a number from 1 to 20.")
        if not 0 <= self.feather <= 64:
            raise InputError(f"--feather is {self.feather}: use a number from 0 to 64.")

    def title(self, category: str) -> str:
        """Return the file name's text for an edit without a prompt."""
        return f"{self.source_category} to {category}" if self.kind == "edit" else category
