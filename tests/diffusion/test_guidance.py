import pytest
import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import guided, unet_denoiser
from blip_diffusion.model import BlipDiffusion

EMPTY, FULL = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
LATENTS, T = torch.zeros(2, 4, 3, 3), torch.tensor(5)


def both(latents: Tensor, timestep: Tensor) -> Tensor:
    """Answers for a doubled batch: first without the prompt, then with it."""
    assert len(latents) == 4 and timestep == 5
    return torch.cat([EMPTY, FULL])


def test_scales() -> None:
    torch.testing.assert_close(guided(both, 1.0)(LATENTS, T), FULL)
    torch.testing.assert_close(guided(both, 0.0)(LATENTS, T), EMPTY)
    torch.testing.assert_close(guided(both, 7.5)(LATENTS, T), EMPTY + 7.5 * (FULL - EMPTY))


@pytest.mark.parametrize("scale", [3.0, 12.0])
def test_full_rescaling_keeps_the_conditional_std(scale: float) -> None:
    plain, rescaled = guided(both, scale)(LATENTS, T), guided(both, scale, rescale=1.0)(LATENTS, T)
    torch.testing.assert_close(rescaled.std(dim=(1, 2, 3)), FULL.std(dim=(1, 2, 3)))
    assert (plain.std(dim=(1, 2, 3)) > FULL.std(dim=(1, 2, 3))).all()
    half = guided(both, scale, rescale=0.5)(LATENTS, T)
    torch.testing.assert_close(half, (plain + rescaled) / 2)


@torch.no_grad()
def test_guidance_puts_the_empty_prompt_first(model: BlipDiffusion) -> None:
    """At scale 0, nothing of the second half of the text states is left."""
    text = torch.randn(2, 8, 32)
    latents, timestep = torch.randn(1, 4, 4, 4), torch.tensor(10)
    first = unet_denoiser(model.unet, text[:1])(latents, timestep)
    torch.testing.assert_close(guided(model.denoiser(text), 0.0)(latents, timestep), first)
    second = unet_denoiser(model.unet, text[1:])(latents, timestep)
    torch.testing.assert_close(guided(model.denoiser(text), 1.0)(latents, timestep), second)
    assert not torch.allclose(first, second)
