"""Memory of tuning: computed, and settings that fit."""

import dataclasses

import pytest
import torch

from blip_diffusion.errors import InputError
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.personalize.memory import _saved_bytes, estimate, fit_to_memory


def test_saved_activations_are_counted() -> None:
    layer = torch.nn.Linear(8, 4, device="meta")
    rows = torch.zeros(16, 8, device="meta", requires_grad=True)
    assert _saved_bytes(layer, lambda: layer(rows)) == 16 * 8 * 4  # its input; its weight is not counted
    assert _saved_bytes(layer, lambda: layer(rows).relu()) == 16 * (8 + 4) * 4


@pytest.mark.slow
def test_memory_of_each_trainable_setting() -> None:
    lora = TuneConfig(trainable="lora", batch_size=1)
    unet = TuneConfig(trainable="unet", batch_size=1)
    saving = {"gradient_checkpointing": True}
    assert estimate(lora).weights == pytest.approx(2.9, abs=0.1)  # 1.56e9 parameters in two bytes
    assert estimate(unet).training == pytest.approx(0.86 * 12 * 1e9 / 2**30, rel=0.01)
    assert estimate(dataclasses.replace(lora, **saving)).activations < 0.3 * estimate(lora).activations
    assert estimate(dataclasses.replace(unet, eight_bit=True)).training < 0.55 * estimate(unet).training
    prior = dataclasses.replace(lora, num_class_images=8)
    assert estimate(prior).activations == 2 * estimate(lora).activations  # two graphs until one backward pass
    dream = TuneConfig(method="dreambooth", batch_size=1)
    reading = dataclasses.replace(dream, train_text_encoder=True)
    assert estimate(reading).training - estimate(dream).training == pytest.approx(0.123 * 12 * 1e9 / 2**30, rel=0.02)
    for gigabytes in (24, 16, 12, 8):
        assert estimate(fit_to_memory(TuneConfig(trainable="lora"), gigabytes)).total <= gigabytes
    assert estimate(fit_to_memory(TuneConfig(trainable="unet"), 24)).total <= 24
    with pytest.raises(InputError, match="more than 8 GB of GPU memory: use --trainable lora"):
        fit_to_memory(TuneConfig(trainable="unet"), 8)
