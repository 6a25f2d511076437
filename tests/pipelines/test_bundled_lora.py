"""The consistency LoRA of a model folder, and pipelines that share its U-Net."""

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blip_diffusion.checkpoint.convert import convert
from blip_diffusion.checkpoint.model_folder import CONSISTENCY_LORA, save_model
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.nn_utils import lora_layers
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import FAST, TURBO, Preset

from .sampling import mean_difference, sample_images, save_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


@pytest.fixture
def model_with_lora(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> Path:
    """A model folder with a consistency LoRA."""
    made = save_lora(fresh_pipe, tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    save_model(fresh_pipe.model, tmp_path / "model", consistency_lora=made)
    return tmp_path / "model"


def test_turbo_uses_the_bundled_lora(model_with_lora: Path) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(model_with_lora)
    pipe.set_progress_bar_config(disable=True)
    for choice, active in ((FAST, []), (replace(TURBO, dtype="default"), ["blip-diffusion-lcm"]), (Preset(), [])):
        pipe.set_preset(choice)
        assert pipe.get_active_adapters() == active
    pipe.set_preset(replace(TURBO, dtype="default"))
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler) and pipe.preset.uses_cfg is False
    assert pipe.preset.steps_of(50) == 2
    pipe.set_preset(replace(TURBO, bundled_lora_steps=3))
    assert pipe.preset.steps_of(50) == 3
    other = replace(TURBO, bundled_lora_steps=None)
    pipe.set_preset(other)
    assert pipe.preset == other and pipe.get_active_adapters() == []


@torch.no_grad()
def test_bundled_lora_is_saved_and_converted_with_its_unet(
    model_with_lora: Path,
    fresh_pipe: BlipDiffusionPipeline,
    tmp_path: Path,
) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(model_with_lora)
    pipe.set_preset("turbo")
    pipe.save_pretrained(tmp_path / "saved", torch_dtype=torch.float16)
    convert(str(model_with_lora), tmp_path / "converted", dtype=torch.float16)
    expected = load_file(model_with_lora / CONSISTENCY_LORA)
    for folder in ("saved", "converted"):
        kept = load_file(tmp_path / folder / CONSISTENCY_LORA)
        torch.testing.assert_close(kept, {name: tensor.half() for name, tensor in expected.items()})
        BlipDiffusionPipeline.from_pretrained(tmp_path / folder).set_preset("turbo")
    with pytest.warns(match="consistency LoRA is left out"):  # it is for one U-Net
        convert(str(model_with_lora), tmp_path / "other", unet=str(model_with_lora))
    assert not (tmp_path / "other" / CONSISTENCY_LORA).exists()
    other = BlipDiffusionPipeline.from_pretrained(model_with_lora, unet=fresh_pipe.unet)
    assert other.consistency_lora is None
    other.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / CONSISTENCY_LORA).exists()
    assert pipe.consistency_lora == BlipDiffusionPipeline(**pipe.components).consistency_lora is not None
    pipe.unet = other.unet
    assert pipe.consistency_lora is None


def test_damaged_bundled_lora_is_refused_when_used(model_with_lora: Path, tmp_path: Path) -> None:
    (model_with_lora / CONSISTENCY_LORA).write_bytes(b"nonsense")
    pipe = BlipDiffusionPipeline.from_pretrained(model_with_lora)  # the LoRA is not needed for loading
    with pytest.raises(CheckpointError, match="The LoRA can't be read"):
        pipe.set_preset("turbo")
    with pytest.raises(CheckpointError, match="is not a file of weights"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_pipelines_sharing_a_unet_keep_their_presets(model_with_lora: Path, dog: Image.Image) -> None:
    presets = (replace(TURBO, dtype="default"), Preset())
    alone = []
    for preset in presets:
        pipe = BlipDiffusionPipeline.from_pretrained(model_with_lora)
        pipe.set_preset(preset)
        alone.append(sample_images(pipe, dog))
    one = BlipDiffusionPipeline.from_pretrained(model_with_lora)
    other = BlipDiffusionPipeline.from_pipe(one)
    assert other.unet is one.unet and other.config["num_inference_steps"] == one.config["num_inference_steps"]
    for first, second in ((one, other), (other, one)):
        first.set_preset(presets[0])
        second.set_preset(presets[1])
        for _ in range(2):
            for pipe, expected in ((first, alone[0]), (second, alone[1])):
                torch.testing.assert_close(sample_images(pipe, dog), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_unet_is_saved_without_wrapper(model_with_lora: Path, tmp_path: Path) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(model_with_lora)
    pipe.unet = torch.compile(pipe.unet)
    assert pipe.consistency_lora is not None
    pipe.save_pretrained(tmp_path / "saved")
    for file in ("unet/diffusion_pytorch_model.safetensors", CONSISTENCY_LORA):
        one, other = load_file(model_with_lora / file), load_file(tmp_path / "saved" / file)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_preset_lora_needs_an_unwrapped_unet(model_with_lora: Path, dog: Image.Image) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(model_with_lora)
    plain = pipe.unet
    pipe.unet = torch.compile(plain, backend="eager")
    with pytest.raises(InputError, match=r"pipe\.unet\.compile\(\) instead"):
        pipe.set_preset("turbo")
    pipe.unet = plain
    pipe.set_preset(replace(TURBO, dtype="default"))
    expected = sample_images(pipe, dog)
    pipe.unet = torch.compile(plain, backend="eager")  # what is in it stays
    torch.testing.assert_close(sample_images(pipe, dog), expected, atol=1e-4, rtol=0)


def test_preset_lora_survives_adapter_changes_of_another_pipeline(
    model_with_lora: Path, dog: Image.Image, tmp_path: Path
) -> None:
    one = BlipDiffusionPipeline.from_pretrained(model_with_lora)
    style = save_lora(one, tmp_path / "style")
    other = BlipDiffusionPipeline.from_pipe(one)
    one.set_preset(replace(TURBO, dtype="default"))
    other.load_lora_weights(style, adapter_name="style")
    layers = lora_layers(one.unet)
    in_two_calls = sample_images(one, dog)
    assert all("blip-diffusion-lcm" in layer.active_adapters for layer in layers)
    other.delete_adapters("style")
    assert mean_difference(sample_images(one, dog), in_two_calls) > 1e-4  # the style was active
    other.load_lora_weights(style, adapter_name="style")
    other.fuse_lora()  # without the preset's, which it takes out
    assert {name for layer in layers for name in layer.merged_adapters} == {"style"}
    with pytest.raises(InputError, match="over fused ones"):
        sample_images(one, dog)


def test_preset_is_applied_to_a_new_unet(model_with_lora: Path, tiny_folder: Path, dog: Image.Image) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(model_with_lora)
    original_unet, other = pipe.unet, BlipDiffusionPipeline.from_pretrained(tiny_folder).unet
    turbo = replace(TURBO, dtype="default")
    pipe.set_preset(turbo)
    mine = sample_images(pipe, dog)
    pipe.unet = other  # which has no LoRA of its own
    sample_images(pipe, dog)
    assert pipe.preset == turbo and pipe.get_active_adapters() == [] and not lora_layers(other)
    pipe.unet = original_unet
    torch.testing.assert_close(sample_images(pipe, dog), mine, atol=1e-4, rtol=0)
