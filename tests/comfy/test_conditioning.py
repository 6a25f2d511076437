"""Conditioning for other samplers: what a call gives to the U-Net."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.subject_file import Subject, fingerprint, write_subject
from blip_diffusion.comfy.conditioning import text_states
from blip_diffusion.comfy.loaded_model import LoadedModel
from blip_diffusion.comfy.subjects import subject_from_file, subject_from_images
from blip_diffusion.comfy.tensors import from_pil
from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline


def test_states_make_the_image_that_the_prompt_makes(
    tiny_folder: Path, dog: Image.Image, pipe: BlipDiffusionPipeline
) -> None:
    words = {"negative_prompt": "in the snow"}
    subject = subject_from_images(from_pil([dog]), "dog")
    before = torch.get_rng_state()
    states, negative = text_states(LoadedModel(str(tiny_folder), "cpu"), subject, "on the beach", **words)
    assert torch.equal(torch.get_rng_state(), before)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
    own = pipe("on the beach", dog, "dog", "dog", generator=torch.manual_seed(0), **words, **call).images
    given = pipe(prompt_embeds=states, negative_prompt_embeds=negative, generator=torch.manual_seed(0), **call).images
    assert torch.equal(own, given)


def test_subjects_that_change_the_unet_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = LoadedModel(str(tiny_folder), "cpu")
    pipe = model.any_pipe()
    rex = Subject("rex", "dog", torch.randn(1, 4, 32), fingerprint(pipe.unet, pipe.text_encoder))
    write_subject(rex, tmp_path / "rex.safetensors")
    assert text_states(model, subject_from_file(tmp_path / "rex.safetensors"), "on the beach")[0].shape[2] == 32
    own = dict(pipe.unet.named_parameters())
    weights = {name: one.detach() for name, one in own.items() if ".attn2.to_k." in name}
    write_subject(replace(rex, weights=weights), tmp_path / "rex.safetensors")
    with pytest.raises(InputError, match="'rex' has tuned weights of the U-Net"):
        text_states(model, subject_from_file(tmp_path / "rex.safetensors"), "on the beach")
    assert pipe.subjects == ()


def test_mini_has_no_unet_of_stable_diffusion(dog: Image.Image) -> None:
    with pytest.raises(InputError, match="KSampler can't sample with this model"):
        text_states(LoadedModel("mini", "cpu"), subject_from_images(from_pil([dog]), "dog"), "on the beach")
