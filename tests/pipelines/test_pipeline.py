"""The pipeline's call: determinism, defaults, batches and outputs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .sampling import INPUTS, Generate, seeded


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether images are equal up to the order of sums, which depends on the batch size."""
    return a.shape == b.shape and (a - b).abs().max().item() < 2e-5


def test_same_seed_gives_the_same_bytes(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    first, second = (pipe(INPUTS[0], dog, "dog", "dog", generator=seeded(5)).images for _ in range(2))
    other = pipe(INPUTS[0], dog, "dog", "dog", generator=seeded(6)).images
    assert len(first) == 1 and first[0].size == (32, 32) and first[0].mode == "RGB"
    assert first[0].tobytes() == second[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "on the forest"},
        {"source": "cat"},
        {"target": "cat"},
        {"negative_prompt": "a dog"},
        {"guidance_scale": 5.0},
        {"guidance_rescale": 0.0},
        {"num_inference_steps": 4},
        {"prompt_reps": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_argument_changes_the_image(generate: Generate, change: dict[str, Any]) -> None:
    assert (generate() - generate(**change)).abs().max() > 1e-3


def test_reference_changes_the_image(generate: Generate, cat: Image.Image) -> None:
    assert (generate() - generate(reference=cat)).abs().max() > 1e-3


def test_resize_mode_changes_the_image(generate: Generate) -> None:
    crop, squash, pad = (generate(resize_mode=fit) for fit in ("crop", "squash", "pad"))
    assert min((crop - squash).abs().max(), (crop - pad).abs().max(), (squash - pad).abs().max()) > 1e-4


def test_prompt_is_repeated_strength_times_reps(generate: Generate) -> None:
    assert torch.equal(generate(prompt_strength=0.5, prompt_reps=4), generate(prompt_reps=2))


def test_defaults_come_from_the_checkpoint(pipe: BlipDiffusionPipeline, generate: Generate) -> None:
    defaults = {
        "prompt_reps": 1,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "guidance_rescale": 0.6,
        "noise_scale": 1.0,
    }
    assert asdict(pipe.model.inference) == defaults
    assert torch.equal(generate(), generate(**defaults, height=32, width=32))


def test_target_category_defaults_to_the_source(generate: Generate) -> None:
    assert torch.equal(generate(target=""), generate())


def test_neg_prompt_is_an_alias_of_negative_prompt(generate: Generate) -> None:
    assert torch.equal(generate(neg_prompt="a cat"), generate(negative_prompt="a cat"))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_negative_prompt_has_no_effect_without_guidance(
    pipe: BlipDiffusionPipeline, generate: Generate, scale: float
) -> None:
    sizes = []

    def note(module: Any, args: tuple[Any, ...], output: Any) -> None:
        sizes.append(len(output[0]))

    handle = pipe.unet.register_forward_hook(note)
    try:
        assert torch.equal(generate(guidance_scale=scale), generate(guidance_scale=1.0, negative_prompt="a cat"))
    finally:
        handle.remove()
    assert sizes == [1] * 6  # half the work of guidance


def test_negative_prompt_changes_the_direction_of_guidance(generate: Generate) -> None:
    """If the negative prompt equals the prompt, only the subject tokens contribute to guidance."""
    plain, pulled = generate(guidance_rescale=0.0), generate(guidance_rescale=0.0, negative_prompt="a dog on the beach")
    unguided = generate(guidance_scale=1.0)
    assert (pulled - unguided).abs().mean() < (plain - unguided).abs().mean()


def test_single_values_are_repeated_for_all_prompts(generate: Generate, dog: Image.Image, cat: Image.Image) -> None:
    prompts = ["on the beach", "at the forest"]
    together = generate(prompts, generator=seeded(1, 2))
    twice = ["dog", "dog"]
    spelled = generate(prompts, [dog, dog], twice, twice, negative_prompt=["", ""], generator=seeded(1, 2))
    assert together.shape == (2, 3, 32, 32) and torch.equal(together, spelled)
    references = generate(reference=[dog, cat], generator=seeded(1, 1))
    assert close(references[:1], generate(generator=seeded(1)))
    assert close(references[1:], generate(reference=cat, generator=seeded(1)))
    assert close(
        generate(target=["dog", "cat"], generator=seeded(1, 1))[1:], generate(target="cat", generator=seeded(1))
    )


def test_image_does_not_depend_on_its_batch(generate: Generate, dog: Image.Image, cat: Image.Image) -> None:
    together = generate(
        ["on the beach", "at the forest", "on the beach"],
        [dog, cat, cat],
        ["dog", "cat", "dog dog dog"],
        "dog",
        negative_prompt=["", "a cat", ""],
        generator=seeded(1, 2, 3),
    )
    alone = generate("at the forest", cat, "cat", negative_prompt="a cat", generator=seeded(2))
    assert close(together[1:2], alone)


def test_num_images_per_prompt_uses_one_generator_per_image(generate: Generate) -> None:
    four = generate(["on the beach", "at the forest"], num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
    assert close(four[1:2], generate(generator=seeded(2)))
    assert close(four[2:3], generate("at the forest", generator=seeded(3)))


def test_one_generator_is_shared_by_all_images(generate: Generate) -> None:
    two = generate(num_images_per_prompt=2, generator=torch.Generator().manual_seed(1))
    assert close(two[:1], generate(generator=seeded(1)))
    assert (two[0] - two[1]).abs().max() > 1e-3


def test_global_generator_is_used_by_default(generate: Generate) -> None:
    torch.manual_seed(3)
    first = generate(generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, generate(generator=None))


def test_height_and_width_set_the_image_size(generate: Generate) -> None:
    assert generate(height=48, width=16).shape == (1, 3, 48, 16)


def test_output_types(generate: Generate, pipe: BlipDiffusionPipeline) -> None:
    pixels, array, latents, images = (generate(output_type=kind) for kind in ("pt", "np", "latent", "pil"))
    assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1
    assert isinstance(array, np.ndarray) and np.array_equal(array, pixels.permute(0, 2, 3, 1).numpy())
    assert latents.shape == (1, 4, 4, 4)
    torch.testing.assert_close(pipe.model.latents.decode(latents), pixels)
    assert np.abs(np.asarray(images[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6


def test_return_dict(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    prediction = pipe(INPUTS[0], dog, "dog", generator=seeded(0), output_type="pt", return_dict=False)
    assert isinstance(prediction, tuple) and len(prediction) == 1 and prediction[0].shape == (1, 3, 32, 32)


def test_callback_runs_at_every_step_and_can_change_latents(pipe: BlipDiffusionPipeline, generate: Generate) -> None:
    steps = []

    def note(of: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert of is pipe and tensors["latents"].shape == (1, 4, 4, 4)
        steps.append((index, int(timestep)))
        return {}

    def clear(of: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert torch.equal(generate(callback_on_step_end=note), generate())
    assert [index for index, _ in steps] == [0, 1, 2] and steps[0][1] == 999
    assert generate(callback_on_step_end=clear, output_type="latent").abs().max() == 0


def test_latents_replace_the_initial_noise(generate: Generate) -> None:
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generate(latents=noise, generator=None), generate())


def test_noise_scale_scales_the_initial_noise(generate: Generate) -> None:
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generate(noise_scale=0.5), generate(latents=0.5 * noise, generator=None))
    assert torch.equal(
        generate(noise_scale=0.5, latents=noise, generator=None), generate()
    )  # given latents are left alone


def test_generation_changes_no_weights_and_no_global_state(pipe: BlipDiffusionPipeline, generate: Generate) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    state = torch.get_rng_state()
    generate()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.model.state_dict().items())
    assert not any(module.training for module in pipe.model.children())


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own sigmas, with numpy 2
@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_other_schedulers_generate_images(tiny_folder: Path, dog: Image.Image, name: str) -> None:
    import diffusers

    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe.scheduler = getattr(diffusers, name)(**levels, prediction_type="v_prediction")
    images = pipe(*INPUTS[:1], dog, *INPUTS[1:], num_inference_steps=4, generator=seeded(0), output_type="pt").images
    assert images.isfinite().all() and images.std() > 0.01


def test_from_model_generates_the_same_image(model: BlipDiffusion, dog: Image.Image, generate: Generate) -> None:
    pipe = BlipDiffusionPipeline.from_model(model)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(pipe(INPUTS[0], dog, "dog", "dog", generator=seeded(0), output_type="pt").images, generate())
