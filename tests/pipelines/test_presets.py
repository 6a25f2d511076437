import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from blip_diffusion.checkpoint.convert import convert
from blip_diffusion.checkpoint.lavis import published_scheduler
from blip_diffusion.checkpoint.model_folder import CONSISTENCY_LORA, save_model
from blip_diffusion.devices import fastest_dtype
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.nn_utils import lora_layers
from blip_diffusion.pipelines import presets
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import EXACT, FAST, PRESETS, TURBO, Preset, get_preset, lcm_preset, resolve_dtype

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
CPU = torch.device("cpu")


@pytest.fixture
def asked(own: BlipDiffusionPipeline) -> Iterator[list[int]]:
    """How many images each call of the U-Net was about."""
    sizes: list[int] = []
    handle = own.unet.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    yield sizes
    handle.remove()


def draw(pipe: BlipDiffusionPipeline, dog: Image.Image, prompt: Any = "on the beach", **more: Any) -> Tensor:
    rows = len(prompt) if isinstance(prompt, list) else 1
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    settings = {"num_inference_steps": 8, "generator": generators, "output_type": "pt"} | more
    return pipe(prompt, dog, "dog", "dog", **settings).images


def apart(one: Tensor, other: Tensor) -> float:
    """Mean absolute difference of images."""
    return (one - other).abs().mean().item()


# ------------------------------------------------------------------------------------------------------ the choices


