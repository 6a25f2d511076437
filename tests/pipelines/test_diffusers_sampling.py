"""Sampling as diffusers' pipelines do: network switches, schedulers, step callbacks, arguments."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.import_utils import is_torchsde_available
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset

from .sampling import Sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")


def test_vae_slicing_and_tiling_can_be_switched(fresh_pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    plain = sample(fresh_pipe, num_images_per_prompt=2)
    fresh_pipe.enable_vae_slicing()
    torch.testing.assert_close(sample(fresh_pipe, num_images_per_prompt=2), plain, atol=1e-5, rtol=0)
    fresh_pipe.disable_vae_slicing()
    fresh_pipe.enable_vae_tiling()
    assert (
        fresh_pipe.vae.use_tiling
        and not fresh_pipe.vae.use_slicing
        and sample(fresh_pipe, height=64, width=64).isfinite().all()
    )
    fresh_pipe.disable_vae_tiling()
    assert torch.equal(sample(fresh_pipe, num_images_per_prompt=2), plain)


def test_freeu_changes_the_image_until_it_is_disabled(fresh_pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    plain = sample(fresh_pipe)
    fresh_pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert (sample(fresh_pipe) - plain).abs().max() > 1e-3
    fresh_pipe.set_preset(Preset(deepcache_interval=2))
    with pytest.raises(InputError, match="FreeU has no effect on the features that this preset caches"):
        sample(fresh_pipe)  # a U-Net of two levels
    fresh_pipe.set_preset(Preset())
    fresh_pipe.disable_freeu()
    torch.testing.assert_close(sample(fresh_pipe), plain, atol=1e-5, rtol=0)


def test_fused_projections_generate_the_same_image(fresh_pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    plain = sample(fresh_pipe)
    fresh_pipe.fuse_qkv_projections()
    assert all(type(one).__name__.startswith("Fused") for one in fresh_pipe.unet.attn_processors.values())
    torch.testing.assert_close(sample(fresh_pipe), plain, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="projections are fused"):
        fresh_pipe.load_lora_weights({})
    fresh_pipe.unfuse_qkv_projections()
    torch.testing.assert_close(sample(fresh_pipe), plain, atol=1e-5, rtol=0)


def test_every_stable_diffusion_scheduler_samples(fresh_pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    fresh_pipe.scheduler.register_to_config(skip_prk_steps=True)
    for kind in KarrasDiffusionSchedulers:
        if kind.name == "DPMSolverSDEScheduler" and not is_torchsde_available():
            continue
        fresh_pipe.scheduler = getattr(diffusers, kind.name).from_config(fresh_pipe.scheduler.config)
        assert sample(fresh_pipe, num_inference_steps=5, guidance_scale=1).shape == (1, 3, 32, 32), kind.name


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DDIMInverseScheduler", "KarrasVeScheduler"])
def test_incompatible_schedulers_are_refused_before_sampling(
    fresh_pipe: BlipDiffusionPipeline, sample: Sample, name: str
) -> None:
    fresh_pipe.scheduler = getattr(diffusers, name)()
    with pytest.raises(InputError, match=f"{name} can't sample with this model"):
        sample(fresh_pipe)


def test_custom_timesteps_and_sigmas(fresh_pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    fresh_pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(fresh_pipe.scheduler.config)
    sample(fresh_pipe, timesteps=[900, 500, 100])
    assert fresh_pipe.num_timesteps == 3 and fresh_pipe.scheduler.timesteps.tolist() == [900, 500, 100]
    sample(fresh_pipe, sigmas=[10.0, 1.0, 0.1])
    assert fresh_pipe.num_timesteps == 2 and fresh_pipe.scheduler.sigmas[0] == 10
    wrong = ({"timesteps": [1, 2]}, {"sigmas": []}, {"timesteps": [5], "sigmas": [5]}, {"timesteps": "all"},
             {"timesteps": [5], "num_inference_steps": 3})  # fmt: skip
    for options in wrong:
        with pytest.raises(InputError, match=next(iter(options))):
            sample(fresh_pipe, **options)
    fresh_pipe.scheduler = diffusers.DDIMScheduler.from_config(fresh_pipe.scheduler.config)
    with pytest.raises(InputError, match="DDIMScheduler can't take these steps"):
        sample(fresh_pipe, sigmas=[10.0, 1.0])


def test_callback_receives_the_requested_tensors(pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    received = []

    def note(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> None:
        received.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    plain = sample(pipe)
    options = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": pipe._callback_tensor_inputs}
    assert torch.equal(sample(pipe, **options), plain)  # a callback that returns nothing changes nothing
    assert received[0] == {
        "latents": (1, 4, 4, 4), "prompt_embeds": (2, 32, 32), "negative_prompt_embeds": (1, 32, 32)
    }  # fmt: skip
    with pytest.raises(InputError, match="no callback_on_step_end_tensor_inputs 'noise'"):
        sample(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["noise"])
    with pytest.raises(InputError, match="callback_on_step_end is 3: use a function"):
        sample(pipe, callback_on_step_end=3)


def test_callback_can_change_guidance_at_each_step(pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    def more(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        of._guidance_scale += 1.0
        return tensors

    changed = sample(pipe, guidance_scale=2.0, callback_on_step_end=more)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert (changed - sample(pipe, guidance_scale=2.0)).abs().max() > 1e-4


def test_cfg_cutoff_callback_of_diffusers_disables_guidance(pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    sizes = []
    handle = pipe.unet.register_forward_hook(lambda module, given, output: sizes.append(len(output[0])))
    try:
        sample(pipe, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.4))
    finally:
        handle.remove()
    assert sizes == [2, 2, 1]


def test_callback_can_change_the_prompt_embeddings(pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    other: list[Tensor] = []
    names = ["prompt_embeds"]

    def take(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> None:
        other.append(tensors["prompt_embeds"])

    def put(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": other[0]}

    options = {"callback_on_step_end_tensor_inputs": names}
    sample(pipe, prompt="in the forest", callback_on_step_end=take, **options)
    assert (sample(pipe, callback_on_step_end=put, **options) - sample(pipe)).abs().max() > 1e-4


def test_interrupt_stops_sampling(pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    steps = []

    def stop(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(index)
        of._interrupt = True
        return tensors

    assert sample(pipe, callback_on_step_end=stop).isfinite().all()
    assert steps == [0] and pipe.interrupt
    sample(pipe)
    assert not pipe.interrupt


@pytest.mark.parametrize("returned", [3, {"noise": 1}, {"latents": torch.zeros(1)}, {"latents": None}])
def test_invalid_callback_results_are_refused(pipe: BlipDiffusionPipeline, sample: Sample, returned: Any) -> None:
    with pytest.raises(InputError, match="The step callback returned"):
        sample(pipe, callback_on_step_end=lambda *_: returned)


def test_prompt_embeds_replace_the_prompt(pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    kept: list[Tensor] = []

    def take(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> None:
        kept.append(tensors["prompt_embeds"])

    plain = sample(pipe, callback_on_step_end=take, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    negative, prompt = kept[0].chunk(2)
    assert torch.equal(sample(pipe, prompt_embeds=prompt, negative_prompt_embeds=negative), plain)
    assert torch.equal(sample(pipe, prompt_embeds=prompt), plain)
    assert torch.equal(sample(pipe, negative_prompt_embeds=negative), plain)
    assert sample(pipe, prompt_embeds=prompt.expand(2, -1, -1)).shape[0] == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": "x", "prompt_embeds": torch.zeros(1, 32, 32)}, "prompt and prompt_embeds exclude"),
        ({"prompt_embeds": torch.zeros(1, 32, 9)}, r"prompt_embeds are \(1, 32, 9\)"),
        ({"prompt_embeds": torch.zeros(1, 20, 32)}, "give negative_prompt_embeds of the same length"),
        ({"prompt_embeds": torch.full((1, 32, 32), float("nan"))}, "not finite"),
        ({"negative_prompt": "x", "negative_prompt_embeds": torch.zeros(1, 32, 32)}, "exclude each other"),
        ({"negative_prompt_embeds": torch.zeros(1, 20, 32)}, r"reads \(prompts, 32, 32\)"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, r"cross_attention_kwargs isn't supported: .*set_adapters"),
        ({"clip_skip": 2}, "clip_skip isn't supported"),
        ({"prompt": None}, "There is no prompt"),
        ({"prompt": Image.new("RGB", (64, 64))}, "prompt is a Image: use text"),
        ({"prompt": ["x", None]}, "prompt is a list of other types"),
        ({"source_subject_category": None}, "source_subject_category is a NoneType"),
        ({"height": "32"}, "height is '32': use a whole number"),
        ({"width": 32.0}, "width is 32.0: use a whole number"),
        ({"num_inference_steps": 3.0}, "num_inference_steps is 3.0"),
        ({"num_images_per_prompt": "2"}, "num_images_per_prompt is '2'"),
        ({"guidance_scale": "7"}, "guidance_scale is '7': use a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_rescale": 2}, "guidance_rescale is 2: use a number from 0 to 1"),
        ({"eta": -1}, "eta is -1"),
        ({"generator": 5}, "generator is 5"),
        ({"latents": [1]}, "latents is a list"),
        ({"prompt_reps": 10**6}, "prompt_reps is 1000000"),
    ],
)
def test_invalid_or_unsupported_arguments_are_refused(
    pipe: BlipDiffusionPipeline, sample: Sample, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        sample(pipe, **options)


def test_arguments_without_effect_are_accepted(pipe: BlipDiffusionPipeline, sample: Sample) -> None:
    nothing = {"cross_attention_kwargs": {"scale": 1.0}, "clip_skip": None, "timesteps": None, "sigmas": None}
    assert torch.equal(sample(pipe, **nothing), sample(pipe))
