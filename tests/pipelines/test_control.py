"""Structure control, compared with diffusers' ControlNet pipeline."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    T2IAdapter,
)
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset

Generate = Callable[..., Tensor]
NUMBERS = [
    {},
    {"controlnet_conditioning_scale": 0.5},
    {"control_guidance_start": 0.3},
    {"control_guidance_end": 0.6},
    {"guess_mode": True},
    {"guess_mode": True, "guidance_scale": 1.0},
    {"guidance_scale": 1.0},
]


def net_of(pipe: BlipDiffusionPipeline, seed: int) -> ControlNetModel:
    """Return a ControlNet with an effect: the last layers of a new one are zero."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    with torch.no_grad():
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            for parameter in block.parameters():
                parameter.normal_(std=0.3)
    return net.eval()


@pytest.fixture(scope="module")
def nets(pipe: BlipDiffusionPipeline) -> list[ControlNetModel]:
    return [net_of(pipe, 0), net_of(pipe, 1)]


@pytest.fixture(scope="module")
def room() -> Image.Image:
    return Image.effect_noise((32, 32), 80).convert("RGB")


@pytest.fixture
def generate(pipe: BlipDiffusionPipeline, dog: Image.Image) -> Generate:
    def generate(**options: Any) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        options = {"output_type": "pt", "guidance_rescale": 0.0, "generator": noise, **options}
        return pipe("on the beach", dog, "dog", **options).images

    return generate


def peer(
    pipe: BlipDiffusionPipeline,
    net: Any,
    dog: Image.Image,
    kind: Any = StableDiffusionControlNetPipeline,
    **options: Any,
) -> Tensor:
    """Generate the image of diffusers from the same text states and noise."""
    theirs = kind(
        pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, net, pipe.scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    with torch.no_grad():
        subject = pipe.encode_subject(dog, "dog")
        text = pipe.model.text_states(["a dog on the beach"], subject)
        empty = pipe.model.text_states([""])
    options = {
        "num_inference_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "pt", **options
    }  # fmt: skip
    noise = torch.Generator().manual_seed(0)
    return theirs(
        prompt_embeds=text, negative_prompt_embeds=empty, generator=noise, **options
    ).images  # fmt: skip


@pytest.mark.parametrize("numbers", NUMBERS)
def test_one_controlnet_equals_the_pipeline_of_diffusers(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, dog: Image.Image, generate: Generate, numbers: dict
) -> None:
    ours = generate(image=room, controlnet=nets[0], **numbers)
    torch.testing.assert_close(ours, peer(pipe, nets[0], dog, image=room, **numbers), atol=5e-5, rtol=0)
    assert (ours - generate(**{k: v for k, v in numbers.items() if k == "guidance_scale"})).abs().max() > 1e-3


def test_two_controlnets_equal_the_pipeline_of_diffusers(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, dog: Image.Image, generate: Generate
) -> None:
    numbers = {
        "controlnet_conditioning_scale": [0.5, 1.0],
        "control_guidance_start": [0.0, 0.3],
        "control_guidance_end": [0.7, 1.0],
    }
    other = room.transpose(Image.Transpose.ROTATE_90)
    ours = generate(image=[room, other], controlnet=nets, **numbers)
    theirs = peer(pipe, nets, dog, image=[room, other], **numbers)
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


@pytest.fixture(scope="module")
def adapter(pipe: BlipDiffusionPipeline) -> T2IAdapter:
    torch.manual_seed(0)
    factor = pipe.model.latents.factor
    return T2IAdapter(channels=list(pipe.unet.config.block_out_channels), num_res_blocks=1, downscale_factor=factor)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_adapter_equals_the_pipeline_of_diffusers(
    pipe: BlipDiffusionPipeline,
    adapter: T2IAdapter,
    room: Image.Image,
    dog: Image.Image,
    generate: Generate,
    scale: float,
) -> None:
    def with_adapter(net: Any, image: Image.Image, **options: Any) -> Tensor:
        return peer(pipe, net, dog, kind=StableDiffusionAdapterPipeline, image=image, **options)

    ours = generate(image=room, controlnet=adapter, controlnet_conditioning_scale=scale, output_type="latent")
    theirs = with_adapter(adapter, room, adapter_conditioning_scale=scale, output_type="latent")
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
    assert (ours - generate(output_type="latent")).abs().max() > 1e-3


def test_adapter_of_another_unet_is_refused(room: Image.Image, generate: Generate) -> None:
    other = T2IAdapter(channels=[32, 32], num_res_blocks=1, downscale_factor=8)
    with pytest.raises(InputError, match=r"adapter is for another U-Net: its channels are \(32, 32\)"):
        generate(image=room, controlnet=other)


def test_adapters_in_a_model_folder_are_loaded(
    pipe: BlipDiffusionPipeline, adapter: T2IAdapter, room: Image.Image, generate: Generate, tmp_path: Path
) -> None:
    whole = BlipDiffusionPipeline.from_pipe(pipe)
    whole.t2i_adapters = {"canny": adapter}
    whole.save_pretrained(tmp_path)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path).t2i_adapters
    expected = generate(image=room, controlnet=adapter)
    torch.testing.assert_close(generate(image=room, controlnet=loaded["canny"]), expected)


