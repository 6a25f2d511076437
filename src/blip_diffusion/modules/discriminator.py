"""A patch discriminator (Isola et al. 2017) and its hinge loss."""

from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] to a logit per patch, (B, 1, H/8, W/8): high for real images, low for generated."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for step in range(2):
            layers += [
                nn.Conv2d(width << step, width << (step + 1), 4, 2, 1, bias=False),
                nn.GroupNorm(8, width << (step + 1)),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width << 2, 1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.layers(pixels * 2 - 1)
        return logits


def hinge(real: Tensor, generated: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of its logits for real and generated images (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + generated).mean())
