"""Scores, as pure functions of tensors.

Letters: `F` features, `N` subjects, `K` columns, `R` resamples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]
"""Means of K columns over subjects (K, R) to what is reported of them (R,)."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


NOTHING = Estimate(math.nan, math.nan, math.nan)
"""Of no subjects, or where the truth itself is nothing to compare with."""


def centred_cosine(a: Tensor, b: Tensor, centre_a: Tensor, centre_b: Tensor) -> Tensor:
    """Cosines (A, B) between features (A, F) and (B, F), each without the mean (F,) of its own sort of picture.

    Without that every two pictures look alike: what all of them share outweighs what tells them apart.
    """
    return F.normalize(a - centre_a, dim=-1) @ F.normalize(b - centre_b, dim=-1).T


def estimate(columns: Tensor, statistic: Statistic | None = None, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """A statistic of the means of columns (K, N) over subjects, default the first, with its bootstrap interval.

    Subjects are drawn with replacement, whole: pictures of one subject are no independent samples. A subject that has
    a NaN in any column is left out, and so is a resample of which the statistic is no number, as a share of nothing.
    """
    statistic = statistic or (lambda means: means[0])
    columns = columns[:, ~columns.isnan().any(dim=0)]
    subjects = columns.shape[1]
    if not subjects:
        return NOTHING
    chosen = torch.randint(subjects, (resamples, subjects), generator=torch.Generator().manual_seed(seed))
    spread = statistic(columns[:, chosen].mean(dim=2))  # (K, R, N) -> (K, R) -> (R,)
    value, known = float(statistic(columns.mean(dim=1, keepdim=True))[0]), spread[spread.isfinite()]
    if not math.isfinite(value) or not len(known):
        return NOTHING
    return Estimate(value, *known.quantile(torch.tensor([0.025, 0.975])).tolist())


def normalised(means: Tensor) -> Tensor:
    """Rows score, floor and ceiling (3, R): 0 where the score lies at its floor, 1 at its ceiling."""
    score, floor, ceiling = means
    return (score - floor) / (ceiling - floor)


def relative(means: Tensor) -> Tensor:
    """Rows accuracy and ground truth's own (2, R) to their ratio: a judge's own errors count against nobody."""
    accuracy, own = means
    return accuracy / own
