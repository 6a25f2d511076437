import pytest
import torch
from torch import Tensor

from blip_diffusion.diffusion.forward_process import Noising, Prediction, denoising_loss
from blip_diffusion.errors import ConfigError
from blip_diffusion.training.initialization import noising_from, zero_snr_scheduler

PREDICTIONS: list[Prediction] = ["epsilon", "v_prediction"]


def schedule(prediction: Prediction) -> Noising:
    """Stable Diffusion's (Rombach et al. 2022)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return Noising((1 - betas).cumprod(0), prediction)


def some(size: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, size, 4, 3, 3, generator=rng)
    return latents, noise, torch.linspace(0, 999, size).long()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_perfect_prediction_gives_the_clean_image(prediction: Prediction) -> None:
    noising, (latents, noise, timesteps) = schedule(prediction), some()
    noised = noising.noised(latents, noise, timesteps)
    answer = noising.target(latents, noise, timesteps)
    torch.testing.assert_close(noising.predict_x0(noised, answer, timesteps), latents, atol=1e-4, rtol=1e-4)


def test_noise_levels_keep_the_variance() -> None:
    noising = schedule("epsilon")
    signal, spread = noising.signal_and_noise(torch.arange(1000), torch.empty(1000, 4, 3, 3))
    assert signal.shape == (1000, 1, 1, 1)
    torch.testing.assert_close(signal**2 + spread**2, torch.ones(1000, 1, 1, 1))
    assert (signal.flatten().diff() < 0).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_agree_with_diffusers(prediction: Prediction) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    noising, (latents, noise, timesteps) = schedule(prediction), some()
    torch.testing.assert_close(noising.noised(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps))
    expected = noise if prediction == "epsilon" else theirs.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(noising.target(latents, noise, timesteps), expected)


def test_min_snr_weights() -> None:
    """min(SNR, γ) / SNR for ε and min(SNR + 1, γ) / (SNR + 1) for v, at a signal-to-noise ratio of 9 and of 0.25."""
    alphas = torch.tensor([0.9, 0.2])
    timesteps = torch.arange(2)
    torch.testing.assert_close(Noising(alphas, "epsilon").weight(timesteps, 5.0), torch.tensor([5 / 9, 1.0]))
    torch.testing.assert_close(Noising(alphas, "v_prediction").weight(timesteps, 5.0), torch.tensor([0.5, 1.0]))
    assert Noising(alphas).weight(timesteps, None).tolist() == [1, 1]


def test_timestep_shift_gives_noisier_timesteps() -> None:
    noising = schedule("epsilon")
    for timestep_shift, median in ((1.0, 500), (2.0, 667), (3.0, 750)):
        sampled = noising.random_timesteps(20_000, torch.Generator().manual_seed(0), timestep_shift=timestep_shift)
        assert sampled.dtype == torch.int64 and sampled.min() >= 0 and sampled.max() == 999
        assert float(sampled.float().median()) == pytest.approx(median, abs=10)


def test_largest_value_is_the_last_timestep() -> None:
    """One of the values is the float32 number next to 1."""
    sampled = schedule("epsilon").random_timesteps(400_000, torch.Generator().manual_seed(2), timestep_shift=3.0)
    assert sampled.max() == 999


def test_pure_noise_gives_finite_predictions() -> None:
    """At zero signal, v still has a target and a weight."""
    noising = noising_from(zero_snr_scheduler())
    assert noising.prediction == "v_prediction" and noising.timesteps == 1000
    latents, noise, _ = some(1)
    last = torch.tensor([999])
    torch.testing.assert_close(noising.noised(latents, noise, last), noise, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(noising.target(latents, noise, last), -latents, atol=1e-3, rtol=1e-3)
    assert noising.weight(last, 5.0).item() == pytest.approx(1)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="'sample'; use epsilon or v_prediction"):
        Noising(torch.ones(3), "sample")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ the loss


def perfect(noising: Noising, latents: Tensor):  # type: ignore[no-untyped-def]
    """A denoiser that returns the exact prediction for known clean latents."""

    def denoise(noised: Tensor, timesteps: Tensor) -> Tensor:
        signal, spread = noising.signal_and_noise(timesteps, noised)
        return noising.target(latents, (noised - signal * latents) / spread, timesteps)

    return denoise


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_a_perfect_denoiser_is_zero(prediction: Prediction) -> None:
    noising, (latents, _, _) = schedule(prediction), some(64)
    rng = torch.Generator().manual_seed(0)
    assert denoising_loss(perfect(noising, latents), latents, noising, rng).item() < 1e-4
    blind = denoising_loss(lambda x, t: torch.zeros_like(x), latents, noising, rng, gamma=5.0)
    assert 0.2 < blind.item() < 1.5


def test_loss_depends_on_its_generator_only() -> None:
    noising, (latents, _, _) = schedule("epsilon"), some()

    def loss(seed: int) -> float:
        return denoising_loss(lambda x, t: x, latents, noising, torch.Generator().manual_seed(seed)).item()

    assert loss(1) == loss(1) != loss(2)


def test_importance_weights_the_errors() -> None:
    """An error where the importance is zero costs nothing."""
    noising, (latents, _, _) = schedule("epsilon"), some()
    importance = torch.zeros(5, 1, 3, 3)
    importance[..., 0, 0] = 9

    def wrong_elsewhere(x: Tensor, timesteps: Tensor) -> Tensor:
        answer = perfect(noising, latents)(x, timesteps)
        answer[..., 1:, :] += 7
        return answer

    rng = torch.Generator().manual_seed(0)
    assert denoising_loss(wrong_elsewhere, latents, noising, rng, importance=importance).item() < 1e-4
    assert denoising_loss(wrong_elsewhere, latents, noising, rng).item() > 10
