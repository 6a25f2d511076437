import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.subject_file import Subject, fingerprint, read_subject
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.few_shot import FewShot, FewShotConfig, Trainable
from blip_diffusion.training.optim import set_trainable
from tests.training.photos import photo_batch

from .overfit import context, ids, moved_parameters, overfit

ALL: list[Trainable] = ["embedding", "lora", "cross-attention", "unet"]


def make_objective(model: BlipDiffusion, train: Trainable = "lora", **config: float) -> FewShot:
    embedding = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    subject = Subject("rex", "dog", embedding, fingerprint(model.unet, model.text_encoder))
    return FewShot(model, noising_from(model.scheduler), subject, FewShotConfig(train, **config))  # type: ignore[arg-type]


@pytest.mark.parametrize("train", ALL)
def test_overfits_the_photos_and_trains_nothing_else(model: BlipDiffusion, dog: Image.Image, train: Trainable) -> None:
    """What is frozen does not change by one bit."""
    objective = make_objective(model, train, rank=4)
    moving = moved_parameters(objective)
    before = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    first, last = overfit(objective, photo_batch(model, dog), steps=25, lr=1e-2 if train == "embedding" else 3e-3)
    assert last < (1 - 1e-4) * first
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in moving), name


def test_trainable_parameters(model: BlipDiffusion) -> None:
    objective = make_objective(model, "embedding")
    assert moved_parameters(objective) == {id(objective.embedding)}
    objective = make_objective(model, "cross-attention")
    kept = [model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight]
    assert ids(kept) < moved_parameters(objective)
    assert len(moved_parameters(objective)) == 1 + 2 * sum(
        "attn2.to_k" in name for name, _ in model.unet.named_parameters()
    )
    objective = make_objective(model, "unet")
    assert moved_parameters(objective) == ids(model.unet.parameters()) | {id(objective.embedding)}


@torch.no_grad()
def test_embedding_is_on_the_device_of_the_model(model: BlipDiffusion) -> None:
    """A subject file is read on the CPU, and validation samples before the training loop moves the model."""
    subject, elsewhere = make_objective(copy.deepcopy(model)).subject, copy.deepcopy(model).to("meta")
    objective = FewShot(elsewhere, noising_from(model.scheduler), subject, FewShotConfig("unet"))
    assert {parameter.device.type for parameter in objective.parameters()} == {"meta"}


def test_starts_as_the_untuned_model(model: BlipDiffusion) -> None:
    objective = make_objective(model, "lora")
    states = model.text_states(["a dog on the beach"], objective.subject.embedding)
    assert torch.equal(objective.states(["on the beach"]), states)
    noised = torch.randn(1, 4, 4, 4)
    with_lora = model.unet(noised, 7, encoder_hidden_states=states).sample
    model.unet.disable_adapters()
    assert torch.equal(model.unet(noised, 7, encoder_hidden_states=states).sample, with_lora)


@torch.no_grad()
def test_an_error_outside_the_mask_weighs_less(model: BlipDiffusion, dog: Image.Image) -> None:
    batch = photo_batch(model, dog)
    half = torch.zeros_like(batch["mask"])
    half[..., :2] = 1
    masked = {**batch, "mask": half}
    losses = {b: make_objective(model, "embedding", background_weight=b)(masked, context())["loss"] for b in (0.0, 1.0)}
    assert losses[0.0] != losses[1.0]
    assert make_objective(model, "embedding", background_weight=0.0)(batch, context())["loss"] == losses[1.0]


def test_prior_preservation_adds_a_loss_term(model: BlipDiffusion, dog: Image.Image) -> None:
    objective = make_objective(model, "unet", prior_weight=0.5)
    plain, kept = (
        objective(photo_batch(model, dog), context()),
        objective(photo_batch(model, dog, prior=True), context()),
    )
    assert set(plain) == {"denoising", "loss"}
    assert kept["loss"].item() == pytest.approx((kept["denoising"] + 0.5 * kept["prior"]).item(), rel=1e-5)


@pytest.mark.parametrize("train", ALL)
def test_exports_the_trained_weights(model: BlipDiffusion, tmp_path: Path, train: Trainable) -> None:
    objective = make_objective(model, train, rank=2)
    for parameter in set_trainable(objective, objective.parameter_groups()).values():
        parameter.data += 0.25
    objective.export(tmp_path)
    result = read_subject(tmp_path / "subject.safetensors")
    assert torch.equal(result.embedding, objective.embedding.detach()) and result.base == objective.subject.base
    assert (result.rank, bool(result.weights)) == ({"lora": 2}.get(train, 0), train in ("cross-attention", "unet"))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="rank is 0"):
        FewShotConfig(rank=0)
    with pytest.raises(ConfigError, match="background_weight is 2"):
        FewShotConfig(background_weight=2)
