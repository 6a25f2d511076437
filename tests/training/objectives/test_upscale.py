"""Super-resolution by concatenation: at first the U-Net ignores the small image; only it is trained."""

import pytest
import torch
from PIL import Image

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.errors import ConfigError, InputError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.pixel_autoencoder import PixelAutoencoder
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.initialization import noising_from, zero_snr_scheduler
from blip_diffusion.training.objective import StepContext
from blip_diffusion.training.objectives.upscale import UpscaleConfig, Upscaling

from .overfit import ids, moved_parameters, overfit


def objective(model: BlipDiffusion, **settings: object) -> Upscaling:
    return Upscaling(model, noising_from(model.scheduler), UpscaleConfig(**settings))  # type: ignore[arg-type]


@torch.no_grad()
def test_at_first_it_is_the_model_that_it_extends(model: BlipDiffusion, batch: SubjectBatch) -> None:
    states, latents = model.text_states(batch["caption"]), torch.randn(6, 4, 4, 4)
    before = model.denoiser(states)(latents, torch.tensor(500))
    own = objective(model)
    assert model.upscales and not model.reads_mask and model.unet.config.in_channels == 8
    for level in (0, 300):
        denoiser = own.model.upscaling_denoiser(states, torch.randn(6, 4, 4, 4), torch.full((6,), level))
        assert torch.equal(denoiser(latents, torch.tensor(500)), before)


def test_it_learns_a_batch_and_only_the_unet_moves(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = objective(model)
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("unet.")}
    first, last = overfit(own, batch, steps=8, lr=5e-3)
    assert last < 0.9 * first
    assert moved_parameters(own) == ids(model.unet.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert float(model.unet.conv_in.weight[:, 4:].detach().abs().max()) > 0  # the small image is read
    assert float(model.unet.class_embedding.weight.detach().abs().max()) > 0  # and its noise level
    assert model.unet.training and not model.text_encoder.training


def test_the_small_image_is_noised_only_in_training(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = objective(model, max_noise=0.4)
    small = own._small(batch["target"])
    assert small.shape == (6, 3, 16, 16)
    rng = torch.Generator().manual_seed(0)
    clean, levels = own.eval()._condition(small, rng)
    assert levels.tolist() == [0] * 6
    noisy, levels = own.train()._condition(small, rng)
    assert 0 < int(levels.max()) <= 400 and clean.shape == noisy.shape == (6, 4, 4, 4)
    with torch.no_grad():
        exact = own.model.latents.encode(own._enlarged(small))
    assert float((noisy - exact).detach().abs().mean()) > 2 * float((clean - exact).detach().abs().mean())


def test_pixels_are_latents_of_the_identity(batch: SubjectBatch) -> None:
    """Pixel space is the case of factor 1: nothing is lost, and predicted images are thresholded dynamically."""
    vae = PixelAutoencoder()
    pixels = batch["target"]
    latents = vae.encode(pixels * 2 - 1).latent_dist.mode()
    assert torch.equal(vae.decode(latents).sample, pixels * 2 - 1) and vae.dtype == torch.float32
    scheduler = zero_snr_scheduler(pixels=True)
    scheduler.set_timesteps(4)
    clean = 1.5 * torch.ones(1, 3, 4, 4)
    clean[..., 0, 0] = 3.0
    noising = Noising.from_scheduler(scheduler)
    step = scheduler.timesteps[-1]
    noise = torch.randn(clean.shape)
    velocity = noising.target(clean, noise, step[None])
    x0 = scheduler.step(velocity, step, noising.noised(clean, noise, step[None])).pred_original_sample
    assert float(x0.max()) == pytest.approx(1) and float(x0[..., 1, 1].mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("field", "value"), [("scale", 1), ("max_noise", 1.0), ("timestep_shift", 0.0)])
def test_numbers_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        UpscaleConfig(**{field: value})  # type: ignore[arg-type]


def test_eval_losses_do_not_depend_on_the_run(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = objective(model).eval()
    losses = [float(own(batch, StepContext(0, torch.Generator().manual_seed(3)))["loss"]) for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("image", ()), ("prompt", (str,)), ("source_subject_category", (str,)), ("negative_prompt", (str,)),
        ("noise_level", ()), ("num_inference_steps", (int,)), ("guidance_scale", (int, float)), ("generator", ()),
        ("resize_mode", ()), ("subject_embeds", ()), ("output_type", ()),
    ],
)  # fmt: skip
def test_upscaling_refuses_wrong_types(
    name: str, accepted: tuple[type, ...], model: BlipDiffusion, dog: Image.Image
) -> None:
    objective(model)
    pipe = BlipDiffusionPipeline.from_model(model.eval())
    arguments = {"image": dog.resize((16, 16)), "reference_image": dog, "source_subject_category": "dog"}
    for value in (5, 2.5, "other", b"other", {"a": 1}, [None], object(), torch.rand(2, 3), float("nan")):
        if not isinstance(value, accepted) or value != value:  # NaN
            with pytest.raises(InputError, match="subject" if name == "subject_embeds" else name):
                pipe.upscale(**{**arguments, name: value})
