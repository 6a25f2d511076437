"""The sampling loop, compared with a plain loop for each family of schedulers."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from blip_diffusion.diffusion.sampler import initial_noise, sample

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
NOISE_LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DETERMINISTIC = [
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
]
RANDOM = [
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "LCMScheduler",
    "TCDScheduler",
]
ELSEWHERE = {"DPMSolverSDEScheduler"}  # needs torchsde


def scheduler(name: str, steps: int = 6) -> Any:
    made = getattr(diffusers, name)(**NOISE_LEVELS)
    made.set_timesteps(steps)
    return made


def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
    """Something that depends on all it gets, row by row."""
    return 0.3 * latents.tanh() + 0.01 * torch.sin(timestep.float())


def noise(*seeds: int) -> Tensor:
    return initial_noise((4, 3, 3), [torch.Generator().manual_seed(seed) for seed in seeds], torch.empty(0))


@pytest.mark.parametrize("name", [*DETERMINISTIC, *RANDOM])
def test_sampler_equals_the_loop_of_diffusers(name: str) -> None:
    plain, generator = scheduler(name), torch.Generator().manual_seed(3)
    x = noise(0) * plain.init_noise_sigma
    for timestep in plain.timesteps:
        output = denoise(plain.scale_model_input(x, timestep), timestep)
        more = {"generator": generator} if name in RANDOM else {}
        x = plain.step(output, timestep, x, **more).prev_sample
    ours = sample(denoise, noise(0), scheduler(name), generators=[torch.Generator().manual_seed(3)])
    assert torch.equal(ours, x)


def test_every_stable_diffusion_scheduler_is_tested() -> None:
    family = {kind.name for kind in diffusers.schedulers.KarrasDiffusionSchedulers}
    assert family - ELSEWHERE - {*DETERMINISTIC, *RANDOM} == {"EDMEulerScheduler"}  # it has noise levels of its own


@pytest.mark.parametrize(("name", "calls"), [("HeunDiscreteScheduler", 11), ("KDPM2DiscreteScheduler", 11)])
def test_second_order_schedulers_call_the_denoiser_twice_per_step(name: str, calls: int) -> None:
    denoised_at = []
    sample(lambda x, t: denoised_at.append(t) or denoise(x, t), noise(0), scheduler(name))
    assert len(denoised_at) == calls


def test_pndm_calls_the_denoiser_once_more_than_its_steps() -> None:
    """As published: 50 steps are 51 calls of the U-Net."""
    denoised_at = []

    def counted(latents: Tensor, timestep: Tensor) -> Tensor:
        denoised_at.append(int(timestep))
        return denoise(latents, timestep)

    published = diffusers.PNDMScheduler(**NOISE_LEVELS, skip_prk_steps=True, set_alpha_to_one=False)
    published.set_timesteps(50)
    sample(counted, noise(0), published)
    assert denoised_at[:4] == [980, 960, 960, 940] and denoised_at[-1] == 0 and len(denoised_at) == 51


@pytest.mark.parametrize("name", [*DETERMINISTIC, *RANDOM])
def test_image_does_not_depend_on_its_batch(name: str) -> None:
    together = sample(denoise, noise(1, 2, 3), scheduler(name), generators=generators(1, 2, 3))
    alone = sample(denoise, noise(2), scheduler(name), generators=generators(2))
    torch.testing.assert_close(together[1:2], alone)


def test_eta_is_passed_to_ddim() -> None:
    plain = sample(denoise, noise(0), scheduler("DDIMScheduler"))
    noisy = sample(denoise, noise(0), scheduler("DDIMScheduler"), generators=generators(0), eta=1.0)
    assert not torch.allclose(plain, noisy)


def test_hook_runs_at_every_step_and_may_change_latents() -> None:
    seen = []

    def hook(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        seen.append((index, int(timestep)))
        return latents * 0 if index == 5 else latents

    made = scheduler("DDIMScheduler")
    assert sample(denoise, noise(0), made, hook=hook).abs().max() == 0
    assert seen == list(enumerate(made.timesteps.tolist()))


def test_initial_noise_is_separate_for_each_image() -> None:
    together = noise(1, 2, 3)
    assert together.shape == (3, 4, 3, 3)
    for row, seed in enumerate((1, 2, 3)):
        assert torch.equal(together[row : row + 1], noise(seed))
    shared = torch.Generator().manual_seed(1)
    assert not torch.equal(*initial_noise((4, 3, 3), [shared, shared], torch.empty(0)))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
