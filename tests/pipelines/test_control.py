"""Structure control, held to diffusers' own pipeline for ControlNets."""

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

Draw = Callable[..., Tensor]
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
    """A ControlNet that says something: a new one's last layers are zero."""
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
def draw(pipe: BlipDiffusionPipeline, dog: Image.Image) -> Draw:
    def draw(**asked: Any) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        asked = {"output_type": "pt", "guidance_rescale": 0.0, "generator": noise, **asked}
        return pipe("on the beach", dog, "dog", **asked).images

    return draw


def peer(
    pipe: BlipDiffusionPipeline,
    net: Any,
    dog: Image.Image,
    kind: Any = StableDiffusionControlNetPipeline,
    **asked: Any,
) -> Tensor:
    """What diffusers draws from the same text states and noise."""
    theirs = kind(
        pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, net, pipe.scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    with torch.no_grad():
        subject = pipe.encode_subject(dog, "dog")
        text = pipe.model.text_states(["a dog on the beach"], subject)
        empty = pipe.model.text_states([""])
    asked = {
        "num_inference_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "pt", **asked
    }  # fmt: skip
    noise = torch.Generator().manual_seed(0)
    return theirs(
        prompt_embeds=text, negative_prompt_embeds=empty, generator=noise, **asked
    ).images  # fmt: skip


@pytest.mark.parametrize("numbers", NUMBERS)
def test_one_net_is_diffusers(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, dog: Image.Image, draw: Draw, numbers: dict
) -> None:
    ours = draw(image=room, controlnet=nets[0], **numbers)
    torch.testing.assert_close(ours, peer(pipe, nets[0], dog, image=room, **numbers), atol=5e-5, rtol=0)
    assert (ours - draw(**{k: v for k, v in numbers.items() if k == "guidance_scale"})).abs().max() > 1e-3


def test_two_nets_are_diffusers(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, dog: Image.Image, draw: Draw
) -> None:
    numbers = {
        "controlnet_conditioning_scale": [0.5, 1.0],
        "control_guidance_start": [0.0, 0.3],
        "control_guidance_end": [0.7, 1.0],
    }
    other = room.transpose(Image.Transpose.ROTATE_90)
    ours = draw(image=[room, other], controlnet=nets, **numbers)
    theirs = peer(pipe, nets, dog, image=[room, other], **numbers)
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


@pytest.fixture(scope="module")
def adapter(pipe: BlipDiffusionPipeline) -> T2IAdapter:
    torch.manual_seed(0)
    factor = pipe.model.latents.factor
    return T2IAdapter(channels=list(pipe.unet.config.block_out_channels), num_res_blocks=1, downscale_factor=factor)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_an_adapter_is_diffusers(
    pipe: BlipDiffusionPipeline, adapter: T2IAdapter, room: Image.Image, dog: Image.Image, draw: Draw, scale: float
) -> None:
    def with_adapter(net: Any, image: Image.Image, **asked: Any) -> Tensor:
        return peer(pipe, net, dog, kind=StableDiffusionAdapterPipeline, image=image, **asked)

    ours = draw(image=room, controlnet=adapter, controlnet_conditioning_scale=scale, output_type="latent")
    theirs = with_adapter(adapter, room, adapter_conditioning_scale=scale, output_type="latent")
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
    assert (ours - draw(output_type="latent")).abs().max() > 1e-3


def test_an_adapter_of_another_unet(room: Image.Image, draw: Draw) -> None:
    other = T2IAdapter(channels=[32, 32], num_res_blocks=1, downscale_factor=8)
    with pytest.raises(InputError, match=r"adapter is for another U-Net: its channels are \(32, 32\)"):
        draw(image=room, controlnet=other)


def test_adapters_come_with_a_model(
    pipe: BlipDiffusionPipeline, adapter: T2IAdapter, room: Image.Image, draw: Draw, tmp_path: Path
) -> None:
    whole = BlipDiffusionPipeline.from_pipe(pipe)
    whole.t2i_adapters = {"canny": adapter}
    whole.save_pretrained(tmp_path)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path).t2i_adapters
    expected = draw(image=room, controlnet=adapter)
    torch.testing.assert_close(draw(image=room, controlnet=loaded["canny"]), expected)


def test_a_net_may_be_in_another_precision(nets: list[Any], room: Image.Image, draw: Draw) -> None:
    asked = {"image": room, "controlnet_conditioning_scale": 0.2}
    alike = draw(controlnet=nets[0], **asked)
    rounded = copy.deepcopy(nets[0]).to(torch.bfloat16)
    assert (draw(controlnet=rounded, **asked) - alike).abs().mean() < 0.02


