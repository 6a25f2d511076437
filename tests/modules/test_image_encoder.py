from collections.abc import Callable

import pytest
import torch

from blip_diffusion.errors import ConfigError
from blip_diffusion.modules.image_encoder import (
    EfficientNetFullTower,
    EfficientNetTower,
    GridTower,
    ImageEncoder,
    ImageEncoderConfig,
    build_tower,
)
from blip_diffusion.modules.qformer import place_features

CLIP = ImageEncoderConfig(image_size=28, width=24, layers=2, heads=2, inner=48, patch=14)
LITE = ImageEncoderConfig(tower="efficientnet-lite0", image_size=32)
FULL = ImageEncoderConfig(tower="efficientnet-lite0-full", image_size=64)


@pytest.fixture(scope="module", params=[CLIP, LITE, FULL], ids=lambda config: config.tower)
def encoder(request: pytest.FixtureRequest) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(request.param)


def images(encoder: ImageEncoder) -> torch.Tensor:
    return torch.randn(2, 3, encoder.config.image_size, encoder.config.image_size)


def test_shapes(encoder: ImageEncoder) -> None:
    patches = (encoder.config.image_size // 14) ** 2 + 1 if encoder.config.tower == "clip" else 4
    assert encoder(images(encoder)).shape == (2, patches, encoder.width)


def test_train_mode_keeps_the_tower_frozen(encoder: ImageEncoder) -> None:
    encoder.train()
    assert encoder.training and encoder.norm.training
    assert not any(module.training for module in encoder.tower.modules())
    assert not any(parameter.requires_grad for parameter in encoder.tower.parameters())
    encoder(images(encoder)).square().sum().backward()
    assert encoder.norm.weight.grad is not None
    assert all(parameter.grad is None for parameter in encoder.tower.parameters())


def test_features_are_the_input_of_the_norm(encoder: ImageEncoder) -> None:
    pixels = images(encoder)
    features = encoder.features(pixels)
    assert not features.requires_grad
    assert torch.equal(encoder.norm(features), encoder(pixels))


def test_images_of_a_batch_are_independent(encoder: ImageEncoder) -> None:
    pixels = images(encoder)
    torch.testing.assert_close(encoder(pixels)[1:], encoder(pixels[1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [EfficientNetTower, EfficientNetFullTower])
def test_calibrated_features_are_standardised(make: Callable[[], GridTower]) -> None:
    torch.manual_seed(0)
    tower, pixels = make(), torch.randn(16, 3, 32, 32)
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    tower.calibrate(pixels)
    features = tower(pixels)[..., : tower.width - tower.places]
    assert features.mean(dim=(0, 1)).abs().max() < 1e-3
    spread = features.std(dim=(0, 1))
    assert ((spread - 1).abs() < 1e-3)[tower.std > 1e-3].all() and spread.max() < 1.001


def test_features_contain_the_colours_of_the_patches() -> None:
    """Of an image that is red at the left, the cells of the left patches are red: 48 numbers after the features."""
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[:, 0, :, :16] = 1
    colours = EfficientNetTower()(pixels)[0, :, 112 + 160 : 112 + 160 + 48].view(2, 2, 3, 16)
    assert (colours[:, 0, 0] == 1).all() and colours[:, 1].abs().max() == 0 and colours[:, :, 1:].abs().max() == 0


def test_features_of_the_full_tower_are_of_the_head() -> None:
    """Patches of 32 pixels: the head's features, then the colours of their cells, in the image's order."""
    torch.manual_seed(0)
    tower, pixels = EfficientNetFullTower(), torch.randn(1, 3, 64, 64)
    features = tower(pixels)[0].view(2, 2, 1360)
    head = tower.network(pixels, (-1,))[0]
    torch.testing.assert_close(features[..., :1280], head[0].permute(1, 2, 0))
    torch.testing.assert_close(features[1, 0, 1280], pixels[0, 0, 32:40, :8].mean())


def test_position_features_differ_and_are_symmetric() -> None:
    places = place_features(8, 32)
    assert places.shape == (1, 64, 32)
    apart = torch.cdist(places[0], places[0]) + torch.eye(64) * 9
    assert apart.min() > 0.1
    grid = places.view(8, 8, 2, 16)
    assert torch.equal(grid[:, :, 0], grid[:, :, 1].transpose(0, 1))


def test_errors() -> None:
    with pytest.raises(ValueError, match="a multiple of 16"):
        EfficientNetTower()(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="a multiple of 32"):
        EfficientNetFullTower()(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match="reads squares, not 32 x 48"):
        EfficientNetTower()(torch.zeros(1, 3, 32, 48))
    build_tower(CLIP).check_side(28)
    with pytest.raises(ConfigError, match="reads images of 28 pixels, not 42"):
        build_tower(CLIP).check_side(42)
    with pytest.raises(ConfigError, match="no tower 'resnet'"):
        build_tower(ImageEncoderConfig(tower="resnet"))  # type: ignore[arg-type]
