"""LPIPS (Zhang et al. 2018): perceptual distance by VGG-16 features and channel weights fitted to human ratings.

Its weights can't be shipped with the package: put the two published files into one folder, under their published names.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from blip_diffusion.errors import CheckpointError
from blip_diffusion.pickles import read_pickle

VGG, LINEAR = "vgg16-397923af.pth", "vgg.pth"
"""torchvision's VGG-16, and `weights/v0.1/vgg.pth` of the package `lpips`."""
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for pixels in [-1, 1]


class Lpips(nn.Module):
    """Equation 1 of the paper, with VGG-16 as its network, frozen."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(stage[-1] for stage in STAGES)]
        self.stages = nn.ModuleList(
            _stage(width_in, stage, pooled=number > 0)
            for number, (width_in, stage) in enumerate(zip(widths[:-1], STAGES, strict=True))
        )
        self.weights = nn.ParameterList(torch.ones(stage[-1]) for stage in STAGES)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.shift: Tensor
        self.scale: Tensor
        self.eval().requires_grad_(False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance ≥ 0 of two batches of pixels (B, 3, H, W) in [0, 1]; H and W are at least 16."""
        predicted_features = self._features(predicted)
        with torch.no_grad():
            target_features = self._features(target)
        distances = [
            ((_unit(a) - _unit(b)).pow(2) * weight.view(1, -1, 1, 1)).sum(dim=1).mean()
            for a, b, weight in zip(predicted_features, target_features, self.weights, strict=True)
        ]
        return torch.stack(distances).sum()

    def _features(self, pixels: Tensor) -> list[Tensor]:
        x, features = (pixels * 2 - 1 - self.shift) / self.scale, []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def read_lpips(folder: Path) -> Lpips:
    """Load LPIPS from the two files in a folder. Raises `CheckpointError` for a missing or different file."""
    vgg, linear = (_tensors(folder / name) for name in (VGG, LINEAR))
    network = Lpips()
    published = iter([layer for layer in range(29) if f"features.{layer}.weight" in vgg])
    state = dict(network.named_buffers())
    try:
        for name, layer in network.stages.named_modules():
            if isinstance(layer, nn.Conv2d):
                number = next(published)
                state |= {f"stages.{name}.{part}": vgg[f"features.{number}.{part}"] for part in ("weight", "bias")}
        state |= {f"weights.{i}": linear[f"lin{i}.model.1.weight"].flatten() for i in range(len(STAGES))}
        network.load_state_dict(state)
    except (StopIteration, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder} doesn't hold LPIPS: it needs the published {VGG} and {LINEAR}.") from error
    return network


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        table = read_pickle(path)
        return {name: value for name, value in table.items() if isinstance(value, Tensor)}
    except Exception as error:  # for damaged bytes or another pickle, torch raises many kinds
        raise CheckpointError(f"{path} can't be read: LPIPS needs the published {VGG} and {LINEAR}.") from error


def _stage(width: int, stage: tuple[int, ...], *, pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pooled else []
    for before, after in pairwise((width, *stage)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _unit(features: Tensor) -> Tensor:
    """Normalise the features of each position to unit length; as in the published code, ε is added to the length."""
    features = features.float()
    return features / (features.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10)
