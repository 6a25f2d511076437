"""Presets: their values, solvers, guidance and cached features."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.lavis import published_scheduler
from blip_diffusion.devices import fastest_dtype
from blip_diffusion.errors import InputError
from blip_diffusion.images import to_pil
from blip_diffusion.pipelines import presets
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import EXACT, FAST, PRESETS, TURBO, Preset, get_preset, lcm_preset, resolve_dtype

from .sampling import mean_difference, sample_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
CPU = torch.device("cpu")


def test_preset_names() -> None:
    assert PRESETS == {"exact": EXACT, "fast": FAST, "turbo": TURBO}
    assert get_preset("fast") is FAST and get_preset(Preset(deepcache_interval=2)).deepcache_interval == 2
    with pytest.raises(InputError, match="no preset 'faster': use exact, fast or turbo"):
        get_preset("faster")


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval"),
        ({"guidance_interval": (0.0, 1.5)}, "guidance_interval"),
        ({"steps": 0}, "steps is 0"),
        ({"bundled_lora_steps": 0}, "bundled_lora_steps is 0"),
        ({"deepcache_interval": 0}, "deepcache_interval"),
        ({"deepcache_layers": 0}, "deepcache_layers"),
        ({"lcm_lora": "x"}, 'use "lcm" or "ddim"'),
        ({"lcm_lora": "x", "solver": "unipc"}, 'use "lcm" or "ddim"'),
        ({"solver": "lcm"}, "give a consistency LoRA"),
    ],
)
def test_invalid_preset_values_are_refused(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Preset(**choices)


def test_steps_of_a_preset() -> None:
    assert [p.steps_of(50) for p in (EXACT, FAST, TURBO)] == [50, 10, 4] and TURBO.steps_of(2) == 2
    assert lcm_preset("x").steps_of(50) == 4


def test_dtype_of_a_preset() -> None:
    assert resolve_dtype("default", CPU) is None and resolve_dtype("float16", CPU) == torch.float16
    assert resolve_dtype("auto", CPU) == fastest_dtype(CPU)


def test_ddim_clips_nothing() -> None:
    """Latents are larger than 1, and the published scheduler config has no `clip_sample`."""
    assert presets.build_scheduler("ddim", published_scheduler()).config.clip_sample is False


@pytest.mark.parametrize(
    ("choice", "kind"),
    [("ddim", "DDIMScheduler"), ("dpm++", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")],
)
def test_solvers_keep_the_noise_levels(fresh_pipe: BlipDiffusionPipeline, choice: Any, kind: str) -> None:
    other = presets.build_scheduler(choice, fresh_pipe.scheduler)
    assert type(other).__name__ == kind
    assert other.config.prediction_type == fresh_pipe.scheduler.config.prediction_type
    torch.testing.assert_close(other.alphas_cumprod[:-1], fresh_pipe.scheduler.alphas_cumprod[:-1])
    other.set_timesteps(4)
    assert other.timesteps[0] == 999  # a schedule that ends in pure noise must start there


def test_exact_generates_the_same_image(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain, other = (
        sample_images(fresh_pipe, dog),
        sample_images(fresh_pipe, dog, generator=torch.Generator().manual_seed(5)),
    )
    fresh_pipe.set_preset(replace(EXACT, dtype="default"))
    torch.testing.assert_close(sample_images(fresh_pipe, dog), plain, atol=1e-5, rtol=0)
    fresh_pipe.set_preset(replace(EXACT, dtype="bfloat16"))
    assert fresh_pipe.unet.dtype == fresh_pipe.vae.dtype == fresh_pipe.text_encoder.dtype == torch.bfloat16
    assert mean_difference(sample_images(fresh_pipe, dog), plain) < 0.1 * mean_difference(other, plain)


def test_a_preset_casts_the_subject_finder(placed: BlipDiffusionPipeline) -> None:
    """It is needed for references without transparency or a plain border."""
    pipe = copy.deepcopy(placed)
    pipe.set_preset(replace(EXACT, dtype="bfloat16"))
    photo = to_pil(torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)))[0]
    assert pipe.subject_finder.mask.weight.dtype == torch.bfloat16
    assert pipe("on the beach", photo, "dog", "dog", num_inference_steps=1).images[0].size == (32, 32)


def test_presets_can_be_reset(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain = sample_images(fresh_pipe, dog)
    scheduler = fresh_pipe.scheduler
    for choice in (replace(FAST, dtype="default"), replace(TURBO, dtype="default", solver="unipc"), Preset()):
        fresh_pipe.set_preset(choice)
    assert fresh_pipe.scheduler is scheduler and fresh_pipe.preset == Preset()
    fresh_pipe.set_preset(replace(FAST, dtype="default"))
    fresh_pipe.scheduler = other = diffusers.DDIMScheduler.from_config(
        scheduler.config
    )  # a scheduler that the user set is kept
    fresh_pipe.set_preset(Preset())
    assert fresh_pipe.scheduler is other
    torch.testing.assert_close(sample_images(fresh_pipe, dog), plain, atol=1e-5, rtol=0)


def test_preset_steps_are_limited_by_the_model_default(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, unet_batch_sizes: list[int]
) -> None:
    fresh_pipe.register_to_config(num_inference_steps=10)
    fresh_pipe.set_preset(Preset(steps=4))
    sample_images(fresh_pipe, dog, num_inference_steps=None)
    assert unet_batch_sizes == [2] * 4
    sample_images(fresh_pipe, dog, num_inference_steps=7)  # an explicit number has priority
    assert len(unet_batch_sizes) == 4 + 7
    fresh_pipe.set_preset(Preset(steps=12))
    sample_images(fresh_pipe, dog, num_inference_steps=None)
    assert len(unet_batch_sizes) == 4 + 7 + 10


@pytest.mark.parametrize(
    ("choices", "sizes"),
    [
        ({}, [4] * 8),
        ({"split_cfg_batch": True}, [2, 2] * 8),
        ({"guidance_interval": (0.25, 0.5)}, [2, 2, 4, 4, 2, 2, 2, 2]),
        ({"guidance_interval": (0.0, 0.5), "split_cfg_batch": True}, [2, 2] * 4 + [2] * 4),
        ({"deepcache_interval": 3}, [4, 4, 4]),
        ({"deepcache_interval": 4, "guidance_interval": (0.0, 0.5)}, [4, 2]),
    ],
)
def test_unet_calls_of_each_setting(
    fresh_pipe: BlipDiffusionPipeline,
    dog: Image.Image,
    unet_batch_sizes: list[int],
    choices: dict[str, Any],
    sizes: list[int],
) -> None:
    fresh_pipe.set_preset(Preset(**choices))
    sample_images(fresh_pipe, dog, ["on the beach", "in the snow"])
    assert unet_batch_sizes == sizes


def test_split_cfg_batch_gives_the_same_image(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain = sample_images(fresh_pipe, dog)
    fresh_pipe.set_preset(Preset(split_cfg_batch=True))
    torch.testing.assert_close(sample_images(fresh_pipe, dog), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_generates_an_image(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, name: str) -> None:
    fresh_pipe.set_preset(name)
    pixels = sample_images(fresh_pipe, dog, ["on the beach", "in the snow"], num_inference_steps=4)
    assert pixels.shape == (2, 3, 32, 32) and pixels.isfinite().all() and pixels.std() > 0.01


def test_image_does_not_depend_on_its_batch(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    fresh_pipe.set_preset(replace(FAST, dtype="default"))
    alone, beside = sample_images(fresh_pipe, dog), sample_images(fresh_pipe, dog, ["on the beach", "in the snow"])
    torch.testing.assert_close(beside[:1], alone, atol=1e-4, rtol=0)


def test_subject_is_encoded_once_for_all_prompts(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    encoded: list[int] = []
    fresh_pipe.qformer.register_forward_hook(lambda module, given, output: encoded.append(len(output)))
    scenes = [f"scene {number}" for number in range(20)]
    sample_images(fresh_pipe, dog, scenes, num_inference_steps=1)
    for scene in scenes[:3]:
        sample_images(fresh_pipe, dog.copy(), scene, num_inference_steps=1)
    assert encoded == [1]
    sample_images(fresh_pipe, dog.transpose(Image.Transpose.FLIP_LEFT_RIGHT), num_inference_steps=1)
    fresh_pipe.encode_subject(dog, "cat")
    assert encoded == [1, 1, 1]
    with torch.no_grad():
        fresh_pipe.qformer.projection.down.bias.add_(1)
    fresh_pipe.encode_subject(dog, "dog")
    assert encoded == [1, 1, 1, 1]


def test_saved_pipeline_has_the_scheduler_of_the_model(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    scheduler = type(fresh_pipe.scheduler)
    fresh_pipe.set_preset(replace(FAST, dtype="default"))
    fresh_pipe.save_pretrained(tmp_path)
    assert type(BlipDiffusionPipeline.from_pretrained(tmp_path).scheduler) is scheduler
    assert type(fresh_pipe.model.scheduler) is scheduler


def test_distilled_model_keeps_its_scheduler(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, unet_batch_sizes: list[int]
) -> None:
    fresh_pipe.scheduler = diffusers.LCMScheduler.from_config(fresh_pipe.scheduler.config)
    fresh_pipe.register_to_config(num_inference_steps=3, guidance_scale=1.0)
    fresh_pipe.set_preset(replace(TURBO, dtype="default"))
    sample_images(fresh_pipe, dog, num_inference_steps=None)
    assert isinstance(fresh_pipe.scheduler, diffusers.LCMScheduler) and unet_batch_sizes == [1, 1, 1]
    fresh_pipe.set_preset(
        lcm_preset("none that is ever read", base=replace(TURBO, dtype="default"))
    )  # it has no use for one
    sample_images(fresh_pipe, dog, num_inference_steps=None)
    assert (
        isinstance(fresh_pipe.scheduler, diffusers.LCMScheduler)
        and fresh_pipe.preset.lcm_lora is None
        and len(unet_batch_sizes) == 6
    )


def test_components_contain_the_scheduler_of_the_model(fresh_pipe: BlipDiffusionPipeline) -> None:
    scheduler = fresh_pipe.scheduler
    fresh_pipe.set_preset("fast")
    assert fresh_pipe.scheduler is not scheduler and fresh_pipe.components["scheduler"] is scheduler
    assert BlipDiffusionPipeline.from_pipe(fresh_pipe).scheduler is scheduler
