"""What diffusers asks of every pipeline in its own tests, asked of this one. Written afresh."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.import_utils import is_torchsde_available
from PIL import Image
from torch import Tensor, nn

from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.pipelines.loading import LOG
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset

Draw = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")


@pytest.fixture
def draw(dog: Image.Image) -> Draw:
    def draw(pipe: BlipDiffusionPipeline, **asked: Any) -> Any:
        given = {"prompt": "on the beach", "reference_image": dog, "source_subject_category": "dog"}
        if "prompt_embeds" in asked:
            given = {}
        noise = {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        return pipe(**{**given, **noise, **asked}).images

    return draw


@pytest.fixture(scope="module")
def pickled(pipe: BlipDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as pickles of the variant "fp16", which it is only by name."""
    folder = tmp_path_factory.mktemp("pickled")
    pipe.save_pretrained(folder, safe_serialization=False, variant="fp16")
    return folder


def parts_of(pipe: BlipDiffusionPipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


# ------------------------------------------------------------------------------------------------- loading and saving


def test_a_variant_is_written_and_read_as_pickles(pickled: Path, pipe: BlipDiffusionPipeline) -> None:
    loaded = BlipDiffusionPipeline.from_pretrained(pickled, variant="fp16", use_safetensors=False)
    for name, part in parts_of(pipe).items():
        names = [path.name for path in (pickled / name).iterdir() if path.suffix != ".json"]
        assert (
            len(names) == 1
            and names[0].endswith(".fp16.bin")
            and name in json.loads((pickled / "model_index.json").read_text())
        )
        state = getattr(loaded, name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in part.state_dict().items())


def test_a_wrong_variant_is_said_as_diffusers_says_it(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, variant="fp16")
    with pytest.raises(InputError, match=r"variant is '\.\./x'"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, variant="../x")


def test_only_the_asked_format_is_read(pickled: Path, tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors"):
        BlipDiffusionPipeline.from_pretrained(pickled, use_safetensors=True)
    with pytest.raises(CheckpointError, match=r"must hold pytorch_model\.bin"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, use_safetensors=False)


def test_weights_of_another_format_do_not_stay_beside_new_ones(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    own.save_pretrained(tmp_path)
    with torch.no_grad():
        own.unet.conv_in.weight += 1
    own.save_pretrained(tmp_path, safe_serialization=False)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.unet.conv_in.weight, own.unet.conv_in.weight)


def test_a_table_of_precisions(tiny_folder: Path, draw: Draw) -> None:
    table = {"vae": torch.bfloat16, "default": torch.float16}
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=table)
    pipe.set_progress_bar_config(disable=True)
    assert {name: next(part.parameters()).dtype for name, part in parts_of(pipe).items()} == {
        **dict.fromkeys(parts_of(pipe), torch.float16), "vae": torch.bfloat16
    }  # fmt: skip
    assert draw(pipe).isfinite().all()
    for wrong, word in (({"vea": torch.float16}, "vea"), ("float16", "float16"), (torch.int8, "int8")):
        with pytest.raises(InputError, match=word):
            BlipDiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=wrong)


def test_a_device_map_is_one_device(tiny_folder: Path) -> None:
    assert BlipDiffusionPipeline.from_pretrained(tiny_folder, device_map="cpu").device.type == "cpu"
    for spread in ("balanced", {"unet": "cpu"}):
        with pytest.raises(InputError, match="device_map is"):
            BlipDiffusionPipeline.from_pretrained(tiny_folder, device_map=spread)


def test_what_was_loaded_is_logged(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    LOG.addHandler(caplog.handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    finally:
        LOG.removeHandler(caplog.handler)
        LOG.setLevel(level)
    assert all(name in caplog.text for name, part in pipe.components.items() if part is not None)


def test_options_that_ask_for_what_happens_anyway(tiny_folder: Path) -> None:
    harmless = {"safety_checker": None, "requires_safety_checker": False, "low_cpu_mem_usage": True}
    assert BlipDiffusionPipeline.from_pretrained(tiny_folder, **harmless, feature_extractor=None)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("safety_checker", object()),
        ("requires_safety_checker", True),
        ("low_cpu_mem_usage", "yes"),
        ("trust_remote_code", True),
        ("quantization_config", object()),
    ],
)
def test_options_of_loading_are_refused(tiny_folder: Path, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option} isn't supported"):
        BlipDiffusionPipeline.from_pretrained(tiny_folder, **{option: value})


