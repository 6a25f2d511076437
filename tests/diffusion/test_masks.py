"""Masks: where predictions differ, thin masks that survive, and pixels outside that stay."""

import torch
from torch import Tensor

from blip_diffusion.diffusion import masks
from blip_diffusion.diffusion.forward_process import Noising


def box(size: int, left: int, top: int, right: int, bottom: int) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., top:bottom, left:right] = 1
    return mask


def test_the_difference_of_two_predictions_is_the_mask() -> None:
    noising = Noising(torch.linspace(0.999, 0.01, 1000))
    where = box(16, 4, 5, 9, 11)

    def both(latents: Tensor, timestep: Tensor) -> Tensor:
        answer = 0.1 * latents
        answer[masks.NOISES :] += where
        return answer

    rng = torch.Generator().manual_seed(0)
    found = masks.difference_mask(both, torch.zeros(1, 4, 16, 16), noising, rng, threshold=0.5, factor=8)
    pixels = masks.pixel_mask(where, 8)
    assert found.shape == pixels.shape and float((found * pixels).sum()) > 0.95 * float(pixels.sum())
    assert float(found.sum()) < 1.5 * float(pixels.sum())


def test_a_thin_mask_reaches_the_latents() -> None:
    line = box(64, 0, 30, 64, 32)
    assert float(masks.latent_mask(line, 8)[..., 3, :].min()) == 1
    assert torch.equal(masks.pixel_mask(masks.latent_mask(line, 8), 8)[..., 30, :], torch.ones(1, 1, 64))


def test_pixels_outside_the_mask_stay_exactly() -> None:
    photo, edit, mask = torch.rand(1, 3, 64, 64), torch.rand(2, 3, 64, 64), box(64, 10, 12, 50, 40)
    pasted = masks.paste(photo, edit, mask, feather=3)
    outside = (mask == 0).expand_as(pasted)
    assert torch.equal(pasted[outside], photo.expand_as(pasted)[outside])
    assert torch.equal(pasted[..., 20:30, 20:40], edit[..., 20:30, 20:40])
    edge = masks.feathered(mask, 3)[0, 0, 25]
    assert 0 < float(edge[11]) < float(edge[12]) < 1 and edge[9] == 0


def test_a_mask_that_is_thinner_than_its_feather_stays() -> None:
    line = box(64, 0, 30, 64, 32)
    assert torch.equal(masks.feathered(line, 3), line)
