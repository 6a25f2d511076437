"""Loading and image preprocessing, shared by `Captioner` and `ImageSearch`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images as pixels_of
from blip_diffusion.blip2 import Blip2
from blip_diffusion.checkpoint.blip2 import load_blip2
from blip_diffusion.devices import present_device
from blip_diffusion.errors import InputError


class Blip2Pipeline:
    """Base class of the BLIP-2 pipelines.

    Args:
        model: The model.
    """

    def __init__(self, model: Blip2) -> None:
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        base: str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        """Load a model.

        Args:
            name_or_path: A folder that this package exported, a folder or hub id of transformers, or a `.pth` of LAVIS;
                see the subclass.
            base: For a file of LAVIS: a model of the same shapes with the frozen parts.
            torch_dtype: Precision of the weights; by default float32.
            **hub: Arguments of `snapshot_download`.

        Returns:
            The pipeline, on the CPU.

        Raises:
            CheckpointError: If the model cannot be loaded, or lacks the parts that the class needs.

        Example:
            >>> captioner = Captioner.from_pretrained("runs/mini/language/export")
        """
        return cls(load_blip2(name_or_path, base=base, dtype=torch_dtype, **hub))

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, and return the pipeline. Raises `InputError` if there is no such device."""
        self.model.to(present_device(device))
        return self

    def _squares(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return images upright and square, as the image encoder reads them. Raises `InputError` for no images."""
        if not images:
            raise InputError("There are no images: give at least one.")
        for number, image in enumerate(images, start=1):
            if not isinstance(image, Image.Image):
                raise InputError(f"Image {number} is a {type(image).__name__}: open it with PIL first.")
            pixels_of.check_size(image, f"Image {number}")
        size, mode = self.model.reference.size, self.model.reference.resize_mode
        return [pixels_of.fit_square(pixels_of.as_rgb(image), size, mode) for image in images]

    def _features(self, squares: Sequence[Image.Image]) -> Tensor:
        """Return the features (B, N, V) of square images."""
        return self.model.features(pixels_of.to_tensor(squares).to(self.model.device))