@pytest.mark.parametrize("option", [{"push_to_hub": True}, {"max_shard_size": "1GB"}, {"repo_id": "me/x"}])
def test_options_of_saving_are_refused(pipe: BlipDiffusionPipeline, tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        pipe.save_pretrained(tmp_path / "new", **option)
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------- switches of the networks


def test_slicing_and_tiling_of_the_vae(own: BlipDiffusionPipeline, draw: Draw) -> None:
    plain = draw(own, num_images_per_prompt=2)
    own.enable_vae_slicing()
    torch.testing.assert_close(draw(own, num_images_per_prompt=2), plain, atol=1e-5, rtol=0)
    own.disable_vae_slicing()
    own.enable_vae_tiling()
    assert own.vae.use_tiling and not own.vae.use_slicing and draw(own, height=64, width=64).isfinite().all()
    own.disable_vae_tiling()
    assert torch.equal(draw(own, num_images_per_prompt=2), plain)


def test_freeu_shows_and_goes(own: BlipDiffusionPipeline, draw: Draw) -> None:
    plain = draw(own)
    own.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert (draw(own) - plain).abs().max() > 1e-3
    own.set_preset(Preset(deepcache_interval=2))
    with pytest.raises(InputError, match="FreeU has no effect on the features that this preset caches"):
        draw(own)  # a U-Net of two levels
    own.set_preset(Preset())
    own.disable_freeu()
    torch.testing.assert_close(draw(own), plain, atol=1e-5, rtol=0)


def test_fused_projections_draw_the_same(own: BlipDiffusionPipeline, draw: Draw) -> None:
    plain = draw(own)
    own.fuse_qkv_projections()
    assert all(type(one).__name__.startswith("Fused") for one in own.unet.attn_processors.values())
    torch.testing.assert_close(draw(own), plain, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="projections are fused"):
        own.load_lora_weights({})
    own.unfuse_qkv_projections()
    torch.testing.assert_close(draw(own), plain, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------------ sampling


def test_every_scheduler_of_stable_diffusion(own: BlipDiffusionPipeline, draw: Draw) -> None:
    own.scheduler.register_to_config(skip_prk_steps=True)
    for kind in KarrasDiffusionSchedulers:
        if kind.name == "DPMSolverSDEScheduler" and not is_torchsde_available():
            continue
        own.scheduler = getattr(diffusers, kind.name).from_config(own.scheduler.config)
        assert draw(own, num_inference_steps=5, guidance_scale=1).shape == (1, 3, 32, 32), kind.name


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DDIMInverseScheduler", "KarrasVeScheduler"])
def test_schedulers_of_another_kind_are_refused_before_sampling(
    own: BlipDiffusionPipeline, draw: Draw, name: str
) -> None:
    own.scheduler = getattr(diffusers, name)()
    with pytest.raises(InputError, match=f"{name} can't sample with this model"):
        draw(own)


def test_own_timesteps_and_noise_levels(own: BlipDiffusionPipeline, draw: Draw) -> None:
    own.scheduler = diffusers.EulerDiscreteScheduler.from_config(own.scheduler.config)
    draw(own, timesteps=[900, 500, 100])
    assert own.num_timesteps == 3 and own.scheduler.timesteps.tolist() == [900, 500, 100]
    draw(own, sigmas=[10.0, 1.0, 0.1])
    assert own.num_timesteps == 2 and own.scheduler.sigmas[0] == 10
    wrong = ({"timesteps": [1, 2]}, {"sigmas": []}, {"timesteps": [5], "sigmas": [5]}, {"timesteps": "all"},
             {"timesteps": [5], "num_inference_steps": 3})  # fmt: skip
    for asked in wrong:
        with pytest.raises(InputError, match=next(iter(asked))):
            draw(own, **asked)
    own.scheduler = diffusers.DDIMScheduler.from_config(own.scheduler.config)
    with pytest.raises(InputError, match="DDIMScheduler can't take these steps"):
        draw(own, sigmas=[10.0, 1.0])


# ----------------------------------------------------------------------------------------------------- step callbacks


def test_a_callback_gets_what_it_asks_for(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    seen = []

    def note(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> None:
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    plain = draw(pipe)
    asked = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": pipe._callback_tensor_inputs}
    assert torch.equal(draw(pipe, **asked), plain)  # a callback that returns nothing changes nothing
    assert seen[0] == {
        "latents": (1, 4, 4, 4), "prompt_embeds": (2, 32, 32), "negative_prompt_embeds": (1, 32, 32)
    }  # fmt: skip
    with pytest.raises(InputError, match="callback_on_step_end_tensor_inputs is"):
        draw(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["noise"])
    with pytest.raises(InputError, match="callback_on_step_end is a int"):
        draw(pipe, callback_on_step_end=3)


def test_a_callback_changes_guidance_step_by_step(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    def more(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        of._guidance_scale += 1.0
        return tensors

    changed = draw(pipe, guidance_scale=2.0, callback_on_step_end=more)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert (changed - draw(pipe, guidance_scale=2.0)).abs().max() > 1e-4


def test_diffusers_own_callback_switches_guidance_off(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    sizes = []
    handle = pipe.unet.register_forward_hook(lambda module, given, output: sizes.append(len(output[0])))
    try:
        draw(pipe, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.4))
    finally:
        handle.remove()
    assert sizes == [2, 2, 1]


def test_a_callback_changes_the_prompt(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    other: list[Tensor] = []
    names = ["prompt_embeds"]

    def take(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> None:
        other.append(tensors["prompt_embeds"])

    def put(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": other[0]}

    asked = {"callback_on_step_end_tensor_inputs": names}
    draw(pipe, prompt="in the forest", callback_on_step_end=take, **asked)
    assert (draw(pipe, callback_on_step_end=put, **asked) - draw(pipe)).abs().max() > 1e-4


def test_interrupt_ends_the_sampling(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    steps = []

    def stop(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(index)
        of._interrupt = True
        return tensors

    assert draw(pipe, callback_on_step_end=stop).isfinite().all()
    assert steps == [0] and pipe.interrupt
    draw(pipe)
    assert not pipe.interrupt


@pytest.mark.parametrize("returned", [3, {"noise": 1}, {"latents": torch.zeros(1)}, {"latents": None}])
def test_a_callback_returns_tensors(pipe: BlipDiffusionPipeline, draw: Draw, returned: Any) -> None:
    with pytest.raises(InputError, match="The step callback returned"):
        draw(pipe, callback_on_step_end=lambda *_: returned)


# ----------------------------------------------------------------------------------------------- arguments of snippets


def test_prompt_embeddings_stand_in_for_prompts(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    kept: list[Tensor] = []

    def take(of: Any, index: int, timestep: Tensor, tensors: dict[str, Any]) -> None:
        kept.append(tensors["prompt_embeds"])

    plain = draw(pipe, callback_on_step_end=take, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    negative, prompt = kept[0].chunk(2)
    assert torch.equal(draw(pipe, prompt_embeds=prompt, negative_prompt_embeds=negative), plain)
    assert torch.equal(draw(pipe, prompt_embeds=prompt), plain)
    assert torch.equal(draw(pipe, negative_prompt_embeds=negative), plain)
    assert draw(pipe, prompt_embeds=prompt.expand(2, -1, -1)).shape[0] == 2


@pytest.mark.parametrize(
    ("asked", "sentence"),
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
def test_what_cannot_be_followed_is_refused(
    pipe: BlipDiffusionPipeline, draw: Draw, asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        draw(pipe, **asked)


def test_what_asks_for_nothing_is_accepted(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    nothing = {"cross_attention_kwargs": {"scale": 1.0}, "clip_skip": None, "timesteps": None, "sigmas": None}
    assert torch.equal(draw(pipe, **nothing), draw(pipe))
