"""Inpainting by concatenation: it begins as the model it extends, only the U-Net moves, and masks are what is said."""

import random

import pytest
import torch
from torch import Tensor

from blip_diffusion.data import inpainting_masks
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.inpaint import InpaintConfig, Inpainting

from .overfit import ids, moved_parameters, overfit


def objective(model: BlipDiffusion) -> Inpainting:
    return Inpainting(model, noising_from(model.scheduler), InpaintConfig())


@torch.no_grad()
def test_at_first_it_is_the_model_that_it_extends(model: BlipDiffusion, batch: SubjectBatch) -> None:
    states, latents = model.text_states(batch["caption"]), torch.randn(6, 4, 4, 4)
    before = model.denoiser(states)(latents, torch.tensor(500))
    own = objective(model)
    assert own.model.reads_mask
    condition = model.inpainting_condition(batch["target"], batch["target_alpha"])
    assert condition.shape == (6, 5, 4, 4)
    assert torch.equal(model.denoiser(states, condition)(latents, torch.tensor(500)), before)


def test_it_learns_a_batch_and_only_the_unet_moves(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = objective(model)
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("unet.")}
    first, last = overfit(own, batch, steps=8, lr=5e-3)
    assert last < 0.9 * first
    assert moved_parameters(own) == ids(model.unet.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert float(model.unet.conv_in.weight[:, 4:].detach().abs().max()) > 0
    assert model.unet.training and not model.text_encoder.training


def test_the_masks_have_their_shares(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = objective(model).train()
    rng = torch.Generator().manual_seed(0)
    masks = torch.cat([own.random_masks(batch["target_alpha"], rng) for _ in range(40)])
    assert set(masks.unique().tolist()) <= {0.0, 1.0} and masks.shape[1:] == (1, 32, 32)
    whole = float((masks.mean((1, 2, 3)) == 1).float().mean())
    assert 0.2 < whole < 0.4


def test_shapes_about_a_subject(batch: SubjectBatch) -> None:
    alpha = batch["target_alpha"][0]
    kinds = {tuple(inpainting_masks.subject_mask(alpha, random.Random(seed)).flatten().tolist()) for seed in range(12)}
    assert len(kinds) > 4
    outline = inpainting_masks.subject_mask(alpha, random.Random(1))
    assert float((outline * (alpha > 0.5)).sum()) > 0.8 * float((alpha > 0.5).sum())
    assert torch.equal(inpainting_masks.kept_subject_mask(alpha), (alpha <= 0.5).float())
    assert inpainting_masks.subject_mask(torch.zeros_like(alpha), random.Random(0)).max() == 1


@pytest.mark.parametrize("size", [32, 256])
def test_strokes_and_boxes_scale_with_the_image(size: int) -> None:
    masks: list[Tensor] = [inpainting_masks.lama_mask(size, random.Random(seed)) for seed in range(30)]
    areas = torch.stack([mask.mean() for mask in masks])
    assert all(mask.shape == (1, size, size) for mask in masks)
    assert 0.1 < float(areas.mean()) < 0.5 and float(areas.std()) > 0.05


def test_shares_beyond_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 1"):
        InpaintConfig(whole=0.9, subject=0.5)
