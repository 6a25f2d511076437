"""Presets with a consistency LoRA from a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.nn_utils import lora_layers
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import TURBO, Preset, lcm_preset

from .sampling import mean_difference, sample_images, save_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


def test_consistency_lora_samples_without_guidance(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, unet_batch_sizes: list[int], tmp_path: Path
) -> None:
    path = save_lora(fresh_pipe, tmp_path)
    plain = sample_images(fresh_pipe, dog, num_inference_steps=4)
    unet_batch_sizes.clear()
    fresh_pipe.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    assert isinstance(fresh_pipe.scheduler, diffusers.LCMScheduler)
    assert mean_difference(sample_images(fresh_pipe, dog, num_inference_steps=4), plain) > 1e-3
    assert unet_batch_sizes == [1] * 4  # no second pass
    fresh_pipe.set_preset(Preset())
    torch.testing.assert_close(sample_images(fresh_pipe, dog, num_inference_steps=4), plain, atol=1e-4, rtol=0)


def test_consistency_lora_is_merged_during_sampling(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    path = save_lora(fresh_pipe, tmp_path)
    fresh_pipe.load_lora_weights(path, adapter_name="style")
    fresh_pipe.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in fresh_pipe.unet.named_parameters()}
    merged: list[bool] = []
    fresh_pipe.unet.register_forward_pre_hook(
        lambda *_: merged.append(all(layer.merged for layer in lora_layers(fresh_pipe.unet)))
    )
    within = sample_images(fresh_pipe, dog, num_inference_steps=4)
    torch.testing.assert_close(sample_images(fresh_pipe, dog, num_inference_steps=4), within, atol=0, rtol=0)
    fresh_pipe.unet._hf_hook = None  # as where accelerate brings it to a GPU and back
    beside = sample_images(fresh_pipe, dog, num_inference_steps=4)
    del fresh_pipe.unet._hf_hook
    torch.testing.assert_close(within, beside, atol=1e-4, rtol=0)
    assert merged == [True] * 8 + [False] * 4
    for name, weight in fresh_pipe.unet.named_parameters():
        assert weight.data_ptr() == before[name][0] and torch.equal(weight, before[name][1])
    fresh_pipe.set_adapters("style", 0.5)
    assert mean_difference(sample_images(fresh_pipe, dog, num_inference_steps=4), within) > 1e-4  # it follows
    fresh_pipe.unet.enable_freeu(s1=0.2, s2=0.2, b1=1.6, b2=1.6)
    assert mean_difference(sample_images(fresh_pipe, dog, num_inference_steps=4), within) > 1e-3


def test_interrupted_sampling_restores_the_weights(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    fresh_pipe.set_preset(lcm_preset(str(save_lora(fresh_pipe, tmp_path)), base=replace(TURBO, dtype="default")))
    before = {name: weight.clone() for name, weight in fresh_pipe.unet.named_parameters()}

    def stop(*_: Any) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_images(fresh_pipe, dog, num_inference_steps=4, callback_on_step_end=stop)
    assert not any(layer.merged for layer in lora_layers(fresh_pipe.unet))
    assert all(torch.equal(weight, before[name]) for name, weight in fresh_pipe.unet.named_parameters())


def test_preset_lora_and_fused_loras_exclude_each_other(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    path = save_lora(fresh_pipe, tmp_path)
    chosen = lcm_preset(str(path), base=replace(TURBO, dtype="default"))
    fresh_pipe.set_preset(chosen)
    with pytest.raises(InputError, match="can't be fused under a preset with a LoRA"):
        fresh_pipe.fuse_lora()
    fresh_pipe.set_preset(Preset())
    fresh_pipe.load_lora_weights(path, adapter_name="style")
    fresh_pipe.fuse_lora()
    styled = sample_images(fresh_pipe, dog)
    with pytest.raises(InputError, match="over fused ones"):
        fresh_pipe.set_preset(chosen)
    assert torch.equal(sample_images(fresh_pipe, dog), styled)


def test_ignored_guidance_gives_a_warning(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path) -> None:
    fresh_pipe.set_preset(lcm_preset(str(save_lora(fresh_pipe, tmp_path)), base=replace(TURBO, dtype="default")))
    for more in ({"guidance_scale": 7.5}, {"negative_prompt": "a cat"}):
        with pytest.warns(UserWarning, match="has guidance distilled into it"):
            sample_images(fresh_pipe, dog, num_inference_steps=1, **more)


def test_consistency_lora_keeps_other_adapters_active(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    path = save_lora(fresh_pipe, tmp_path)
    fresh_pipe.load_lora_weights(path, adapter_name="style")
    fresh_pipe.load_lora_weights(path, adapter_name="idle")
    fresh_pipe.set_adapters("style", 0.5)
    styled = sample_images(fresh_pipe, dog, num_inference_steps=4)
    fresh_pipe.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    assert fresh_pipe.get_active_adapters() == ["style", "blip-diffusion-lcm"]
    fresh_pipe.set_preset(Preset())
    assert fresh_pipe.get_active_adapters() == ["style"]
    torch.testing.assert_close(sample_images(fresh_pipe, dog, num_inference_steps=4), styled, atol=1e-4, rtol=0)


def test_consistency_lora_stays_active_when_adapters_change(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    path = save_lora(fresh_pipe, tmp_path)
    fresh_pipe.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    fresh_pipe.load_lora_weights(path, adapter_name="style")
    assert set(fresh_pipe.get_active_adapters()) == {"style", "blip-diffusion-lcm"}
    fresh_pipe.set_adapters("style", 0.5)
    assert set(fresh_pipe.get_active_adapters()) == {"style", "blip-diffusion-lcm"}
    fresh_pipe.unload_lora_weights()
    assert fresh_pipe.get_active_adapters() == ["blip-diffusion-lcm"]
    fresh_pipe.set_preset(Preset())
    assert fresh_pipe.get_active_adapters() == []


def test_missing_consistency_lora_keeps_the_preset(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    chosen = lcm_preset(str(save_lora(fresh_pipe, tmp_path)), base=replace(TURBO, dtype="default"))
    fresh_pipe.set_preset(chosen)
    before = sample_images(fresh_pipe, dog, num_inference_steps=4)
    with pytest.raises(CheckpointError, match="There is no LoRA at"):
        fresh_pipe.set_preset(lcm_preset(str(tmp_path / "missing.safetensors")))
    assert fresh_pipe.preset == chosen and torch.equal(sample_images(fresh_pipe, dog, num_inference_steps=4), before)


def test_interrupted_merge_restores_the_weights(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sample_images(fresh_pipe, dog)
    fresh_pipe.set_preset(lcm_preset(str(save_lora(fresh_pipe, tmp_path)), base=replace(TURBO, dtype="default")))
    layers = lora_layers(fresh_pipe.unet)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layers[-1], "merge", stop)
    with pytest.raises(KeyboardInterrupt):
        sample_images(fresh_pipe, dog)
    assert not any(layer.merged for layer in layers)
    fresh_pipe.set_preset(Preset())
    torch.testing.assert_close(sample_images(fresh_pipe, dog), plain, atol=1e-5, rtol=0)


def test_hotswapped_lora_is_used(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path) -> None:
    paths = [save_lora(fresh_pipe, tmp_path / name) for name in ("first", "second")]
    chosen = lcm_preset(str(paths[0]), base=replace(TURBO, dtype="default"))
    fresh_pipe.load_lora_weights(paths[1], adapter_name="style")
    fresh_pipe.set_preset(chosen)
    expected = sample_images(fresh_pipe, dog)
    fresh_pipe.set_preset(Preset())
    fresh_pipe.delete_adapters("style")
    fresh_pipe.load_lora_weights(paths[0], adapter_name="style")
    fresh_pipe.set_preset(chosen)
    assert mean_difference(sample_images(fresh_pipe, dog), expected) > 1e-4
    fresh_pipe.load_lora_weights(paths[1], adapter_name="style", hotswap=True)
    torch.testing.assert_close(sample_images(fresh_pipe, dog), expected, atol=1e-4, rtol=0)