def test_controlnet_may_have_another_precision(nets: list[Any], room: Image.Image, generate: Generate) -> None:
    options = {"image": room, "controlnet_conditioning_scale": 0.2}
    alike = generate(controlnet=nets[0], **options)
    rounded = copy.deepcopy(nets[0]).to(torch.bfloat16)
    assert (generate(controlnet=rounded, **options) - alike).abs().mean() < 0.02


def test_zero_controlnet_changes_nothing(nets: list[Any], room: Image.Image, generate: Generate) -> None:
    assert torch.equal(generate(image=room, controlnet=nets[0], controlnet_conditioning_scale=0.0), generate())


def test_published_argument_name_and_bundled_controlnet(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, generate: Generate, tmp_path: Any, dog: Image.Image
) -> None:
    target_value = generate(image=room, controlnet=nets[0])
    controlled_pipe = BlipDiffusionPipeline.from_model(pipe.model, controlnet=nets[0])
    controlled_pipe.save_pretrained(tmp_path)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for one in (
        controlled_pipe,
        loaded,
        BlipDiffusionPipeline.from_pretrained(tmp_path, controlnet=tmp_path / "controlnet"),
    ):
        one.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        generated = one("on the beach", dog, "dog", condtioning_image=room, generator=noise, output_type="pt",
                    guidance_rescale=0.0).images  # fmt: skip
        assert torch.equal(generated, target_value)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5)])
def test_guidance_interval_keeps_the_steps_of_the_controlnet(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, generate: Generate, window: tuple[float, float]
) -> None:
    """A ControlNet runs in its own steps, whether or not a step has guidance."""
    start, end = window
    options = {"image": room, "controlnet": nets[0], "control_guidance_start": start, "control_guidance_end": end}
    options |= {"num_inference_steps": 4}
    try:
        pipe.set_preset(Preset(guidance_interval=(0.0, 0.0)))
        unguided = generate(**options)
        pipe.set_preset(Preset(guidance_interval=(0.0, 0.5)))
        half, uncontrolled = generate(**options), generate(num_inference_steps=4)
    finally:
        pipe.set_preset(Preset())
    assert torch.equal(unguided, generate(**options, guidance_scale=1.0))
    assert not any(torch.equal(half, other) for other in (unguided, uncontrolled, generate(**options)))


