"""Statistics of scores, as pure functions of tensors.

Letters: `F` features, `N` subjects, `K` columns, `R` resamples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]
"""A statistic (R,) of the means of K columns over subjects (K, R)."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


UNDEFINED = Estimate(math.nan, math.nan, math.nan)
"""The estimate of no subjects, or of a ratio to zero."""


def centred_cosine(a: Tensor, b: Tensor, centre_a: Tensor, centre_b: Tensor) -> Tensor:
    """Return cosines (A, B) between features (A, F) and (B, F), each minus the mean (F,) of its kind of image.

    Without the subtraction, the common part of all features dominates the cosine.
    """
    return F.normalize(a - centre_a, dim=-1) @ F.normalize(b - centre_b, dim=-1).T


def bootstrap_ci(
    columns: Tensor, statistic: Statistic | None = None, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Estimate a statistic of column means over subjects, with its bootstrap interval.

    Whole subjects are resampled with replacement, because images of one subject are not independent.

    Args:
        columns: (K, N), a column per quantity. Subjects with a NaN in any of them are left out.
        statistic: A function of the means (K, R); by default the first mean.
        resamples: Number of bootstrap resamples. Those with an undefined statistic are left out.
        seed: The seed of the resampling.

    Returns:
        The statistic and its 95 % interval, or `UNDEFINED`.
    """
    statistic = statistic or (lambda means: means[0])
    columns = columns[:, ~columns.isnan().any(dim=0)]
    subjects = columns.shape[1]
    if not subjects:
        return UNDEFINED
    chosen = torch.randint(subjects, (resamples, subjects), generator=torch.Generator().manual_seed(seed))
    spread = statistic(columns[:, chosen].mean(dim=2))  # (K, R, N) -> (K, R) -> (R,)
    value, known = float(statistic(columns.mean(dim=1, keepdim=True))[0]), spread[spread.isfinite()]
    if not math.isfinite(value) or not len(known):
        return UNDEFINED
    return Estimate(value, *known.quantile(torch.tensor([0.025, 0.975])).tolist())


def normalized_between_bounds(means: Tensor) -> Tensor:
    """Map a score to 0 at its lower bound and 1 at its upper bound. `means` (3, R) are score, lower and upper bound."""
    score, lower, upper = means
    return (score - lower) / (upper - lower)


def accuracy_ratio(means: Tensor) -> Tensor:
    """Divide an accuracy by the accuracy on the ground truth, which corrects for the metric's errors."""
    accuracy, upper = means
    return accuracy / upper
