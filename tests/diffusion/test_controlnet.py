"""T2I-Adapters and ControlNets in the denoiser, compared with diffusers' U-Net."""

import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from torch import Tensor

from blip_diffusion.diffusion.controlnet import Control, controlled_denoiser
from blip_diffusion.training.shapes import TINY

TIMESTEP = torch.tensor(500)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY.unet).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def adapter() -> T2IAdapter:
    torch.manual_seed(1)
    return T2IAdapter(1, [32, 64], num_res_blocks=1).eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENTS, TEXT, IMAGE = noise(2, 4, 4, 4), noise(2, 5, 32, seed=1), noise(2, 1, 32, 32, seed=2).sigmoid()


def predict(unet: UNet2DConditionModel, *controls: Control, step: int = 0, steps: int = 1, **more: bool) -> Tensor:
    denoise = controlled_denoiser(unet, TEXT, controls, steps=steps, counter=iter(range(step, steps)), **more)
    return denoise(LATENTS, TIMESTEP)


def test_adapter_residuals_equal_those_of_diffusers(unet: UNet2DConditionModel, adapter: T2IAdapter) -> None:
    features = [0.7 * x for x in adapter(IMAGE)]
    given = {"encoder_hidden_states": TEXT, "down_intrablock_additional_residuals": features}
    assert torch.equal(predict(unet, Control(adapter, IMAGE, 0.7)), unet(LATENTS, TIMESTEP, **given).sample)
    assert not torch.allclose(predict(unet, Control(adapter, IMAGE)), predict(unet), atol=1e-3)


def test_control_image_is_repeated_and_converted_to_grey(unet: UNet2DConditionModel, adapter: T2IAdapter) -> None:
    colours = IMAGE[:1].expand(-1, 3, -1, -1)
    alike = predict(unet, Control(adapter, IMAGE[:1].repeat(2, 1, 1, 1)))
    torch.testing.assert_close(predict(unet, Control(adapter, colours)), alike)


def test_two_adapters_and_a_controlnet_add_up(unet: UNet2DConditionModel, adapter: T2IAdapter) -> None:
    net = ControlNetModel.from_unet(unet).eval()  # which adds nothing yet
    both = predict(unet, Control(adapter, IMAGE, 0.3), Control(net, IMAGE), Control(adapter, IMAGE, 0.4))
    torch.testing.assert_close(both, predict(unet, Control(adapter, IMAGE, 0.7)), atol=1e-5, rtol=1e-4)


def test_adapter_runs_on_its_steps_and_guess_mode_on_the_conditional_half(
    unet: UNet2DConditionModel, adapter: T2IAdapter
) -> None:
    early = Control(adapter, IMAGE, end=0.5)
    assert torch.equal(predict(unet, early, step=1, steps=2), predict(unet))
    assert torch.equal(predict(unet, early, step=0, steps=2), predict(unet, Control(adapter, IMAGE)))
    guessed = predict(unet, Control(adapter, IMAGE), guess=True, doubled=True)
    torch.testing.assert_close(guessed[:1], predict(unet)[:1])
    torch.testing.assert_close(guessed[1:], predict(unet, Control(adapter, IMAGE))[1:])
