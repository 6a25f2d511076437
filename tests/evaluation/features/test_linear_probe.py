"""Linear probes, compared with the equations of ridge regression."""

import pytest
import torch

from blip_diffusion.evaluation.features.linear_probe import fit_classifier, fit_logistic, fit_probe


def points(samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 20, generator=rng), torch.randn(samples, 3, generator=rng)


@pytest.mark.parametrize("samples", [8, 200])
def test_probe_solves_the_ridge_regression(samples: int) -> None:
    """The dual form against the textbook one, with fewer samples than features and with more."""
    features, expected = points(samples)
    probe = fit_probe(features, expected, ridge=0.5)
    x = (features - probe.mean) / probe.std
    primal = torch.linalg.solve(x.T @ x + 0.5 * 20 * torch.eye(20), x.T @ (expected - expected.mean(0)))
    torch.testing.assert_close(probe.weights, primal, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(probe(features), x @ primal + expected.mean(0), atol=1e-4, rtol=1e-3)


def test_sample_weight_two_equals_a_repeated_sample() -> None:
    features, expected = points(6)
    weights = torch.tensor([2.0, 1, 1, 1, 1, 0])
    weighted = fit_probe(features, expected, weights=weights)
    twice = features[[0, 0, 1, 2, 3, 4]]
    x = (twice - weighted.mean) / weighted.std
    y = expected[[0, 0, 1, 2, 3, 4]]
    primal = torch.linalg.solve(x.T @ x + 0.2 * 20 * torch.eye(20), x.T @ (y - y.mean(0)))
    torch.testing.assert_close(weighted.weights, primal, atol=1e-4, rtol=1e-3)


def test_classifier_fits_rare_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 12, generator=rng) * 3
    numbers = torch.cat([torch.zeros(200, dtype=torch.long), torch.arange(1, 5).repeat_interleave(6)])
    features = centres[numbers] + torch.randn(len(numbers), 12, generator=rng)
    labels = ["often" if n == 0 else f"rare{n}" for n in numbers.tolist()]
    classify = fit_classifier(features[::2], labels[::2])
    result = classify(features[1::2])
    rare = [(a, b) for a, b in zip(result, labels[1::2], strict=True) if b != "often"]
    assert sum(a == b for a, b in rare) / len(rare) > 0.8
    shuffled = fit_classifier(features[::2], labels[::2][::-1])
    assert sum(a == b for a, b in zip(shuffled(features[1::2]), labels[1::2], strict=True)) < 0.5 * len(result)


def test_logistic_regression_separates_rare_labels_from_the_rest() -> None:
    """The rest is ten times as frequent, and half of the weight is the others'."""
    rng = torch.Generator().manual_seed(0)
    centres = {"": torch.zeros(4), "left": torch.tensor([4.0, 0, 0, 0]), "right": torch.tensor([0.0, 4, 0, 0])}
    labels = [""] * 200 + ["left", "left", "right", "right"] * 5
    features = torch.stack([centres[label] + torch.randn(4, generator=rng) for label in labels])
    result = fit_logistic(features[::2], labels[::2], rest="")(features[1::2])
    assert sum(a == b for a, b in zip(result, labels[1::2], strict=True)) > 0.95 * len(result)
