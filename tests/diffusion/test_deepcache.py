import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from blip_diffusion.diffusion.deepcache import ShallowUNet, WholeUNet, deepcache
from blip_diffusion.diffusion.guidance import Denoiser, guided, on_interval, split_batch, unet_denoiser
from blip_diffusion.errors import InputError

SHAPES = {
    "attention outside": {"down": ("CrossAttnDownBlock2D", "DownBlock2D"), "up": ("UpBlock2D", "CrossAttnUpBlock2D")},
    "plain outside": {"down": ("DownBlock2D", "CrossAttnDownBlock2D"), "up": ("CrossAttnUpBlock2D", "UpBlock2D")},
}  # fmt: skip


def unet(kind: str = "attention outside", **more: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=SHAPES[kind]["down"], up_block_types=SHAPES[kind]["up"], **more,
    ).eval()  # fmt: skip


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=rng), torch.tensor(500), torch.randn(2, 5, 8, generator=rng)


def constant(value: float) -> Denoiser:
    return lambda latents, timestep: torch.full_like(latents, value)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", SHAPES)
def test_features_of_the_same_step_give_the_full_prediction(
    given: tuple[Tensor, Tensor, Tensor], kind: str, layers: int
) -> None:
    net = unet(kind)
    latents, timestep, text = given
    output, deep = WholeUNet(net, layers)(*given)
    assert torch.equal(output, net(latents, timestep, encoder_hidden_states=text).sample)
    torch.testing.assert_close(ShallowUNet(net, layers)(*given, deep), output)
    assert not torch.allclose(ShallowUNet(net, layers)(*given, deep.flip(0)), output, atol=1e-3)
    assert not net.up_blocks[-1].resnets[-layers]._forward_pre_hooks  # nothing is left behind


@torch.no_grad()
def test_cached_features_are_reused(given: tuple[Tensor, Tensor, Tensor]) -> None:
    net = unet()
    latents, _, text = given
    calls: list[str] = []
    whole, shallow = WholeUNet(net), ShallowUNet(net)
    whole.register_forward_hook(lambda *_: calls.append("whole"))
    shallow.register_forward_hook(lambda *_: calls.append("shallow"))
    denoise = deepcache(whole, shallow, text, every=3)
    first = denoise(latents, torch.tensor(900))
    second = denoise(latents, torch.tensor(880))
    exact = net(latents, torch.tensor(880), encoder_hidden_states=text).sample
    assert 0 < (second - exact).norm() < (first - exact).norm()  # nearer than doing nothing
    for time in (860, 840, 820):
        denoise(latents, torch.tensor(time))
    assert calls == ["whole", "shallow", "shallow", "whole", "shallow"]


@torch.no_grad()
def test_half_precision_is_internal(given: tuple[Tensor, Tensor, Tensor]) -> None:
    net = unet().to(torch.bfloat16)
    latents, timestep, text = given
    half_text = text.to(torch.bfloat16)
    output, deep = WholeUNet(net)(latents, timestep, half_text)
    assert output.dtype == torch.float32 and deep.dtype == torch.bfloat16
    assert ShallowUNet(net)(latents, timestep, half_text, deep).dtype == torch.float32


def test_unsupported_unets_are_refused() -> None:
    with pytest.raises(InputError, match="has 1 to 3"):
        WholeUNet(unet(), 4)
    with pytest.raises(InputError, match="has 1 to 3"):
        ShallowUNet(unet(), 0)
    with pytest.raises(InputError, match="architecture of Stable Diffusion 1"):
        ShallowUNet(unet(class_embed_type="timestep"))


def test_guidance_interval() -> None:
    denoise = on_interval((0.25, 0.75), 8, constant(1), constant(0))
    outputs = [denoise(torch.zeros(1), torch.tensor(0)).item() for _ in range(8)]
    assert outputs == [0, 0, 1, 1, 1, 1, 0, 0]
    denoise = on_interval((0.0, 1.0), 3, constant(1), constant(0))
    assert [denoise(torch.zeros(1), torch.tensor(0)).item() for _ in range(3)] == [1, 1, 1]


@torch.no_grad()
def test_two_passes_equal_one_batched_pass(given: tuple[Tensor, Tensor, Tensor]) -> None:
    net = unet()
    latents, timestep, text = given
    empty = torch.zeros_like(text)
    both = guided(unet_denoiser(net, torch.cat([empty, text])), 3.0)
    apart = guided(split_batch(unet_denoiser(net, empty), unet_denoiser(net, text)), 3.0)
    torch.testing.assert_close(both(latents, timestep), apart(latents, timestep), atol=1e-5, rtol=1e-5)
