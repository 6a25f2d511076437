"""Schedulers of untrusted files: settings that can't work are refused in a sentence, and all that work are accepted."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers

from blip_diffusion.diffusion.sampler import sample
from blip_diffusion.diffusion.scheduler_checks import check_scheduler, check_settings
from blip_diffusion.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
USUAL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
         "skip_prk_steps": True}  # fmt: skip
OTHERS = {"DPMSolverSDEScheduler", "EDMEulerScheduler"}
"""The first needs torchsde, the second has noise levels of its own."""
WORKING = [
    *(kind.name for kind in KarrasDiffusionSchedulers if kind.name not in OTHERS),
    "LCMScheduler", "TCDScheduler", "DDIMParallelScheduler", "SASolverScheduler",
]  # fmt: skip


def scheduler(name: str = "DDIMScheduler", **settings: Any) -> Any:
    return getattr(diffusers, name).from_config({**USUAL, **settings})


@pytest.mark.parametrize(
    "name", [*WORKING, "LCMScheduler", "TCDScheduler", "DDIMParallelScheduler", "SASolverScheduler"]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps_offset": 1, "timestep_spacing": "leading"},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"beta_schedule": "linear"},
        {"num_train_timesteps": 250},
        {"clip_sample": True, "clip_sample_range": 1, "thresholding": False},
    ],
    ids=str,
)
def test_working_settings_are_accepted(name: str, settings: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    check_settings(scheduler(name, **settings))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps_offset": 999, "timestep_spacing": "leading"}, "see steps_offset"),
        ({"steps_offset": -5, "timestep_spacing": "leading"}, "see steps_offset"),
        ({"steps_offset": 0.5}, "steps_offset is '0.5', use a whole number"),
        ({"steps_offset": "x"}, "steps_offset is 'x', use a whole number"),
        ({"steps_offset": True}, "steps_offset is 'True', use a whole number"),
        ({"beta_start": 5}, "noise levels don't rise"),
        ({"beta_start": -0.5, "beta_schedule": "linear"}, "noise levels don't rise"),
        ({"beta_end": 0.5}, "noise levels don't rise"),
        ({"beta_start": 0, "beta_end": 0}, "noise levels don't rise"),
        ({"beta_start": True}, "beta_start is 'True', use a number"),
        ({"trained_betas": [0.1, 0.2]}, "noise levels don't rise"),
        ({"clip_sample": "yes"}, "clip_sample is 'yes', use true or false"),
        ({"clip_sample": 1}, "clip_sample is '1', use true or false"),
        ({"timestep_spacing": 5}, "timestep_spacing is '5', use text"),
        ({"clip_sample": True, "clip_sample_range": "wide"}, "clip_sample_range is 'wide', use a number"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_settings(scheduler(**settings))


def test_steps_that_are_not_finite_are_refused() -> None:
    """At these noise levels, the first step subtracts nearly equal numbers."""
    check_settings(scheduler("EulerDiscreteScheduler", beta_schedule="squaredcos_cap_v2"))
    with pytest.raises(ValueError, match="its steps give numbers that are not finite"):
        check_settings(scheduler("EulerAncestralDiscreteScheduler", beta_schedule="squaredcos_cap_v2"))


@pytest.mark.parametrize(
    "name",
    [
        "CMStochasticIterativeScheduler",
        "EDMDPMSolverMultistepScheduler",
        "IPNDMScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "DDIMInverseScheduler",
    ],
)
def test_other_noise_levels_are_refused(name: str) -> None:
    for check in (check_scheduler, check_settings):
        with pytest.raises(InputError, match=f"{name} can't sample with this model"):
            check(scheduler(name))


def test_noise_levels_of_edm_are_refused_in_files() -> None:
    """A pipeline takes any of diffusers' `KarrasDiffusionSchedulers` that a user sets."""
    check_scheduler(scheduler("EDMEulerScheduler"))
    with pytest.raises(InputError, match="EDMEulerScheduler can't sample with this model"):
        check_settings(scheduler("EDMEulerScheduler"))


def test_a_step_that_fails_is_a_sentence() -> None:
    """These timesteps, of 50 steps, are not different."""
    made = scheduler("UniPCMultistepScheduler", use_beta_sigmas=True)
    check_settings(made)
    made.set_timesteps(50)
    with pytest.raises(InputError, match=r"UniPCMultistepScheduler can't take the step 50 of 50"):
        sample(lambda latents, _: 0.5 * latents, torch.ones(1, 4, 8, 8), made)
