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


def method(model: BlipDiffusion, train: Trainable = "lora", **config: float) -> FewShot:
    embedding = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    subject = Subject("rex", "dog", embedding, fingerprint(model.unet, model.text_encoder))
    return FewShot(model, noising_from(model.scheduler), subject, FewShotConfig(train, **config))  # type: ignore[arg-type]


@pytest.mark.parametrize("train", ALL)
def test_it_learns_its_photos_and_moves_nothing_else(model: BlipDiffusion, dog: Image.Image, train: Trainable) -> None:
    """What is frozen does not change by one bit."""
    own = method(model, train, rank=4)
    moving = moved_parameters(own)
    before = {name: parameter.detach().clone() for name, parameter in own.named_parameters()}
    first, last = overfit(own, photo_batch(model, dog), steps=25, lr=1e-2 if train == "embedding" else 3e-3)
    assert last < (1 - 1e-4) * first
    for name, parameter in own.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in moving), name


def test_what_moves(model: BlipDiffusion) -> None:
    own = method(model, "embedding")
    assert moved_parameters(own) == {id(own.embedding)}
    own = method(model, "cross-attention")
    kept = [model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight]
    assert ids(kept) < moved_parameters(own)
    assert len(moved_parameters(own)) == 1 + 2 * sum("attn2.to_k" in name for name, _ in model.unet.named_parameters())
    own = method(model, "unet")
    assert moved_parameters(own) == ids(model.unet.parameters()) | {id(own.embedding)}


@torch.no_grad()
def test_its_embedding_is_where_the_model_is(model: BlipDiffusion) -> None:
    """A subject's file is read on the CPU; validation draws before the loop has moved anything."""
    subject, elsewhere = method(copy.deepcopy(model)).subject, copy.deepcopy(model).to("meta")
    own = FewShot(elsewhere, noising_from(model.scheduler), subject, FewShotConfig("unet"))
    assert {parameter.device.type for parameter in own.parameters()} == {"meta"}


def test_it_begins_as_the_untuned_model(model: BlipDiffusion) -> None:
    own = method(model, "lora")
    states = model.text_states(["a dog on the beach"], own.subject.embedding)
    assert torch.equal(own.states(["on the beach"]), states)
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
    losses = {b: method(model, "embedding", background_weight=b)(masked, context())["loss"] for b in (0.0, 1.0)}
    assert losses[0.0] != losses[1.0]
    assert method(model, "embedding", background_weight=0.0)(batch, context())["loss"] == losses[1.0]


def test_prior_preservation_is_one_more_term(model: BlipDiffusion, dog: Image.Image) -> None:
    own = method(model, "unet", prior_weight=0.5)
    plain, kept = own(photo_batch(model, dog), context()), own(photo_batch(model, dog, prior=True), context())
    assert set(plain) == {"denoising", "loss"}
    assert kept["loss"].item() == pytest.approx((kept["denoising"] + 0.5 * kept["prior"]).item(), rel=1e-5)


@pytest.mark.parametrize("train", ALL)
def test_it_exports_what_moved(model: BlipDiffusion, tmp_path: Path, train: Trainable) -> None:
    own = method(model, train, rank=2)
    for parameter in set_trainable(own, own.parameter_groups()).values():
        parameter.data += 0.25
    own.export(tmp_path)
    found = read_subject(tmp_path / "subject.safetensors")
    assert torch.equal(found.embedding, own.embedding.detach()) and found.base == own.subject.base
    assert (found.rank, bool(found.weights)) == ({"lora": 2}.get(train, 0), train in ("cross-attention", "unet"))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="rank is 0"):
        FewShotConfig(rank=0)
    with pytest.raises(ConfigError, match="background_weight is 2"):
        FewShotConfig(background_weight=2)
