from typing import cast

import pytest
import torch

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.text_to_image import TextToImage, TextToImageConfig

from .overfit import context, ids, moved_parameters, overfit


def method(model: BlipDiffusion, **config: float) -> TextToImage:
    return TextToImage(model, noising_from(model.scheduler), TextToImageConfig(**config))


def with_captions(batch: SubjectBatch, *captions: str) -> SubjectBatch:
    return cast(SubjectBatch, {**batch, "caption": list(captions)})


def test_it_learns_a_batch(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(method(model), batch, steps=30, lr=3e-3)
    assert after < 0.9 * before


@torch.no_grad()
def test_captions_are_read_but_for_those_left_out(model: BlipDiffusion, batch: SubjectBatch) -> None:
    other = with_captions(batch, *["a cat"] * 6)
    for drop, same in ((0.0, False), (1.0, True)):
        own = method(model, caption_drop=drop)
        assert (own(batch, context())["loss"] == own(other, context())["loss"]) == same


@torch.no_grad()
def test_the_share_of_captions_left_out(model: BlipDiffusion, batch: SubjectBatch) -> None:
    asked: list[str] = []

    def note(module: object, args: tuple[torch.Tensor, ...]) -> None:
        asked.extend(model.tokenizer.batch_decode(args[0], skip_special_tokens=True))

    handle = model.text_encoder.register_forward_pre_hook(note)
    for seed in range(50):
        method(model, caption_drop=0.3)(batch, context(seed=seed))
    handle.remove()
    assert len(asked) == 300
    assert sum(not text.strip() for text in asked) / 300 == pytest.approx(0.3, abs=0.08)


def test_what_moves(model: BlipDiffusion) -> None:
    unet, text = ids(model.unet.parameters()), ids(model.text_encoder.parameters())
    assert moved_parameters(method(model)) == unet | text
    assert moved_parameters(method(model, text_lr_scale=0.0)) == unet
    groups = {group.name: group.lr_scale for group in method(model, text_lr_scale=0.5).parameter_groups()}
    assert groups == {"unet": 1.0, "text": 0.5}


@torch.no_grad()
def test_it_shows_targets_and_drawings(model: BlipDiffusion, batch: SubjectBatch) -> None:
    target, drawing = method(model).sample_images(batch)
    assert target is batch["target"] and drawing.shape == target.shape
