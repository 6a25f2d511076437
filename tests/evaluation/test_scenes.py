"""The probe learns what can be learnt, from nothing that is held out."""

import random

import pytest
import torch

from blip_diffusion.data.compose import Composer, ComposerConfig
from blip_diffusion.evaluation.scenes import PHRASES, fit_probe, place_of, training_pictures

from .toys import SCENES, SIZE, WORLD, ColourJudge

COMPOSER = Composer(WORLD, ComposerConfig(size=SIZE), batch_size=1, seed=0)


def test_probe_learns_a_toy() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 12, generator=rng) * 3
    labels = torch.arange(5).repeat(20)
    points = centres[labels] + torch.randn(100, 12, generator=rng)
    probe = fit_probe(points[:60], labels[:60], 5)
    assert (probe(points[60:]) == labels[60:]).float().mean() > 0.9
    shuffled = fit_probe(points[:60], labels[:60].flip(0), 5)
    assert (shuffled(points[60:]) == labels[60:]).float().mean() < 0.5


@pytest.mark.parametrize("samples", [8, 200])
def test_probe_solves_the_ridge_equations(samples: int) -> None:
    """The dual form against the textbook one, with fewer samples than features and with more."""
    rng = torch.Generator().manual_seed(0)
    points, labels = torch.randn(samples, 20, generator=rng), torch.arange(samples) % 4
    probe = fit_probe(points, labels, 4, ridge=0.5)
    x = (points - probe.mean) / probe.std
    wanted = torch.nn.functional.one_hot(labels, 4).float()
    primal = torch.linalg.solve(x.T @ x + 0.5 * 20 * torch.eye(20), x.T @ (wanted - wanted.mean(0)))
    torch.testing.assert_close(probe.weights, primal, atol=1e-4, rtol=1e-3)


def test_training_pictures_come_in_order_and_again() -> None:
    pictures, labels = training_pictures(COMPOSER, SCENES, 4)
    assert pictures.shape == (12, 3, SIZE, SIZE)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    torch.testing.assert_close(pictures, training_pictures(COMPOSER, SCENES, 4)[0], atol=0, rtol=0)
    corners = pictures[:, :, 0, 0]
    assert not ((corners[:, 0] > 0.7) & (corners[:, 1] < 0.3) & (corners[:, 2] > 0.7)).any()  # no held-out magenta


def test_a_probe_of_scenes_names_them() -> None:
    pictures, labels = training_pictures(COMPOSER, SCENES, 12)
    again, same = training_pictures(COMPOSER, SCENES, 6, seed=1)
    probe = fit_probe(ColourJudge().features(pictures), labels, len(SCENES))
    assert (probe(ColourJudge().features(again)) == same).float().mean() > 0.8


def test_places_are_photographs_and_drawings() -> None:
    rng = random.Random(0)
    kinds = {place_of(COMPOSER, "in front of a brick wall", rng).kind for _ in range(20)}
    assert kinds == {"brick"}  # the drawn world has no such photograph
    assert {place_of(COMPOSER, "in the forest", rng).kind for _ in range(20)} == {"photo"}


def test_phrases_differ() -> None:
    assert len(set(PHRASES)) == len(PHRASES)
