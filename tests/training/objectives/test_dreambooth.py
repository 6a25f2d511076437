import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from blip_diffusion.checkpoint.diffusers_export import save_stable_diffusion
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.dreambooth import DreamBooth, DreamBoothConfig
from blip_diffusion.training.optim import set_trainable
from tests.training.photos import photo_batch

from .overfit import context, ids, moved_parameters, overfit


def make_objective(model: BlipDiffusion, **config: object) -> DreamBooth:
    return DreamBooth(model, noising_from(model.scheduler), "dog", DreamBoothConfig(**config))  # type: ignore[arg-type]


@pytest.mark.parametrize(("lora", "text"), [(False, False), (False, True), (True, False), (True, True)])
def test_overfits_the_photos_and_trains_nothing_else(
    model: BlipDiffusion, dog: Image.Image, lora: bool, text: bool
) -> None:
    objective = make_objective(model, lora=lora, rank=4, train_text_encoder=text)
    moving = moved_parameters(objective)
    if not lora:
        assert moving == ids(model.unet.parameters()) | (ids(model.text_encoder.parameters()) if text else set())
    before = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    first, last = overfit(objective, photo_batch(model, dog, prior=True), steps=12, lr=3e-3)
    assert last < (1 - 1e-4) * first
    still = [
        name for name, p in objective.named_parameters() if id(p) not in moving and not torch.equal(p, before[name])
    ]
    assert still == []


@torch.no_grad()
def test_prompt_contains_the_rare_token_before_the_category(model: BlipDiffusion) -> None:
    states = make_objective(model, token="zwx").states(["on the beach", ""])
    assert torch.equal(states, model.text_states(["a zwx dog on the beach", "a zwx dog"]))


def test_prior_preservation_adds_a_loss_term(model: BlipDiffusion, dog: Image.Image) -> None:
    objective = make_objective(model, prior_weight=0.5)
    plain, kept = (
        objective(photo_batch(model, dog), context()),
        objective(photo_batch(model, dog, prior=True), context()),
    )
    assert set(plain) == {"denoising", "loss"}
    assert kept["loss"].item() == pytest.approx((kept["denoising"] + 0.5 * kept["prior"]).item(), rel=1e-5)


def moved(objective: DreamBooth) -> DreamBooth:
    for parameter in set_trainable(objective, objective.parameter_groups()).values():
        parameter.data += 0.05
    return objective.eval()


@torch.no_grad()
def drawn_alike(plain: StableDiffusionPipeline, objective: DreamBooth) -> None:
    """Text states and predictions of the Stable Diffusion pipeline equal those of the tuned model."""
    states = objective.states(["on the beach"])
    encoded, _ = plain.encode_prompt("a sks dog on the beach", torch.device("cpu"), 1, False)
    torch.testing.assert_close(encoded, states, atol=1e-4, rtol=1e-4)
    noised = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    outputs = [unet(noised, 7, encoder_hidden_states=states).sample for unet in (plain.unet, objective.model.unet)]
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_stable_diffusion_pipeline_loads_the_folder(model: BlipDiffusion, tmp_path: Path) -> None:
    objective = moved(make_objective(model, train_text_encoder=True))
    objective.export(tmp_path / "rex")
    assert json.loads((tmp_path / "rex" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "rex")
    drawn_alike(plain, objective)
    plain.set_progress_bar_config(disable=True)
    assert plain("a sks dog", num_inference_steps=1, height=32, width=32).images[0].size == (32, 32)


@pytest.mark.parametrize("text", [False, True])
def test_stable_diffusion_pipeline_loads_the_lora(model: BlipDiffusion, tmp_path: Path, text: bool) -> None:
    save_stable_diffusion(model, tmp_path / "base")
    objective = moved(make_objective(model, lora=True, rank=2, train_text_encoder=text))
    objective.export(tmp_path / "rex")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    plain.load_lora_weights(tmp_path / "rex", weight_name="lora.safetensors")
    assert bool(plain.text_encoder._hf_peft_config_loaded) == text
    drawn_alike(plain, objective)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="token is empty"):
        DreamBoothConfig(token=" ")
    with pytest.raises(ConfigError, match="rank is 0"):
        DreamBoothConfig(rank=0)
