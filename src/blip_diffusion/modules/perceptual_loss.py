"""What the autoencoder's loss looks with: a frozen network's early features, and a patch discriminator."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_diffusion.modules.efficientnet_lite import EfficientNetLite


class PerceptualDistance(nn.Module):
    """LPIPS's distance (Zhang et al. 2018, equation 1) with all weights one, on EfficientNet-Lite0's early blocks.

    Not LPIPS: no channel weights were fitted to people's judgements.
    """

    taps = (0, 2, 4, 7)

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, drawn: Tensor, wanted: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1], twice, to a scalar ≥ 0."""
        ours = self.network(_centred(drawn), self.taps)
        with torch.no_grad():
            theirs = self.network(_centred(wanted), self.taps)
        distances = [(_unit(a) - _unit(b)).pow(2).sum(dim=1).mean() for a, b in zip(ours, theirs, strict=True)]
        return torch.stack(distances).mean()


def _centred(pixels: Tensor) -> Tensor:
    return (pixels * 255 - 127) / 128


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1, eps=1e-6)
