from typing import cast

import pytest
import torch

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.text_to_image import TextToImage, TextToImageConfig

from .overfit import context, ids, moved_parameters, overfit


def make_objective(model: BlipDiffusion, **config: float) -> TextToImage:
    return TextToImage(model, noising_from(model.scheduler), TextToImageConfig(**config))


def with_captions(batch: SubjectBatch, *captions: str) -> SubjectBatch:
    return cast(SubjectBatch, {**batch, "caption": list(captions)})


def test_overfits_one_batch(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(make_objective(model), batch, steps=30, lr=3e-3)
    assert after < 0.9 * before


@torch.no_grad()
def test_dropped_captions_have_no_effect(model: BlipDiffusion, batch: SubjectBatch) -> None:
    other = with_captions(batch, *["a cat"] * 6)
    for drop, same in ((0.0, False), (1.0, True)):
        objective = make_objective(model, caption_drop=drop)
        assert (objective(batch, context())["loss"] == objective(other, context())["loss"]) == same


@torch.no_grad()
def test_share_of_dropped_captions(model: BlipDiffusion, batch: SubjectBatch) -> None:
    options: list[str] = []

    def note(module: object, args: tuple[torch.Tensor, ...]) -> None:
        options.extend(model.tokenizer.batch_decode(args[0], skip_special_tokens=True))

    handle = model.text_encoder.register_forward_pre_hook(note)
    for seed in range(50):
        make_objective(model, caption_drop=0.3)(batch, context(seed=seed))
    handle.remove()
    assert len(options) == 300
    assert sum(not text.strip() for text in options) / 300 == pytest.approx(0.3, abs=0.08)


def test_trainable_parameters(model: BlipDiffusion) -> None:
    unet, text = ids(model.unet.parameters()), ids(model.text_encoder.parameters())
    assert moved_parameters(make_objective(model)) == unet | text
    assert moved_parameters(make_objective(model, text_lr_scale=0.0)) == unet
    groups = {group.name: group.lr_scale for group in make_objective(model, text_lr_scale=0.5).parameter_groups()}
    assert groups == {"unet": 1.0, "text": 0.5}


@torch.no_grad()
def test_samples_show_targets_and_predictions(model: BlipDiffusion, batch: SubjectBatch) -> None:
    target, drawing = make_objective(model).sample_images(batch)
    assert target is batch["target"] and drawing.shape == target.shape
