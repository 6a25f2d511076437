"""Linear probes on frozen features: ridge regression in closed form, and logistic regression."""

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
    penalty = ridge * x.shape[1]
    if len(x) > x.shape[1]:
        solved = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    else:  # with fewer samples than features the dual (B, B) is the smaller system
        solved = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype), y)
    return LinearProbe(solved.float(), bias.float(), mean, std)


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


def fit_logistic(
    features: Tensor, labels: Sequence[str], *, rest: str | None = None, penalty: float = 0.003
) -> LinearClassifier:
    """Fit logistic regression in which all labels have equal shares of the weight, or `rest` has half of it.

    Args:
        features: (B, F).
        labels: The label of each row.
        rest: A label that has half of the weight; the others share the other half. By default, none has.
        penalty: The weight of the squared coefficients.
    """
    names = tuple(sorted(set(labels)))
    numbers = torch.tensor([names.index(label) for label in labels])
    share = torch.full((len(names),), 1 / len(names))
    if rest is not None:
        share = torch.tensor([0.5 if name == rest else 0.5 / max(len(names) - 1, 1) for name in names])
    weights = (share / torch.bincount(numbers, minlength=len(names)))[numbers]
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-4)
    x = (features - mean) / std
    coefficients = torch.zeros(x.shape[1], len(names), requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([coefficients, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = F.cross_entropy(x @ coefficients + bias, numbers, reduction="none")
        total = (entropy * weights).sum() + penalty * coefficients.square().sum()
        torch.autograd.backward(total)
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch has no types for it
    return LinearClassifier(LinearProbe(coefficients.detach(), bias.detach(), mean, std), names)