def test_a_net_with_nothing_to_say_changes_nothing(nets: list[Any], room: Image.Image, draw: Draw) -> None:
    assert torch.equal(draw(image=room, controlnet=nets[0], controlnet_conditioning_scale=0.0), draw())


def test_the_published_name_and_the_models_own_net(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, draw: Draw, tmp_path: Any, dog: Image.Image
) -> None:
    wanted = draw(image=room, controlnet=nets[0])
    own = BlipDiffusionPipeline.from_model(pipe.model, controlnet=nets[0])
    own.save_pretrained(tmp_path)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for one in (own, loaded, BlipDiffusionPipeline.from_pretrained(tmp_path, controlnet=tmp_path / "controlnet")):
        one.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        drawn = one("on the beach", dog, "dog", condtioning_image=room, generator=noise, output_type="pt",
                    guidance_rescale=0.0).images  # fmt: skip
        assert torch.equal(drawn, wanted)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5)])
def test_guidance_on_an_interval_keeps_a_nets_own_steps(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, draw: Draw, window: tuple[float, float]
) -> None:
    """Guided or not, a step counts once, and a net speaks in the steps that it was asked to."""
    start, end = window
    asked = {"image": room, "controlnet": nets[0], "control_guidance_start": start, "control_guidance_end": end}
    asked |= {"num_inference_steps": 4}
    try:
        pipe.set_preset(Preset(guidance_interval=(0.0, 0.0)))
        unguided = draw(**asked)
        pipe.set_preset(Preset(guidance_interval=(0.0, 0.5)))
        half, uncontrolled = draw(**asked), draw(num_inference_steps=4)
    finally:
        pipe.set_preset(Preset())
    assert torch.equal(unguided, draw(**asked, guidance_scale=1.0))
    assert not any(torch.equal(half, other) for other in (unguided, uncontrolled, draw(**asked)))


def test_an_image_for_each_prompt(
    pipe: BlipDiffusionPipeline, nets: list[Any], room: Image.Image, dog: Image.Image
) -> None:
    other = room.transpose(Image.Transpose.ROTATE_180)

    def drawn(**asked: Any) -> Tensor:
        size = 4 if isinstance(asked["image"], list) else 2
        noise = [torch.Generator().manual_seed(n % 2) for n in range(size)]
        return pipe(
            ["on the beach"] * (size // 2), dog, "dog", controlnet=nets[0], num_images_per_prompt=2, generator=noise,
            output_type="pt", **asked,
        ).images  # fmt: skip

    together = drawn(image=[room, other])
    for half, one in zip(together.chunk(2), (room, other), strict=True):
        torch.testing.assert_close(half, drawn(image=one), atol=1e-5, rtol=0)


def test_an_image_is_brought_to_size(nets: list[Any], room: Image.Image, draw: Draw) -> None:
    large = room.resize((50, 40))
    assert not torch.equal(draw(image=large, controlnet=nets[0]),
                           draw(image=large, controlnet=nets[0], control_resample="bicubic"))  # fmt: skip
    small = torch.rand(3, 32, 32)
    assert torch.equal(draw(image=small, controlnet=nets[0]), draw(image=small[None], controlnet=nets[0]))


@pytest.mark.parametrize(
    ("asked", "message"),
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
def test_what_cannot_be_controlled(nets: list[Any], room: Image.Image, draw: Draw, asked: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(**{"image": room.resize((40, 40)), "controlnet": nets[0], **asked})


def test_a_nested_list_has_a_row_for_each_prompt(nets: list[Any], room: Image.Image, draw: Draw) -> None:
    other = room.transpose(Image.Transpose.ROTATE_90)
    assert torch.equal(draw(image=[[room, other]], controlnet=nets), draw(image=[room, other], controlnet=nets))
    with pytest.raises(InputError, match="one list for each prompt, each with 2 images"):
        draw(image=[[room], [other]], controlnet=nets)


def test_arrays_are_control_images_too(nets: list[Any], room: Image.Image, draw: Draw) -> None:
    wanted = draw(image=room, controlnet=nets[0])
    array = np.asarray(room, dtype=np.float32) / 255
    for given in (array, array[None], [array], [torch.from_numpy(array).permute(2, 0, 1)]):
        assert torch.equal(draw(image=given, controlnet=nets[0]), wanted)


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
def test_arrays_that_are_no_control_images(nets: list[Any], draw: Draw, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(image=image, controlnet=nets[0])


def test_two_nets_want_two_images(nets: list[Any], room: Image.Image, draw: Draw) -> None:
    with pytest.raises(InputError, match="2 ControlNets for 1 images"):
        draw(image=room, controlnet=nets)
