"""Inputs of the pipeline: references, subject embeddings, long prompts, and invalid values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .sampling import INPUTS, Generate, seeded


def test_subject_embeds_replace_the_reference(
    generate: Generate, pipe: BlipDiffusionPipeline, dog: Image.Image
) -> None:
    subject = pipe.encode_subject(dog, "dog")
    assert subject.shape == (1, 4, 32)
    assert torch.equal(generate(reference=None, source="", subject_embeds=subject), generate())


def test_encode_subject_returns_the_mean_of_several_images(
    pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image
) -> None:
    both = pipe.encode_subject([dog, cat], "dog")
    singles = torch.cat([pipe.encode_subject(dog, "dog"), pipe.encode_subject(cat, "dog")])
    torch.testing.assert_close(both, singles.mean(dim=0, keepdim=True))


def test_equal_pairs_are_encoded_once(pipe: BlipDiffusionPipeline, generate: Generate, dog: Image.Image) -> None:
    sizes = []

    def note(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        sizes.append(len(output))

    handle = pipe.qformer.register_forward_hook(note)
    try:
        unknown = dog.rotate(180)
        generate(["on the beach"] * 3, [unknown] * 3, ["dog", "cat", "dog"], generator=seeded(1, 1, 1))
    finally:
        handle.remove()
    assert sizes == [2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": ["a", "b"], "source": ["dog"] * 3}, r"don't match \(2 of prompt, 3 of source_subject_category\)"),
        ({"prompt": []}, "don't match"),
        ({"prompt": "a\ud800"}, "prompt 'a\\\\ud800' is not Unicode text"),
        ({"negative_prompt": "\udcff"}, "negative_prompt '\\\\udcff' is not Unicode text"),
        ({"source": "\udcff"}, "source_subject_category '\\\\udcff' is not Unicode text"),
        ({"reference": None}, "no subject: give reference_image or subject_embeds"),
        ({"source": ""}, "category is empty"),
        ({"reference": Image.new("RGB", (8, 90))}, "8 x 90 pixels"),
        ({"reference": "photo.png"}, "A reference is a PIL image, or a list of them"),
        ({"reference": [Path("photo.png")]}, "A reference is a PIL image, or a list of them"),
        ({"height": 30}, "size 30 can't be used: give a multiple of 16 from 16 to 2048"),
        ({"width": 0}, "size 0 can't be used"),
        ({"width": 4096}, "size 4096 can't be used"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 2000}, "num_inference_steps is 2000: use a whole number from 1 to 1000"),
        ({"subject_embeds": torch.zeros(4, 32)}, r"tokens are \(4, 32\): this model reads \(images, 0 to 29, 32\)"),
        ({"subject_embeds": torch.zeros(1, 30, 32)}, r"tokens are \(1, 30, 32\)"),
        ({"subject_embeds": torch.zeros(1, 500, 32)}, r"tokens are \(1, 500, 32\)"),
        ({"subject_embeds": torch.zeros(1, 4, 99)}, r"tokens are \(1, 4, 99\)"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"output_type": "gif"}, "no output_type 'gif': use pil, np, pt or latent"),
        ({"resize_mode": "stretch"}, "use crop, squash, pad or subject"),
        ({"generator": seeded(1, 2)}, "2 generators for 1 images"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents are \(1, 4, 8, 8\): these images need \(1, 4, 4, 4\)"),
        ({"prompt": ["a", "b"], "latents": torch.zeros(1, 4, 4, 4)}, r"need \(2, 4, 4, 4\)"),
    ],
)
def test_invalid_inputs_are_refused_before_the_unet_runs(
    pipe: BlipDiffusionPipeline, generate: Generate, options: dict[str, Any], sentence: str
) -> None:
    handle = pipe.unet.register_forward_hook(lambda *_: pytest.fail("the U-Net was asked"))
    try:
        with pytest.raises(InputError, match=sentence):
            generate(**options)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["unet", "vae", "scheduler", "qformer", "text_encoder"])
def test_missing_part_is_named(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, name: str) -> None:
    fresh_pipe.register_modules(**{name: None})
    for call in (fresh_pipe, fresh_pipe.encode_prompt):
        with pytest.raises(InputError, match=f"The pipeline has no {name}"):
            call("on the beach", dog, "dog", "dog")  # type: ignore[operator]


def test_lcm_scheduler_limits_the_number_of_steps(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    fresh_pipe.scheduler = LCMScheduler.from_config(fresh_pipe.scheduler.config)
    with pytest.raises(InputError, match="num_inference_steps is 51: use a whole number from 1 to 50"):
        fresh_pipe(INPUTS[0], dog, "dog", num_inference_steps=51)


def test_subject_tokens_may_fill_the_text_positions(generate: Generate) -> None:
    """The template's "a" and the start and end tokens are kept."""
    with pytest.warns(UserWarning, match="dropped from its end: 'dog on the beach'"):
        assert generate(reference=None, subject_embeds=torch.ones(1, 29, 32)).isfinite().all()


def test_encode_subject_needs_an_image(pipe: BlipDiffusionPipeline) -> None:
    with pytest.raises(InputError, match="no image of the subject"):
        pipe.encode_subject([], "dog")


def test_truncated_part_of_a_prompt_is_quoted(generate: Generate) -> None:
    """Of 32 positions, the subject takes 4, so 26 words fit, including "a dog"."""
    with pytest.warns(UserWarning, match="dropped from its end: 'hat red'$"):
        cut = generate(" ".join(["beach"] * 24 + ["hat", "red"]))
    assert torch.equal(cut, generate(" ".join(["beach"] * 24)))
    with pytest.warns(UserWarning, match="dropped from its end: 'hat'$"):
        generate(negative_prompt=" ".join(["beach"] * 30 + ["hat"]))
