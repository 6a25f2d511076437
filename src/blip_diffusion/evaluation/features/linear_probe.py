"""Linear probes on frozen features, by ridge regression in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Probe:
    """A linear map of features (B, F), standardised first, to K numbers."""

    weights: Tensor  # (F, K)
    bias: Tensor  # (K,)
    mean: Tensor  # (F,)
    std: Tensor  # (F,)

    def __call__(self, features: Tensor) -> Tensor:
        """(B, F) to (B, K)."""
        return (features - self.mean) / self.std @ self.weights + self.bias


def fit_probe(features: Tensor, wanted: Tensor, *, weights: Tensor | None = None, ridge: float = 0.2) -> Probe:
    """Ridge regression of features (B, F) onto `wanted` (B, K); `ridge` is for each feature there is.

    `weights` (B,), of mean 1, say how much a picture counts.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-4)
    root = (torch.ones(len(features)) if weights is None else weights).double().sqrt()[:, None]
    bias = (wanted * root**2).mean(dim=0)
    x = ((features - mean) / std).double() * root  # (B, F)
    y = (wanted.double() - bias) * root
    gram = x @ x.T  # (B, B): with fewer pictures than features the dual is the smaller system
    dual = torch.linalg.solve(gram + ridge * x.shape[1] * torch.eye(len(x), dtype=x.dtype), y)
    return Probe((x.T @ dual).float(), bias.float(), mean, std)


@dataclass(frozen=True)
class Classifier:
    """A probe whose numbers stand for labels."""

    probe: Probe
    labels: tuple[str, ...]

    def __call__(self, features: Tensor) -> list[str]:
        """The most likely label of each picture (B, F)."""
        return [self.labels[i] for i in self.probe(features).argmax(dim=1).tolist()]


def fit_classifier(features: Tensor, labels: Sequence[str], *, ridge: float = 0.2) -> Classifier:
    """A probe of one-hot labels. Every label counts alike, however often it occurs."""
    names = tuple(sorted(set(labels)))
    numbers = torch.tensor([names.index(label) for label in labels])
    onehot = F.one_hot(numbers, len(names))
    weights = (len(numbers) / len(names) / onehot.sum(0))[numbers]
    return Classifier(fit_probe(features, onehot, weights=weights, ridge=ridge), names)
