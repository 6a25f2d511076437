"""The perceptual part of the autoencoder's loss: the distance of a frozen network's early features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_diffusion.modules.efficientnet_lite import EfficientNetLite


class PerceptualDistance(nn.Module):
    """LPIPS's distance (Zhang et al. 2018, equation 1) with all weights one, on EfficientNet-Lite0's early blocks.

    Unlike LPIPS, it has no channel weights fitted to human ratings.
    """

    taps = (0, 2, 4, 7)

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the distance ≥ 0 of two batches of pixels (B, 3, H, W) in [0, 1], averaged."""
        predicted_features = self.network(_normalized(predicted), self.taps)
        with torch.no_grad():
            target_features = self.network(_normalized(target), self.taps)
        pairs = zip(predicted_features, target_features, strict=True)
        distances = [(_unit(a) - _unit(b)).pow(2).sum(dim=1).mean() for a, b in pairs]
        return torch.stack(distances).mean()


def _normalized(pixels: Tensor) -> Tensor:
    return (pixels * 255 - 127) / 128


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1, eps=1e-6)