def test_one_control_image_per_prompt(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, dog: Image.Image
) -> None:
    other = room.transpose(Image.Transpose.ROTATE_180)

    def generated(**options: Any) -> Tensor:
        size = 4 if isinstance(options["image"], list) else 2
        noise = [torch.Generator().manual_seed(n % 2) for n in range(size)]
        return pipe(
            ["on the beach"] * (size // 2), dog, "dog", controlnet=nets[0], num_images_per_prompt=2, generator=noise,
            output_type="pt", **options,
        ).images  # fmt: skip

    together = generated(image=[room, other])
    for half, one in zip(together.chunk(2), (room, other), strict=True):
        torch.testing.assert_close(half, generated(image=one), atol=1e-5, rtol=0)


def test_control_image_is_resized(nets: list[Any], room: Image.Image, generate: Generate) -> None:
    large = room.resize((50, 40))
    assert not torch.equal(generate(image=large, controlnet=nets[0]),
                           generate(image=large, controlnet=nets[0], control_resample="bicubic"))  # fmt: skip
    small = torch.rand(3, 32, 32)
    assert torch.equal(generate(image=small, controlnet=nets[0]), generate(image=small[None], controlnet=nets[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controlnet": None}, "needs a ControlNet"),
        ({"image": "room.png"}, "A control image is a PIL image"),
        ({"image": []}, "A control image is a PIL image"),
        ({"image": torch.rand(3, 8, 8)}, r"use \(B, 3, 32, 32\)"),
        ({"image": torch.rand(3, 3, 32, 32)}, "3 control images for 1 prompts"),
        ({"controlnet_conditioning_scale": float("nan")}, "controlnet_conditioning_scale is nan"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "can't be active from 0.5 to 0.5"),
        ({"control_guidance_end": [0.5, 0.6]}, "2 numbers in control_guidance_end for 1 ControlNets"),
        ({"control_resample": "nearest"}, "no control_resample"),
        ({"controlnet": ControlNetModel(block_out_channels=(32, 64), cross_attention_dim=8,
                                        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                        norm_num_groups=8)}, "cross_attention_dim is 8, this model's is 32"),
    ],
)  # fmt: skip
def test_invalid_control_inputs_are_refused(
    nets: list[Any], room: Image.Image, generate: Generate, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(**{"image": room.resize((40, 40)), "controlnet": nets[0], **options})


def test_a_control_that_acts_in_no_step_is_announced(nets: list[Any], room: Image.Image, generate: Generate) -> None:
    given = {"image": room, "controlnet": nets[0], "num_inference_steps": 2}
    with pytest.warns(UserWarning, match="None of the 2 steps lies between 0 and 0.4 of the sampling: the control has"):
        result = generate(**given, control_guidance_end=0.4)
    assert torch.equal(result, generate(num_inference_steps=2))


def test_nested_lists_have_one_row_per_prompt(nets: list[Any], room: Image.Image, generate: Generate) -> None:
    other = room.transpose(Image.Transpose.ROTATE_90)
    assert torch.equal(generate(image=[[room, other]], controlnet=nets), generate(image=[room, other], controlnet=nets))
    with pytest.raises(InputError, match="one list for each prompt, each with 2 images"):
        generate(image=[[room], [other]], controlnet=nets)


def test_arrays_are_accepted_as_control_images(nets: list[Any], room: Image.Image, generate: Generate) -> None:
    target_value = generate(image=room, controlnet=nets[0])
    array = np.asarray(room, dtype=np.float32) / 255
    for given in (array, array[None], [array], [torch.from_numpy(array).permute(2, 0, 1)]):
        assert torch.equal(generate(image=given, controlnet=nets[0]), target_value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 32, 32) * 255, "floats from 0 to 1"),
        (torch.rand(3, 32, 32) - 0.5, "floats from 0 to 1"),
        (torch.full((3, 32, 32), float("nan")), "floats from 0 to 1"),
        (np.zeros((32, 32, 3), dtype=np.uint8), "floats from 0 to 1"),
        (np.zeros((32, 32), dtype=np.float32), r"The control array is \(32, 32\)"),
        ([torch.rand(3, 32, 32), torch.rand(3, 16, 16)], "different sizes"),
        (None, "controlnet is given without image"),
    ],
)
def test_invalid_control_arrays_are_refused(nets: list[Any], generate: Generate, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(image=image, controlnet=nets[0])


def test_two_controlnets_need_two_images(nets: list[Any], room: Image.Image, generate: Generate) -> None:
    with pytest.raises(InputError, match="2 ControlNets for 1 images"):
        generate(image=room, controlnet=nets)


def test_controlnets_of_a_model_with_placed_tokens_are_refused(
    placed: BlipDiffusionPipeline, dog: Image.Image, tmp_path: Path
) -> None:
    net = ControlNetModel(**like_unet(placed))
    with pytest.raises(InputError, match="use a T2I-Adapter"):
        placed("on the beach", dog, "dog", image=dog, controlnet=net)
    placed.save_pretrained(tmp_path / "model")
    net.save_pretrained(tmp_path / "net")
    for given in (net, [net], tmp_path / "net"):
        with pytest.raises(InputError, match="use a T2I-Adapter"):
            BlipDiffusionPipeline.from_pretrained(tmp_path / "model", controlnet=given)


def like_unet(pipe: BlipDiffusionPipeline, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a ControlNet for a U-Net, and what differs."""
    names = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "cross_attention_dim",
             "attention_head_dim", "norm_num_groups")  # fmt: skip
    shapes = {name: pipe.unet.config[name] for name in names}
    return {**shapes, "conditioning_embedding_out_channels": (8, 8, 8, 8), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": 3}, "its layers_per_block is 3"),
        ({"conditioning_channels": 1}, "reads images of 1 channels"),
        ({"conditioning_embedding_out_channels": (8, 8)}, "reduces images 2 times, and this model's 8 times"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "its addition_embed_type is text_time",
        ),
    ],
)
def test_controlnets_of_other_networks_are_refused(
    pipe: BlipDiffusionPipeline, room: Image.Image, generate: Generate, changes: dict[str, Any], message: str
) -> None:
    net = ControlNetModel(**like_unet(pipe, **changes))
    with pytest.raises(InputError, match=message):
        generate(image=room, controlnet=net)
    with pytest.raises(InputError, match=message):
        BlipDiffusionPipeline.from_pipe(pipe, controlnet=net)


@pytest.mark.parametrize("kind", ["downscale_factor", "adapter_type"])
def test_adapters_of_other_networks_are_refused(
    pipe: BlipDiffusionPipeline, room: Image.Image, generate: Generate, kind: str
) -> None:
    changes = {"downscale_factor": {"downscale_factor": 4}, "adapter_type": {"adapter_type": "full_adapter_xl"}}[kind]
    channels = list(pipe.unet.config.block_out_channels)
    net = T2IAdapter(**{"channels": channels, "num_res_blocks": 1, "downscale_factor": 8, **changes})
    with pytest.raises(InputError, match=f"its {kind} is"):
        generate(image=room, controlnet=net)


@pytest.mark.parametrize("given", [5, "canny", torch.nn.Linear(2, 2), [None], {"canny": None}])
def test_something_else_than_a_controlnet_is_refused(room: Image.Image, generate: Generate, given: Any) -> None:
    with pytest.raises(InputError, match=r"controlnet is a \w+: use a ControlNetModel or T2IAdapter"):
        generate(image=room, controlnet=given)


def test_an_empty_list_of_controlnets_is_refused(room: Image.Image, generate: Generate) -> None:
    with pytest.raises(InputError, match="controlnet is an empty list"):
        generate(image=room, controlnet=[])


@pytest.mark.parametrize("alone", ["controlnet", "both"])
def test_a_controlnet_without_a_control_image_is_refused(nets: list[Any], generate: Generate, alone: str) -> None:
    given = {"controlnet": nets[0] if alone == "controlnet" else nets}
    with pytest.raises(InputError, match="controlnet is given without image"):
        generate(**given)
