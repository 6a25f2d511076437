from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from blip_diffusion.diffusion.cross_attention import adjusted_attention, region_bias, visibility_of
from blip_diffusion.modules.placed_unet import cross_attentions

LEFT = torch.tensor([[[1.0, 1.0, 0.0, 0.0]] * 4, [[0.0, 0.0, 1.0, 1.0]] * 4])


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=12,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), only_cross_attention=(True, False),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def given() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, and two sets of text states."""
    rng = torch.Generator().manual_seed(1)
    first, second = (3 * torch.randn(2, 5, 12, generator=rng) for _ in range(2))
    return torch.randn(2, 4, 4, 4, generator=rng), first, second


@pytest.fixture(autouse=True)
def _nothing_is_left(unet: UNet2DConditionModel) -> Iterator[None]:
    yield
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in unet.modules())


@torch.no_grad()
def answer(unet: UNet2DConditionModel, latents: Tensor, text: Tensor) -> Tensor:
    return unet(latents, torch.tensor(500), encoder_hidden_states=text).sample


def layers(unet: UNet2DConditionModel, scale: float = 1.0) -> list[tuple[torch.nn.Module, float]]:
    return [(layer, scale) for layer in cross_attentions(unet)]


def test_the_same_sentence_twice_is_that_sentence(
    unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]
) -> None:
    """So negative prompts are repeated and nothing changes, whatever the regions."""
    latents, text, _ = given
    with adjusted_attention(layers(unet), visibility=visibility_of(LEFT)):
        twice = answer(unet, latents, text.repeat(1, 2, 1))
    torch.testing.assert_close(twice, answer(unet, latents, text), atol=1e-5, rtol=1e-4)


def test_a_region_of_everything_hides_the_other_sentence(
    unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]
) -> None:
    latents, first, second = given
    everything = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    with adjusted_attention(layers(unet), visibility=visibility_of(everything)):
        masked = answer(unet, latents, torch.cat([first, second], dim=1))
    difference = (masked - answer(unet, latents, first)).abs().max()
    assert difference < 0.05 * (answer(unet, latents, second) - answer(unet, latents, first)).abs().max()


@pytest.mark.parametrize(("scale", "which"), [(0.0, 1), (1.0, 0)])
def test_scales_0_and_1_are_exact(
    unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor], scale: float, which: int
) -> None:
    latents, *texts = given
    with adjusted_attention(layers(unet, scale), has_without=True):
        scaled = answer(unet, latents, torch.cat(texts, dim=1))
    assert torch.equal(scaled, answer(unet, latents, texts[which]))


def test_scales_between_mix_each_layer(unet: UNet2DConditionModel, given: tuple[Tensor, Tensor, Tensor]) -> None:
    _, first, second = given
    layer = cross_attentions(unet)[0]
    hidden = torch.randn(2, 16, layer.to_q.in_features)
    with torch.no_grad(), adjusted_attention([(layer, 0.25)], has_without=True):
        mixed = layer(hidden, encoder_hidden_states=torch.cat([first, second], dim=1))
    with torch.no_grad():
        parts = [layer(hidden, encoder_hidden_states=text) for text in (first, second)]
    torch.testing.assert_close(mixed, 0.25 * parts[0] + 0.75 * parts[1])


def test_nothing_is_left_after_an_error(unet: UNet2DConditionModel) -> None:
    with pytest.raises(RuntimeError), adjusted_attention(layers(unet)):
        raise RuntimeError


def test_all_sentences_are_visible_outside_the_regions() -> None:
    inside = torch.zeros(2, 2, 3)
    inside[0, :, 0], inside[1, :, 0], inside[1, :, 1] = 1, 0.5, 1
    assert visibility_of(inside)[:, 0].tolist() == [[1, 0, 1], [0.5, 1, 1]]


def test_a_bias_is_of_the_layers_own_size() -> None:
    bias = region_bias(visibility_of(LEFT), 4, 6)
    assert bias.shape == (1, 4, 6) and bias[0, 0].tolist() == pytest.approx([0, 0, 0, *[-9.2103] * 3], abs=1e-3)
