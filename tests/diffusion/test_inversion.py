"""Inversions lead back to the image, and steps are diffusers' own."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from blip_diffusion.diffusion import inversion
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.errors import InputError

STEPS = 20


def scheduler(kind: str, *, zero_snr: bool = True) -> DDIMScheduler:
    made = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=kind,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    made.set_timesteps(STEPS)
    return made


def process_of(own: DDIMScheduler) -> Noising:
    return Noising(own.alphas_cumprod.float(), own.config.prediction_type)


def network(latents: Tensor, timestep: Tensor) -> Tensor:
    """Smooth in the latents and different at each level, as a trained network is."""
    return torch.tanh(latents.roll(1, -1) + 0.3 * latents) * (0.5 + timestep.float().view(-1, 1, 1, 1) / 2000)


def noises(seed: int = 0) -> Any:
    rng = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(2, 4, 8, 8, generator=rng)


@pytest.fixture
def clean() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edit_friendly_ddpm_is_exact(clean: Tensor, kind: str) -> None:
    own = scheduler(kind, zero_snr=kind == "v_prediction")
    noising = process_of(own)
    timesteps = inversion.visited_timesteps(noising, own.timesteps.tolist())
    path = inversion.ddpm_inversion(network, clean, noising, timesteps, noises())
    assert (inversion.sample_from(network, path, noising) - clean).abs().max() < 1e-5
    other = inversion.sample_from(lambda x, t: network(x, t) + 0.1, path, noising)
    assert (other - clean).abs().max() > 1e-2


def test_direct_inversion_keeps_its_path(clean: Tensor) -> None:
    own = scheduler("v_prediction")
    noising = process_of(own)
    timesteps = inversion.visited_timesteps(noising, own.timesteps.tolist())
    path = inversion.ddim_inversion(network, clean, noising, timesteps)
    result = inversion.sample_from(network, path, noising, hook=lambda level, _: path.latents[level])
    assert torch.equal(result, clean)
    assert len(path.latents) == len(timesteps) + 1 == STEPS


def test_ddim_comes_closer_with_more_steps(clean: Tensor) -> None:
    own = scheduler("v_prediction")
    noising, errors = process_of(own), []
    for count in (10, 100):
        own.set_timesteps(count)
        timesteps = inversion.visited_timesteps(noising, own.timesteps.tolist())
        path = inversion.sampled_path(network, inversion.ddim_inversion(network, clean, noising, timesteps), noising)
        errors.append(float((path.latents[-1] - clean).square().mean()))
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.01


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_steps_are_those_of_diffusers(clean: Tensor, kind: str) -> None:
    own = scheduler(kind, zero_snr=kind == "v_prediction")
    noising = process_of(own)
    timesteps = inversion.visited_timesteps(noising, own.timesteps.tolist())
    path = inversion.noised_path(clean, noising, timesteps, noises()())
    ours = inversion.sample_from(network, path, noising)
    theirs = path.latents[0]
    for timestep in timesteps:
        theirs = own.step(network(theirs, torch.tensor(timestep)), timestep, theirs, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_noisiest_level_of_zero_snr_is_skipped() -> None:
    own = scheduler("v_prediction")
    timesteps = own.timesteps.tolist()
    assert timesteps[0] == 999
    assert inversion.visited_timesteps(process_of(own), timesteps) == tuple(timesteps[1:])
    plain = process_of(scheduler("epsilon", zero_snr=False))
    assert inversion.visited_timesteps(plain, timesteps) == tuple(timesteps)
    assert inversion.visited_timesteps(plain, timesteps, 0.4) == tuple(timesteps[-8:])
    with pytest.raises(InputError, match=r"strength 0\.01"):
        inversion.visited_timesteps(plain, timesteps, 0.01)


def test_resampling_takes_each_step_but_the_last_again(clean: Tensor) -> None:
    own = scheduler("v_prediction")
    noising = process_of(own)
    timesteps = inversion.visited_timesteps(noising, own.timesteps.tolist())
    path = inversion.noised_path(clean, noising, timesteps, noises()())
    calls: list[int] = []

    def counting(latents: Tensor, timestep: Tensor) -> Tensor:
        calls.append(int(timestep))
        return network(latents, timestep)

    result = inversion.sample_from(counting, path, noising, resamplings=3, noise=noises(1))
    assert len(calls) == 3 * (len(timesteps) - 1) + 1
    assert result.isfinite().all() and 0.2 < float(result.std()) < 5
