from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from blip_diffusion.checkpoint.model_folder import Parts, read_parts
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.training.initialization import InitConfig, init_vae, perceptual_distance
from blip_diffusion.training.objectives.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    random_crops,
    random_noise,
)

from .overfit import context, ids, moved_parameters, overfit, with_gradient


def make_objective(perceptual: bool = False, **config: float) -> Autoencoder:
    distance = perceptual_distance() if perceptual else None
    vae: AutoencoderKL = init_vae(Parts(), InitConfig("tiny"))
    return Autoencoder(vae, distance, AutoencoderConfig(**{"crop": 32, **config}))  # type: ignore[arg-type]


def test_overfits_one_batch(batch: SubjectBatch) -> None:
    before, after = overfit(make_objective(perceptual=True, chroma_weight=1.0), batch, steps=30, lr=3e-3)
    assert after < 0.7 * before


def test_loss_is_the_sum_of_its_terms(batch: SubjectBatch) -> None:
    objective = make_objective(perceptual=True, chroma_weight=0.5, kl=1e-3, adversarial=0.3)
    losses = {name: value.item() for name, value in objective(batch, context()).items()}
    expected = losses["absolute"] + 0.5 * losses["colour"] + 1e-3 * losses["kl"] + 0.2 * losses["perceptual"]
    assert losses["loss"] == pytest.approx(expected + losses["discriminator"] + 0.3 * losses["adversarial"], rel=1e-4)


def test_discriminator_and_autoencoder_gradients_are_separate(batch: SubjectBatch) -> None:
    both = make_objective(adversarial=0.1)
    losses = both(batch, context())
    assert both.discriminator is not None
    vae, discriminator = list(both.vae.parameters()), list(both.discriminator.parameters())
    losses["discriminator"].backward(retain_graph=True)
    assert all(with_gradient(discriminator)) and not any(with_gradient(vae))
    both.zero_grad()
    losses["adversarial"].backward()
    assert any(with_gradient(vae)) and not any(with_gradient(discriminator))


def test_discriminator_is_trained_before_its_loss_is_used(batch: SubjectBatch) -> None:
    both = make_objective(adversarial=0.5, adversarial_start=10)
    early, late = both(batch, context(step=9)), both(batch, context(step=10))
    assert (early["loss"] - early["discriminator"]).item() == pytest.approx(
        (late["loss"] - late["discriminator"] - 0.5 * late["adversarial"]).item(), rel=1e-4
    )


def test_decoder_training_keeps_the_encoder(batch: SubjectBatch, tmp_path: Path) -> None:
    polished = make_objective(train_encoder=False)
    polished.vae.register_to_config(scaling_factor=0.3)
    moved = moved_parameters(polished)
    assert not moved & ids(polished.vae.encoder.parameters()) and not moved & ids(polished.vae.quant_conv.parameters())
    assert moved >= ids(polished.vae.decoder.parameters())
    pixels = batch["target"] * 2 - 1
    before = polished.vae.encode(pixels).latent_dist.mode()
    overfit(polished, batch, steps=3, lr=1e-2)
    assert torch.equal(before, polished.vae.encode(pixels).latent_dist.mode())
    polished.export(tmp_path)
    assert read_parts(tmp_path).vae.config.scaling_factor == 0.3


def test_latent_noise_is_limited_by_the_standard_deviation() -> None:
    noise, disturbance = random_noise(torch.Size((64, 4, 8, 8)), 0.3, context().rng)
    amounts = disturbance.std(dim=(1, 2, 3))
    assert 0 < amounts.min() < 0.1 and 0.2 < amounts.max() < 0.33
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert not torch.equal(noise, random_noise(noise.shape, 0.3, context(seed=1).rng)[0])


@torch.no_grad()
def test_decoder_input_contains_the_noise(batch: SubjectBatch) -> None:
    pixels, disturbed = batch["target"], make_objective(latent_noise=0.3)
    zero = torch.zeros(disturbed.latent_shape(pixels))
    plain, changed = (disturbed.losses(pixels, zero, zero + amount, 0)["absolute"] for amount in (0.0, 1.0))
    assert plain != changed
    assert plain == make_objective().losses(pixels, zero, zero + 1, 0)["absolute"]


def test_export_scales_latents_to_unit_variance(tmp_path: Path) -> None:
    trained = make_objective().train()
    for step in range(50):
        trained._measure(torch.randn(64, generator=torch.Generator().manual_seed(step)) * 3)
    trained.export(tmp_path)
    assert read_parts(tmp_path).vae.config.scaling_factor == pytest.approx(1 / 3, rel=0.05)


def test_metrics_are_computed_in_training_only(batch: SubjectBatch) -> None:
    measured = make_objective()
    measured.eval()(batch, context())
    assert measured.latent_variance == 1
    measured.train()(batch, context())
    assert measured.latent_variance != 1


def test_samples_show_images_and_reconstructions(batch: SubjectBatch) -> None:
    expected_latents, left = make_objective().sample_images(batch)
    assert expected_latents is batch["target"] and left.shape == expected_latents.shape
    assert left.min() >= 0 and left.max() <= 1 and F.l1_loss(left, expected_latents) > 0


def test_crops_of_a_pair_have_the_same_position() -> None:
    pixels = torch.arange(40 * 40.0).view(1, 1, 40, 40).expand(2, 3, -1, -1)
    crops = [random_crops(pixels, 16, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert all(crop.shape == (2, 3, 16, 16) and torch.equal(crop[0], crop[1]) for crop in crops)
    corners = {divmod(int(crop[0, 0, 0, 0]), 40) for crop in crops}
    assert len(corners) > 30 and max(max(corner) for corner in corners) <= 24
    assert random_crops(pixels, 64, torch.Generator()).shape == (2, 3, 40, 40)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="crop is 20: use a multiple of 16"):
        AutoencoderConfig(crop=20)
