import pytest
import torch

from blip_diffusion.modules.discriminator import PatchDiscriminator, hinge
from blip_diffusion.modules.efficientnet_lite import EfficientNetLite
from blip_diffusion.modules.perceptual_loss import PerceptualDistance


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    torch.manual_seed(0)
    return PerceptualDistance(EfficientNetLite(last_block=7))


def test_perceptual_loss_is_a_distance(distance: PerceptualDistance) -> None:
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert distance(a, a).item() == pytest.approx(0, abs=1e-6)
    assert distance(a, b) > 0
    assert distance(a, b).item() == pytest.approx(distance(b, a).item(), rel=1e-5)


def test_gradient_reaches_only_the_prediction(distance: PerceptualDistance) -> None:
    prediction, expected = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32, requires_grad=True)
    distance(prediction, expected).backward()
    assert prediction.grad is not None and prediction.grad.abs().max() > 0
    assert expected.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_discriminator_returns_logits_of_patches() -> None:
    assert PatchDiscriminator(8)(torch.rand(2, 3, 32, 48)).shape == (2, 1, 4, 6)


def test_hinge() -> None:
    sure, wrong = torch.full((4,), 2.0), torch.full((4,), -2.0)
    assert hinge(sure, wrong) == 0
    assert hinge(wrong, sure) == 3
    assert hinge(torch.zeros(4), torch.zeros(4)) == 1
