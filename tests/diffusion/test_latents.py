import pytest
import torch
from diffusers import AutoencoderKL

from blip_diffusion.diffusion.latents import LatentCodec


def codec(depth: int, **more: float) -> LatentCodec:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,) * depth,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        **more,
    )
    return LatentCodec(vae.eval())


@pytest.mark.parametrize(("depth", "factor"), [(1, 1), (2, 2), (4, 8)])
@torch.no_grad()
def test_factor_comes_from_the_autoencoder(depth: int, factor: int) -> None:
    made = codec(depth)
    assert made.factor == factor and made.channels == 4
    latents = made.encode(torch.rand(2, 3, 32, 16))
    assert latents.shape == (2, 4, 32 // factor, 16 // factor)
    pixels = made.decode(latents)
    assert pixels.shape == (2, 3, 32, 16)
    assert pixels.min() >= 0 and pixels.max() <= 1


@torch.no_grad()
def test_the_scaling_factor_cancels() -> None:
    """It changes the units of latents and nothing else."""
    pixels = torch.rand(1, 3, 16, 16)
    plain, scaled = codec(2, scaling_factor=1.0), codec(2, scaling_factor=0.25)
    torch.testing.assert_close(scaled.encode(pixels), plain.encode(pixels) * 0.25)
    torch.testing.assert_close(scaled.decode(scaled.encode(pixels)), plain.decode(plain.encode(pixels)))


@torch.no_grad()
def test_pixels_are_in_0_1() -> None:
    made = codec(2, scaling_factor=1.0)
    pixels = torch.rand(1, 3, 16, 16)
    assert torch.equal(made.encode(pixels), made.vae.encode(pixels * 2 - 1).latent_dist.mode())


@torch.no_grad()
def test_generator_samples_the_posterior() -> None:
    made, pixels = codec(2), torch.rand(1, 3, 16, 16)

    def sample_latents(seed: int) -> torch.Tensor:
        return made.encode(pixels, torch.Generator().manual_seed(seed))

    assert torch.equal(sample_latents(1), sample_latents(1)) and not torch.equal(sample_latents(1), sample_latents(2))
    assert torch.equal(made.encode(pixels), made.encode(pixels))
