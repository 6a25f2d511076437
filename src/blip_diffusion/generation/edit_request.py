"""What a request says of an edit: the photo and the mask by path and digest, and how it is edited. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from blip_diffusion import images
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import path_exists, sha256_of


@dataclass(frozen=True)
class ImageRef:
    """An image file. PNG metadata hold its path and its digest, not the image.

    Args:
        path: The file.
        sha256: Digest of the file.
    """

    path: str
    sha256: str

    def open(self) -> Image.Image:
        """Open the image, upright RGB. Raises `CheckpointError` if the file is missing or has changed."""
        if not path_exists(Path(self.path), Path.is_file):
            raise CheckpointError(f"There is no image at {self.path}, of which this is an edit: put it there again.")
        if sha256_of(Path(self.path)) != self.sha256:
            raise CheckpointError(f"{self.path} has changed since it was edited: find the old file.")
        return images.open_image(Path(self.path))


def image_ref(path: Path) -> ImageRef:
    """Refer to an image file. Raises `InputError` if it is missing or no image."""
    images.open_image(path)
    return ImageRef(str(path), sha256_of(path))


@dataclass(frozen=True)
class EditInput:
    """How a photo is edited; see `BlipDiffusionPipeline.edit` and `inpaint`.

    Args:
        photo: The photo.
        kind: "edit" replaces a subject, "inpaint" paints what the mask covers.
        source_category: What is in the photo and shall go.
        mask: How the mask is found, where there is no `mask_file`.
        mask_file: An image of the photo's size, white where it may change.
        inversion: How the photo is inverted.
        strength: Share in (0, 1] of the steps that are run.
        keep_attention: Share of the steps, from the first, in which the photo's cross-attention maps are kept.
        keep_shape: Whether the new subject takes the old one's maps.
        resamplings: How often `inpaint` takes each step.
        feather: Pixels over which the edit passes into the photo.

    Raises:
        InputError: If something is missing or out of range.
    """

    photo: ImageRef
    kind: Literal["edit", "inpaint"] = "edit"
    source_category: str = ""
    mask: Literal["difference", "subject", "none"] = "difference"
    mask_file: ImageRef | None = None
    inversion: Literal["direct", "ddpm", "ddim", "none"] = "direct"
    strength: float = 1.0
    keep_attention: float = 0.0
    keep_shape: bool = False
    resamplings: int = 2
    feather: int = 3

    def __post_init__(self) -> None:
        if self.kind == "edit" and not self.source_category.strip():
            raise InputError("--from is empty: name what is in the photo, for example dog.")
        if self.kind == "inpaint" and self.mask_file is None:
            raise InputError("Inpainting needs --mask FILE, white where the photo is painted.")
        for flag, value in (("--strength", self.strength), ("--keep-attention", self.keep_attention)):
            if not 0 <= value <= 1:
                raise InputError(f"{flag} is {value}: use a number from 0 to 1.")
        if not 1 <= self.resamplings <= 20:
            raise InputError(f"--resamplings is {self.resamplings}: use a number from 1 to 20.")
        if not 0 <= self.feather <= 64:
            raise InputError(f"--feather is {self.feather}: use a number from 0 to 64.")

    def title(self, category: str) -> str:
        """Return words for the name of a file without a prompt."""
        return f"{self.source_category} to {category}" if self.kind == "edit" else category
