"""The prior: what is trained, and that it generates subjects of its categories."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.cli.main import main
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import CheckpointError, ConfigError
from blip_diffusion.generation.invent import load_inventor
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.sampling import sample_subject_tokens
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.prior import Prior, PriorConfig, subject_tokens

from .overfit import ids, moved_parameters, overfit


def objective(model: BlipDiffusion, batch: SubjectBatch, **config: Any) -> Prior:
    torch.manual_seed(0)
    noising = noising_from(model.scheduler)
    return Prior(model, noising, PriorConfig(heads=2, **config), batch["reference"], batch["category"])


def test_training_lowers_the_loss_and_changes_the_prior_alone(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = objective(model, batch, layers=2, noise_samples_per_subject=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, last = overfit(own, batch, steps=25, lr=5e-3)
    assert last < 0.7 * first
    assert moved_parameters(own) == ids(own.prior.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert own.prior.training and not model.training


def test_samples_have_the_statistics_of_subject_tokens(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = objective(model, batch, layers=1)
    overfit(own, batch, steps=30, lr=5e-3)
    tokens = subject_tokens(model, batch["reference"], batch["category"])
    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    samples = sample_subject_tokens(model, own.prior.eval(), batch["category"], generators, steps=10, guidance=1.0)
    assert samples.shape == tokens.shape
    error = (samples.mean(0) - tokens.mean(0)).abs().mean() / tokens.std(0).mean()
    assert error < 0.7  # noise of variance 1 would be at the mean, an untrained network far from it
    again = sample_subject_tokens(model, own.prior, batch["category"][:1], generators_of(0), steps=10, guidance=1.0)
    torch.testing.assert_close(again, samples[:1], atol=1e-4, rtol=1e-4)  # independent of the batch


def generators_of(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_standardized_tokens_have_mean_0_and_variance_1(model: BlipDiffusion, batch: SubjectBatch) -> None:
    prior = objective(model, batch).prior
    tokens = subject_tokens(model, batch["reference"], batch["category"])
    scaled = prior.standardized(tokens)
    torch.testing.assert_close(scaled.mean(0), torch.zeros_like(scaled[0]), atol=1e-3, rtol=0)
    assert scaled.std(0).mean().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(prior.unstandardized(scaled), tokens)


def test_the_export_invents_subjects(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "apple.safetensors"
    objective(model, batch, layers=1).export(folder)
    assert main(["invent", "apple", "--model", str(folder), "--out", str(file), "--steps", "2"]) == 0
    pipe = BlipDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    subject = pipe.load_subject(file)
    assert (subject.name, subject.category, subject.metadata["method"]) == ("apple", "apple", "prior")
    assert isinstance(pipe("on the beach", num_inference_steps=1).images[0], Image.Image)
    invent = load_inventor(str(folder))
    other = invent("apple", name="other", seed=1, steps=2).embedding
    assert not torch.equal(other, subject.embedding)
    torch.testing.assert_close(invent("apple", name="same", steps=2).embedding, subject.embedding)


def test_a_model_without_a_prior_is_refused(model: BlipDiffusion, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match="There is no prior of subjects"):
        load_inventor(str(tmp_path))
    (tmp_path / "subject_prior").mkdir()
    (tmp_path / "subject_prior" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_inventor(str(tmp_path))


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("apple.png", []),
        ("an apple.safetensors", []),
        ("apple.safetensors", ["--steps", "0"]),
        ("apple.safetensors", ["--seed", "-1"]),
    ],
)
def test_mistakes_are_refused(out: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["invent", "apple", "--model", "nowhere", "--out", out, *flags]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [{"layers": 0}, {"category_drop": 1.0}, {"noise_samples_per_subject": 0}])
def test_a_config_that_trains_nothing_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="prior"):
        PriorConfig(**config)
