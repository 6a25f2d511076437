"""Statistics, compared with plain loops."""

import math
import random

import pytest
import torch

from blip_diffusion.evaluation.metrics.statistics import (
    accuracy_ratio,
    bootstrap_ci,
    centred_cosine,
    normalized_between_bounds,
)


def test_centred_cosine_subtracts_the_centre() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 5, generator=rng) + 4, torch.randn(2, 5, generator=rng) - 1
    centre_a, centre_b = a.mean(0), torch.full((5,), -1.0)
    result = centred_cosine(a, b, centre_a, centre_b)
    for i in range(3):
        for j in range(2):
            x, y = (a[i] - centre_a).tolist(), (b[j] - centre_b).tolist()
            dot = sum(p * q for p, q in zip(x, y, strict=True))
            assert result[i, j].item() == pytest.approx(dot / math.hypot(*x) / math.hypot(*y), abs=1e-5)


def test_bootstrap_ci_equals_a_plain_loop() -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(1)) + 3
    result = bootstrap_ci(values[None])
    assert result.value == pytest.approx(values.mean().item())
    assert result == bootstrap_ci(values[None])
    rng = random.Random(0)
    means = sorted(sum(rng.choices(values.tolist(), k=20)) / 20 for _ in range(4000))
    assert result.low == pytest.approx(means[100], abs=0.03)
    assert result.high == pytest.approx(means[3900], abs=0.03)


def test_subjects_are_resampled_together() -> None:
    """A score that is its upper_bound in every subject has no spread, whatever the subjects' spread."""
    upper_bound = torch.rand(12, generator=torch.Generator().manual_seed(0)) + 1
    result = bootstrap_ci(torch.stack([upper_bound, torch.zeros(12), upper_bound]), normalized_between_bounds)
    assert (result.value, result.low, result.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("score", "fidelity"), [(0.2, 0.0), (0.8, 1.0), (0.5, 0.5), (0.1, -1 / 6)])
def test_normalised_maps_the_bounds_to_0_and_1(score: float, fidelity: float) -> None:
    assert normalized_between_bounds(torch.tensor([[score], [0.2], [0.8]])).item() == pytest.approx(fidelity, abs=1e-6)


def test_relative_divides_by_the_upper_bound() -> None:
    assert accuracy_ratio(torch.tensor([[0.4], [0.8]])).item() == pytest.approx(0.5)


def test_ratio_to_zero_is_nan() -> None:
    """And a resample in which the truth got nothing does not reach into the interval."""
    assert math.isnan(bootstrap_ci(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), accuracy_ratio).value)
    seldom = bootstrap_ci(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), accuracy_ratio)
    assert (seldom.value, seldom.low, seldom.high) == (1.0, 1.0, 1.0)


def test_subjects_without_scores_are_ignored() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0])
    assert bootstrap_ci(values[None]) == bootstrap_ci(torch.tensor([[1.0, 3.0]]))
    assert math.isnan(bootstrap_ci(torch.full((1, 3), float("nan"))).value)