def test_names() -> None:
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
def test_bad_choices(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Preset(**choices)


def test_steps() -> None:
    assert [p.steps_of(50) for p in (EXACT, FAST, TURBO)] == [50, 10, 4] and TURBO.steps_of(2) == 2
    assert lcm_preset("x").steps_of(50) == 4


def test_precision() -> None:
    assert resolve_dtype("default", CPU) is None and resolve_dtype("float16", CPU) == torch.float16
    assert resolve_dtype("auto", CPU) == fastest_dtype(CPU)


def test_ddim_clips_nothing() -> None:
    """Latents are larger than 1, and the published scheduler says nothing of it."""
    assert presets.build_scheduler("ddim", published_scheduler()).config.clip_sample is False


@pytest.mark.parametrize(
    ("choice", "kind"),
    [("ddim", "DDIMScheduler"), ("dpm++", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")],
)
def test_solvers_keep_the_noise_levels(own: BlipDiffusionPipeline, choice: Any, kind: str) -> None:
    other = presets.build_scheduler(choice, own.scheduler)
    assert type(other).__name__ == kind
    assert other.config.prediction_type == own.scheduler.config.prediction_type
    torch.testing.assert_close(other.alphas_cumprod[:-1], own.scheduler.alphas_cumprod[:-1])
    other.set_timesteps(4)
    assert other.timesteps[0] == 999  # a schedule that ends in pure noise must start there


# ------------------------------------------------------------------------------------------------------ the images


def test_exact_draws_the_same_image(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain, other = draw(own, dog), draw(own, dog, generator=torch.Generator().manual_seed(5))
    own.set_preset(replace(EXACT, dtype="default"))
    torch.testing.assert_close(draw(own, dog), plain, atol=1e-5, rtol=0)
    own.set_preset(replace(EXACT, dtype="bfloat16"))
    assert own.unet.dtype == own.vae.dtype == own.text_encoder.dtype == torch.bfloat16
    assert apart(draw(own, dog), plain) < 0.1 * apart(other, plain)


def test_choices_can_be_taken_back(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain = draw(own, dog)
    scheduler = own.scheduler
    for choice in (replace(FAST, dtype="default"), replace(TURBO, dtype="default", solver="unipc"), Preset()):
        own.set_preset(choice)
    assert own.scheduler is scheduler and own.preset == Preset()
    own.set_preset(replace(FAST, dtype="default"))
    own.scheduler = other = diffusers.DDIMScheduler.from_config(scheduler.config)  # one's own choice is not forgotten
    own.set_preset(Preset())
    assert own.scheduler is other
    torch.testing.assert_close(draw(own, dog), plain, atol=1e-5, rtol=0)


def test_steps_up_to_the_models_own(own: BlipDiffusionPipeline, dog: Image.Image, asked: list[int]) -> None:
    own.register_to_config(num_inference_steps=10)
    own.set_preset(Preset(steps=4))
    draw(own, dog, num_inference_steps=None)
    assert asked == [2] * 4
    draw(own, dog, num_inference_steps=7)  # what is said counts
    assert len(asked) == 4 + 7
    own.set_preset(Preset(steps=12))
    draw(own, dog, num_inference_steps=None)
    assert len(asked) == 4 + 7 + 10


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
def test_what_each_choice_asks_of_the_unet(
    own: BlipDiffusionPipeline, dog: Image.Image, asked: list[int], choices: dict[str, Any], sizes: list[int]
) -> None:
    own.set_preset(Preset(**choices))
    draw(own, dog, ["on the beach", "in the snow"])
    assert asked == sizes


def test_two_passes_change_nothing(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain = draw(own, dog)
    own.set_preset(Preset(split_cfg_batch=True))
    torch.testing.assert_close(draw(own, dog), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_draws(own: BlipDiffusionPipeline, dog: Image.Image, name: str) -> None:
    own.set_preset(name)
    pixels = draw(own, dog, ["on the beach", "in the snow"], num_inference_steps=4)
    assert pixels.shape == (2, 3, 32, 32) and pixels.isfinite().all() and pixels.std() > 0.01


def test_an_image_does_not_change_with_its_neighbours(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    own.set_preset(replace(FAST, dtype="default"))
    alone, beside = draw(own, dog), draw(own, dog, ["on the beach", "in the snow"])
    torch.testing.assert_close(beside[:1], alone, atol=1e-4, rtol=0)


def test_a_subject_is_encoded_once(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    encoded: list[int] = []
    own.qformer.register_forward_hook(lambda module, given, answer: encoded.append(len(answer)))
    scenes = [f"scene {number}" for number in range(20)]
    draw(own, dog, scenes, num_inference_steps=1)
    for scene in scenes[:3]:
        draw(own, dog.copy(), scene, num_inference_steps=1)
    assert encoded == [1]
    draw(own, dog.transpose(Image.Transpose.FLIP_LEFT_RIGHT), num_inference_steps=1)
    own.encode_subject(dog, "cat")
    assert encoded == [1, 1, 1]
    with torch.no_grad():
        own.qformer.projection.down.bias.add_(1)
    own.encode_subject(dog, "dog")
    assert encoded == [1, 1, 1, 1]


OPENVINO = [
    {"dtype": "bfloat16", "channels_last": True},
    {"split_cfg_batch": True, "deepcache_interval": 2, "guidance_interval": (0.0, 0.5)},
]


@pytest.mark.parametrize("choices", OPENVINO, ids=["bfloat16", "shortened"])
def test_openvino_draws_the_same_image(
    own: BlipDiffusionPipeline, dog: Image.Image, asked: list[int], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, choices: dict[str, Any],
) -> None:  # fmt: skip
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own.set_preset(Preset(**choices))
    plain = draw(own, dog)
    own.set_preset(Preset(**choices, engine="openvino"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no falling back
        assert apart(draw(own, dog), plain) < 0.02
        asked.clear()
        draw(own, dog, "in the snow")
    assert asked == []
    other = draw(own, dog, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        own.unet.conv_out.bias.add_(1)
    assert apart(draw(own, dog, generator=torch.Generator().manual_seed(3)), other) > 0.01  # the weights' own


@pytest.mark.parametrize("choices", OPENVINO, ids=["bfloat16", "shortened"])
def test_where_openvino_fails_torch_draws(
    own: BlipDiffusionPipeline, dog: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choices: Any
) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "blip-diffusion").write_text("a file where the cache's folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own.set_preset(Preset(**choices))
    plain = draw(own, dog)
    own.set_preset(Preset(**choices, engine="openvino"))
    with pytest.warns(UserWarning, match="OpenVINO can't run the"):
        assert apart(draw(own, dog), plain) < 5e-3  # bfloat16 rounds to 2^-9


# ------------------------------------------------------------------------------------------------------- what is given


def lora(pipe: BlipDiffusionPipeline, folder: Path) -> Path:
    """A LoRA of the U-Net that does something."""
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "made")
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(pipe.unet, adapter_name="made")
    BlipDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state)
    pipe.unet.delete_adapters("made")
    return folder


def test_a_consistency_lora(own: BlipDiffusionPipeline, dog: Image.Image, asked: list[int], tmp_path: Path) -> None:
    path = lora(own, tmp_path)
    plain = draw(own, dog, num_inference_steps=4)
    asked.clear()
    own.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    assert isinstance(own.scheduler, diffusers.LCMScheduler)
    assert apart(draw(own, dog, num_inference_steps=4), plain) > 1e-3
    assert asked == [1] * 4  # no second pass
    own.set_preset(Preset())
    torch.testing.assert_close(draw(own, dog, num_inference_steps=4), plain, atol=1e-4, rtol=0)


def test_a_consistency_lora_is_drawn_with_from_within_the_weights(
    own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    path = lora(own, tmp_path)
    own.load_lora_weights(path, adapter_name="style")
    own.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in own.unet.named_parameters()}
    merged: list[bool] = []
    own.unet.register_forward_pre_hook(lambda *_: merged.append(all(layer.merged for layer in lora_layers(own.unet))))
    within = draw(own, dog, num_inference_steps=4)
    torch.testing.assert_close(draw(own, dog, num_inference_steps=4), within, atol=0, rtol=0)
    own.unet._hf_hook = None  # as where accelerate brings it to a GPU and back
    beside = draw(own, dog, num_inference_steps=4)
    del own.unet._hf_hook
    torch.testing.assert_close(within, beside, atol=1e-4, rtol=0)
    assert merged == [True] * 8 + [False] * 4
    for name, weight in own.unet.named_parameters():
        assert weight.data_ptr() == before[name][0] and torch.equal(weight, before[name][1])
    own.set_adapters("style", 0.5)
    assert apart(draw(own, dog, num_inference_steps=4), within) > 1e-4  # it follows
    own.unet.enable_freeu(s1=0.2, s2=0.2, b1=1.6, b2=1.6)
    assert apart(draw(own, dog, num_inference_steps=4), within) > 1e-3


def test_an_error_meanwhile_leaves_the_weights_as_they_were(
    own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    own.set_preset(lcm_preset(str(lora(own, tmp_path)), base=replace(TURBO, dtype="default")))
    before = {name: weight.clone() for name, weight in own.unet.named_parameters()}

    def stop(*_: Any) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(own, dog, num_inference_steps=4, callback_on_step_end=stop)
    assert not any(layer.merged for layer in lora_layers(own.unet))
    assert all(torch.equal(weight, before[name]) for name, weight in own.unet.named_parameters())


def test_a_presets_lora_and_fused_ones(own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path) -> None:
    path = lora(own, tmp_path)
    chosen = lcm_preset(str(path), base=replace(TURBO, dtype="default"))
    own.set_preset(chosen)
    with pytest.raises(InputError, match="can't be fused under a preset with a LoRA"):
        own.fuse_lora()
    own.set_preset(Preset())
    own.load_lora_weights(path, adapter_name="style")
    own.fuse_lora()
    styled = draw(own, dog)
    with pytest.raises(InputError, match="over fused ones"):
        own.set_preset(chosen)
    assert torch.equal(draw(own, dog), styled)


def test_guidance_that_is_not_heard(own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path) -> None:
    own.set_preset(lcm_preset(str(lora(own, tmp_path)), base=replace(TURBO, dtype="default")))
    for more in ({"guidance_scale": 7.5}, {"negative_prompt": "a cat"}):
        with pytest.warns(UserWarning, match="has guidance distilled into it"):
            draw(own, dog, num_inference_steps=1, **more)


def test_a_consistency_lora_comes_beside_others(own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path) -> None:
    path = lora(own, tmp_path)
    own.load_lora_weights(path, adapter_name="style")
    own.load_lora_weights(path, adapter_name="idle")
    own.set_adapters("style", 0.5)
    styled = draw(own, dog, num_inference_steps=4)
    own.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    assert own.get_active_adapters() == ["style", "blip-diffusion-lcm"]
    own.set_preset(Preset())
    assert own.get_active_adapters() == ["style"]
    torch.testing.assert_close(draw(own, dog, num_inference_steps=4), styled, atol=1e-4, rtol=0)


def test_a_consistency_lora_stays_when_others_come_and_go(
    own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    path = lora(own, tmp_path)
    own.set_preset(lcm_preset(str(path), base=replace(TURBO, dtype="default")))
    own.load_lora_weights(path, adapter_name="style")
    assert set(own.get_active_adapters()) == {"style", "blip-diffusion-lcm"}
    own.set_adapters("style", 0.5)
    assert set(own.get_active_adapters()) == {"style", "blip-diffusion-lcm"}
    own.unload_lora_weights()
    assert own.get_active_adapters() == ["blip-diffusion-lcm"]
    own.set_preset(Preset())
    assert own.get_active_adapters() == []


def test_what_is_saved_samples_as_the_model_does(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    scheduler = type(own.scheduler)
    own.set_preset(replace(FAST, dtype="default"))
    own.save_pretrained(tmp_path)
    assert type(BlipDiffusionPipeline.from_pretrained(tmp_path).scheduler) is scheduler
    assert type(own.model.scheduler) is scheduler


def test_a_consistency_lora_that_is_refused_changes_nothing(
    own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    chosen = lcm_preset(str(lora(own, tmp_path)), base=replace(TURBO, dtype="default"))
    own.set_preset(chosen)
    before = draw(own, dog, num_inference_steps=4)
    with pytest.raises(CheckpointError, match="There is no LoRA at"):
        own.set_preset(lcm_preset(str(tmp_path / "missing.safetensors")))
    assert own.preset == chosen and torch.equal(draw(own, dog, num_inference_steps=4), before)


def test_a_tiny_autoencoder(
    own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(tmp_path)  # fmt: skip
    plain = draw(own, dog)
    own.set_preset(Preset(tiny_vae=str(tmp_path)))
    tiny = draw(own, dog)
    assert tiny.shape == plain.shape and apart(tiny, plain) > 1e-3
    latents = torch.zeros(1, own.vae.config.latent_channels, 4, 4)
    assert own._decode_latents(latents).device.type == "cpu"
    assert own._decode_latents(latents.to("meta")).device.type == own._tiny_vae.device.type == "meta"
    if importlib.util.find_spec("openvino"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        own.set_preset(Preset(tiny_vae=str(tmp_path), engine="openvino"))
        assert apart(draw(own, dog), tiny) < 0.1 * apart(tiny, plain)
    own.set_preset(Preset())
    assert torch.equal(draw(own, dog), plain)
    with pytest.raises(CheckpointError, match="no AutoencoderTiny"):
        own.set_preset(Preset(tiny_vae=str(tmp_path / "none")))


def test_another_autoencoder_is_refused_and_nothing_changed(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    own.vae.save_pretrained(tmp_path / "vae")
    widths = (8, 8, 8, 8)
    wide = diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, latent_channels=7
    )
    wide.save_pretrained(tmp_path / "wide")
    before = own.scheduler
    for name, problem in (("vae", "another kind of network"), ("wide", "latents of 7 channels")):
        with pytest.raises(CheckpointError, match=problem):
            own.set_preset(replace(FAST, dtype="default", tiny_vae=str(tmp_path / name)))
        assert own.scheduler is before and own.preset == Preset()


def test_a_network_compiled_before_its_features_are_used_again(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    own.set_preset(Preset(deepcache_interval=2))
    plain = draw(own, dog, num_inference_steps=2)
    own.set_preset(Preset())
    own.unet.compile(backend="eager")
    draw(own, dog, num_inference_steps=2)
    own.preset = own._requested = Preset(engine="compiled", deepcache_interval=2)
    torch.testing.assert_close(draw(own, dog, num_inference_steps=2), plain)


def test_a_model_that_was_distilled_samples_in_its_own_way(
    own: BlipDiffusionPipeline, dog: Image.Image, asked: list[int]
) -> None:
    own.scheduler = diffusers.LCMScheduler.from_config(own.scheduler.config)
    own.register_to_config(num_inference_steps=3, guidance_scale=1.0)
    own.set_preset(replace(TURBO, dtype="default"))
    draw(own, dog, num_inference_steps=None)
    assert isinstance(own.scheduler, diffusers.LCMScheduler) and asked == [1, 1, 1]
    own.set_preset(lcm_preset("none that is ever read", base=replace(TURBO, dtype="default")))  # it has no use for one
    draw(own, dog, num_inference_steps=None)
    assert isinstance(own.scheduler, diffusers.LCMScheduler) and own.preset.lcm_lora is None and len(asked) == 6


@pytest.fixture
def with_own_lora(own: BlipDiffusionPipeline, tmp_path: Path) -> Path:
    """A model's folder that brings a consistency LoRA along."""
    made = lora(own, tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    save_model(own.model, tmp_path / "model", consistency_lora=made)
    return tmp_path / "model"


def test_turbo_takes_the_models_own_lora(with_own_lora: Path, dog: Image.Image) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(with_own_lora)
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
def test_the_models_own_lora_stays_with_it(
    with_own_lora: Path, own: BlipDiffusionPipeline, tmp_path: Path, dog: Image.Image
) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(with_own_lora)
    pipe.set_preset("turbo")
    pipe.save_pretrained(tmp_path / "saved", torch_dtype=torch.float16)
    convert(str(with_own_lora), tmp_path / "converted", dtype=torch.float16)
    wanted = load_file(with_own_lora / CONSISTENCY_LORA)
    for folder in ("saved", "converted"):
        kept = load_file(tmp_path / folder / CONSISTENCY_LORA)
        torch.testing.assert_close(kept, {name: tensor.half() for name, tensor in wanted.items()})
        BlipDiffusionPipeline.from_pretrained(tmp_path / folder).set_preset("turbo")
    with pytest.warns(match="consistency LoRA is left out"):  # it is for one U-Net
        convert(str(with_own_lora), tmp_path / "other", unet=str(with_own_lora))
    assert not (tmp_path / "other" / CONSISTENCY_LORA).exists()
    other = BlipDiffusionPipeline.from_pretrained(with_own_lora, unet=own.unet)
    assert other.consistency_lora is None
    other.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / CONSISTENCY_LORA).exists()
    assert pipe.consistency_lora == BlipDiffusionPipeline(**pipe.components).consistency_lora is not None
    pipe.unet = other.unet
    assert pipe.consistency_lora is None


def test_a_damaged_lora_of_the_models_own(with_own_lora: Path, tmp_path: Path) -> None:
    (with_own_lora / CONSISTENCY_LORA).write_bytes(b"nonsense")
    pipe = BlipDiffusionPipeline.from_pretrained(with_own_lora)  # which can draw without it
    with pytest.raises(CheckpointError, match="The LoRA can't be read"):
        pipe.set_preset("turbo")
    with pytest.raises(CheckpointError, match="is not a file of weights"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# --------------------------------------------------------------------------------------------- two pipelines, one U-Net


def test_pipelines_that_share_a_unet_draw_each_by_its_own_preset(
    with_own_lora: Path, dog: Image.Image, tmp_path: Path
) -> None:
    presets = (replace(TURBO, dtype="default"), Preset())
    alone = []
    for preset in presets:
        pipe = BlipDiffusionPipeline.from_pretrained(with_own_lora)
        pipe.set_preset(preset)
        alone.append(draw(pipe, dog))
    one = BlipDiffusionPipeline.from_pretrained(with_own_lora)
    other = BlipDiffusionPipeline.from_pipe(one)
    assert other.unet is one.unet and other.config["num_inference_steps"] == one.config["num_inference_steps"]
    for first, second in ((one, other), (other, one)):
        first.set_preset(presets[0])
        second.set_preset(presets[1])
        for _ in range(2):
            for pipe, wanted in ((first, alone[0]), (second, alone[1])):
                torch.testing.assert_close(draw(pipe, dog), wanted, atol=1e-4, rtol=0)


def test_parts_are_handed_on_with_the_models_own_scheduler(own: BlipDiffusionPipeline) -> None:
    scheduler = own.scheduler
    own.set_preset("fast")
    assert own.scheduler is not scheduler and own.components["scheduler"] is scheduler
    assert BlipDiffusionPipeline.from_pipe(own).scheduler is scheduler


def test_an_interrupt_while_loras_are_folded_leaves_the_weights(
    own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = draw(own, dog)
    own.set_preset(lcm_preset(str(lora(own, tmp_path)), base=replace(TURBO, dtype="default")))
    layers = lora_layers(own.unet)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layers[-1], "merge", stop)
    with pytest.raises(KeyboardInterrupt):
        draw(own, dog)
    assert not any(layer.merged for layer in layers)
    own.set_preset(Preset())
    torch.testing.assert_close(draw(own, dog), plain, atol=1e-5, rtol=0)


def test_a_lora_that_is_swapped_in_place_is_drawn(own: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path) -> None:
    paths = [lora(own, tmp_path / name) for name in ("first", "second")]
    chosen = lcm_preset(str(paths[0]), base=replace(TURBO, dtype="default"))
    own.load_lora_weights(paths[1], adapter_name="style")
    own.set_preset(chosen)
    wanted = draw(own, dog)
    own.set_preset(Preset())
    own.delete_adapters("style")
    own.load_lora_weights(paths[0], adapter_name="style")
    own.set_preset(chosen)
    assert apart(draw(own, dog), wanted) > 1e-4
    own.load_lora_weights(paths[1], adapter_name="style", hotswap=True)
    torch.testing.assert_close(draw(own, dog), wanted, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_on_a_cpu_is_warned_of(own: BlipDiffusionPipeline) -> None:
    with pytest.warns(match="compiled takes minutes on a CPU before the first image"):
        own.set_preset(Preset(engine="compiled"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.set_preset(Preset())


def test_a_compiled_unet_is_saved_as_it_was(with_own_lora: Path, tmp_path: Path) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(with_own_lora)
    pipe.unet = torch.compile(pipe.unet)
    assert pipe.consistency_lora is not None
    pipe.save_pretrained(tmp_path / "saved")
    for file in ("unet/diffusion_pytorch_model.safetensors", CONSISTENCY_LORA):
        one, other = load_file(with_own_lora / file), load_file(tmp_path / "saved" / file)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_loras_and_a_unet_that_torch_compile_has_wrapped(with_own_lora: Path, dog: Image.Image) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(with_own_lora)
    plain = pipe.unet
    pipe.unet = torch.compile(plain, backend="eager")
    with pytest.raises(InputError, match=r"pipe\.unet\.compile\(\) instead"):
        pipe.set_preset("turbo")
    pipe.unet = plain
    pipe.set_preset(replace(TURBO, dtype="default"))
    wanted = draw(pipe, dog)
    pipe.unet = torch.compile(plain, backend="eager")  # what is in it stays
    torch.testing.assert_close(draw(pipe, dog), wanted, atol=1e-4, rtol=0)


def test_a_presets_lora_that_another_pipeline_has_put_aside(
    with_own_lora: Path, dog: Image.Image, tmp_path: Path
) -> None:
    one = BlipDiffusionPipeline.from_pretrained(with_own_lora)
    style = lora(one, tmp_path / "style")
    other = BlipDiffusionPipeline.from_pipe(one)
    one.set_preset(replace(TURBO, dtype="default"))
    other.load_lora_weights(style, adapter_name="style")
    layers = lora_layers(one.unet)
    in_two_calls = draw(one, dog)
    assert all("blip-diffusion-lcm" in layer.active_adapters for layer in layers)
    other.delete_adapters("style")
    assert apart(draw(one, dog), in_two_calls) > 1e-4  # the style was drawn too
    other.load_lora_weights(style, adapter_name="style")
    other.fuse_lora()  # without the preset's, which it takes out
    assert {name for layer in layers for name in layer.merged_adapters} == {"style"}
    with pytest.raises(InputError, match="over fused ones"):
        draw(one, dog)


def test_a_preset_follows_the_unet(with_own_lora: Path, tiny_folder: Path, dog: Image.Image) -> None:
    pipe = BlipDiffusionPipeline.from_pretrained(with_own_lora)
    own, other = pipe.unet, BlipDiffusionPipeline.from_pretrained(tiny_folder).unet
    turbo = replace(TURBO, dtype="default")
    pipe.set_preset(turbo)
    mine = draw(pipe, dog)
    pipe.unet = other  # which has no LoRA of its own
    draw(pipe, dog)
    assert pipe.preset == turbo and pipe.get_active_adapters() == [] and not lora_layers(other)
    pipe.unet = own
    torch.testing.assert_close(draw(pipe, dog), mine, atol=1e-4, rtol=0)
