"""Linear probes on frozen features, by ridge regression in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LinearProbe:
    """A linear map from standardised features (B, F) to K numbers."""

    weights: Tensor  # (F, K)
    bias: Tensor  # (K,)
    mean: Tensor  # (F,)
    std: Tensor  # (F,)

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (B, F) to (B, K)."""
        return (features - self.mean) / self.std @ self.weights + self.bias


def fit_probe(features: Tensor, targets: Tensor, *, weights: Tensor | None = None, ridge: float = 0.2) -> LinearProbe:
    """Fit targets (B, K) from features (B, F) by ridge regression.

    Args:
        features: (B, F).
        targets: (B, K).
        weights: Sample weights (B,), of mean 1.
        ridge: The penalty per feature.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-4)
    root = (torch.ones(len(features)) if weights is None else weights).double().sqrt()[:, None]
    bias = (targets * root**2).mean(dim=0)
    x = ((features - mean) / std).double() * root  # (B, F)
    y = (targets.double() - bias) * root
    gram = x @ x.T  # (B, B): with fewer images than features the dual is the smaller system
    dual = torch.linalg.solve(gram + ridge * x.shape[1] * torch.eye(len(x), dtype=x.dtype), y)
    return LinearProbe((x.T @ dual).float(), bias.float(), mean, std)


@dataclass(frozen=True)
class LinearClassifier:
    """A linear probe with one output per label."""

    probe: LinearProbe
    labels: tuple[str, ...]

    def __call__(self, features: Tensor) -> list[str]:
        """Return the most likely label of each row of features (B, F)."""
        return [self.labels[i] for i in self.probe(features).argmax(dim=1).tolist()]


def fit_classifier(features: Tensor, labels: Sequence[str], *, ridge: float = 0.2) -> LinearClassifier:
    """Fit a probe to one-hot labels. All labels have the same total weight, however often they occur."""
    names = tuple(sorted(set(labels)))
    numbers = torch.tensor([names.index(label) for label in labels])
    onehot = F.one_hot(numbers, len(names))
    weights = (len(numbers) / len(names) / onehot.sum(0))[numbers]
    return LinearClassifier(fit_probe(features, onehot, weights=weights, ridge=ridge), names)
