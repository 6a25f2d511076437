"""Arguments of wrong types: one sentence with the argument's name, before anything is computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.attention_alignment import AttentionControl
from blip_diffusion.pipelines.checks import quoted
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

WRONG = [
    5, 2.5, "other", b"other", {"a": 1}, [None], (), object(), torch.rand(2, 3), np.zeros((4, 4)), torch.float16,
    Path("x"), lambda: None, 1j,
]  # fmt: skip
"""Values of which an argument accepts at most a few."""
NUMBERS = (int, float)
ACCEPTED: dict[str, Any] = {
    "prompt_weighting": (),
    "guess_mode": (),
    "return_dict": (),
    "clip_skip": (),
    "output_type": (),
    "resize_mode": (),
    "region_mode": (),
    "control_resample": (),
    "subjects": (),
    "latents": (),
    "prompt_embeds": (),
    "negative_prompt_embeds": (),
    "subject_embeds": (),
    "generator": (),
    "box": (),
    "callback_on_step_end": (),
    "callback_on_step_end_tensor_inputs": (tuple,),
    "controlnet_conditioning_scale": (*NUMBERS, tuple),
    "control_guidance_start": (*NUMBERS, tuple),
    "control_guidance_end": (*NUMBERS, tuple),
    "height": (int,),
    "num_inference_steps": (int,),
    "num_images_per_prompt": (int,),
    "prompt_reps": (int,),
    "guidance_scale": NUMBERS,
    "guidance_rescale": (),
    "noise_scale": NUMBERS,
    "prompt_strength": NUMBERS,
    "eta": (),
    "timesteps": (),
    "sigmas": (),
    "cross_attention_kwargs": (),
    "prompt": (str,),
    "negative_prompt": (str,),
    "target_subject_category": (str,),
    "source_subject_category": (str,),
}
"""Arguments, and the types of the values above that each accepts."""


def named(name: str) -> str:
    """Return how messages name an argument."""
    return {"box": "box", "subject_embeds": "subject"}.get(name, name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_call_refuses_wrong_types(pipe: BlipDiffusionPipeline, dog: Image.Image, name: str) -> None:
    arguments = {"prompt": "on the beach", "reference_image": dog, "source_subject_category": "dog"}
    for value in WRONG:
        if isinstance(value, ACCEPTED[name]):
            continue
        with pytest.raises(InputError) as caught:
            pipe(**{**arguments, name: value})
        message = str(caught.value)
        assert named(name) in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("image", ()), ("source_category", (str,)), ("target_category", (str,)), ("mask", ()), ("inversion", ()),
        ("attention", ()), ("strength", ()), ("feather", (int,)), ("mask_threshold", ()), ("describe_source", ()),
    ],
)  # fmt: skip
def test_an_edit_refuses_wrong_types(
    pipe: BlipDiffusionPipeline, dog: Image.Image, name: str, kinds: tuple[type, ...]
) -> None:
    for value in WRONG:
        if not isinstance(value, kinds):
            with pytest.raises(InputError, match=name):
                pipe.edit(**{"image": dog, "source_category": "dog", "reference_image": dog, name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "dog"}, "attention.weights is 'dog': use a dict"),
        ({"shape": ["keep"]}, r"no attention.shape \['keep'\]: use free or keep"),
        ({"cross_attention": "0.4"}, "cross_attention is '0.4': use a number from 0 to 1"),
    ],
)
def test_attention_control_refuses_wrong_types(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttentionControl(**options)


def test_text_is_no_number_of_a_box(placed: BlipDiffusionPipeline, dog: Image.Image) -> None:
    with pytest.raises(InputError, match="The box is"):
        placed("on the beach", dog, "dog", box=["0.1", "0.1", "0.5", "0.5"])


def test_the_callback_of_other_arguments_is_refused(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    def callback(step: int, timestep: int, latents: torch.Tensor) -> None:  # of older versions of diffusers
        pass

    with pytest.raises(InputError, match="use a function of pipeline, index, timestep and tensors"):
        pipe("on the beach", dog, "dog", callback_on_step_end=callback)


def test_quotations_are_short_lines() -> None:
    assert quoted(torch.zeros(2, 1)) == "tensor([[0.], [0.]])"
    assert len(quoted("a" * 1000)) == 100


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nonsense", "", 99, 2.5, ["cpu"], torch.device("meta")])
def test_absent_devices_are_refused(tiny_folder: Path, pipe: BlipDiffusionPipeline, device: Any) -> None:
    for move in (
        lambda: pipe.to(device),
        lambda: pipe.to(device, torch.float16),
        lambda: pipe.to(device=device),
        lambda: BlipDiffusionPipeline.from_pretrained(tiny_folder, device_map=device),
    ):
        with pytest.raises(InputError, match=r"There is no device|The device is a"):
            move()
    assert pipe.device == torch.device("cpu") and pipe.dtype == torch.float32
