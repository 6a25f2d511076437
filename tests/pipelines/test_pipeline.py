from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

ASKED = ("on the beach", "dog", "dog")
Draw = Callable[..., Any]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def draw(pipe: BlipDiffusionPipeline, dog: Image.Image) -> Draw:
    """The images of a question as a tensor, from seed 0 unless it says otherwise."""

    def ask(prompt: Any = ASKED[0], reference: Any = dog, source: Any = "dog", target: Any = "dog", **more: Any) -> Any:
        more = {"output_type": "pt", "generator": seeded(0), **more}
        return pipe(prompt, reference, source, target, **more).images

    return ask


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.effect_noise((40, 40), 90).convert("RGB")


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums, which the size of a batch changes."""
    return a.shape == b.shape and (a - b).abs().max().item() < 2e-5


# ----------------------------------------------------------------------------------------------------- what is drawn


def test_a_seed_gives_the_same_bytes(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    first, second = (pipe(ASKED[0], dog, "dog", "dog", generator=seeded(5)).images for _ in range(2))
    other = pipe(ASKED[0], dog, "dog", "dog", generator=seeded(6)).images
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
def test_everything_that_is_asked_for_shows(draw: Draw, change: dict[str, Any]) -> None:
    assert (draw() - draw(**change)).abs().max() > 1e-3


def test_the_reference_shows(draw: Draw, cat: Image.Image) -> None:
    assert (draw() - draw(reference=cat)).abs().max() > 1e-3


def test_the_fit_of_the_reference_shows(draw: Draw) -> None:
    crop, squash, pad = (draw(resize_mode=fit) for fit in ("crop", "squash", "pad"))
    assert min((crop - squash).abs().max(), (crop - pad).abs().max(), (squash - pad).abs().max()) > 1e-4


def test_strength_times_repetitions(draw: Draw) -> None:
    assert torch.equal(draw(prompt_strength=0.5, prompt_reps=4), draw(prompt_reps=2))


def test_defaults_are_the_checkpoints(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    own = {
        "prompt_reps": 1,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "guidance_rescale": 0.6,
        "noise_scale": 1.0,
    }
    assert asdict(pipe.model.inference) == own
    assert torch.equal(draw(), draw(**own, height=32, width=32))


def test_a_missing_target_category_is_the_source(draw: Draw) -> None:
    assert torch.equal(draw(target=""), draw())


def test_the_old_name_of_negative_prompt(draw: Draw) -> None:
    assert torch.equal(draw(neg_prompt="a cat"), draw(negative_prompt="a cat"))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_without_guidance_the_negative_prompt_is_not_read(
    pipe: BlipDiffusionPipeline, draw: Draw, scale: float
) -> None:
    sizes = []

    def note(module: Any, args: tuple[Any, ...], output: Any) -> None:
        sizes.append(len(output[0]))

    handle = pipe.unet.register_forward_hook(note)
    try:
        assert torch.equal(draw(guidance_scale=scale), draw(guidance_scale=1.0, negative_prompt="a cat"))
    finally:
        handle.remove()
    assert sizes == [1] * 6  # half the work of guidance


def test_guidance_pulls_away_from_the_negative_prompt(draw: Draw) -> None:
    """Where the negative prompt is the prompt, what is left of guidance is the subject's own share."""
    plain, pulled = draw(guidance_rescale=0.0), draw(guidance_rescale=0.0, negative_prompt="a dog on the beach")
    unguided = draw(guidance_scale=1.0)
    assert (pulled - unguided).abs().mean() < (plain - unguided).abs().mean()


# --------------------------------------------------------------------------------------------------------- many of it


def test_one_of_a_thing_serves_all(draw: Draw, dog: Image.Image, cat: Image.Image) -> None:
    prompts = ["on the beach", "at the forest"]
    together = draw(prompts, generator=seeded(1, 2))
    twice = ["dog", "dog"]
    spelled = draw(prompts, [dog, dog], twice, twice, negative_prompt=["", ""], generator=seeded(1, 2))
    assert together.shape == (2, 3, 32, 32) and torch.equal(together, spelled)
    references = draw(reference=[dog, cat], generator=seeded(1, 1))
    assert close(references[:1], draw(generator=seeded(1)))
    assert close(references[1:], draw(reference=cat, generator=seeded(1)))
    assert close(draw(target=["dog", "cat"], generator=seeded(1, 1))[1:], draw(target="cat", generator=seeded(1)))


def test_an_image_does_not_change_with_its_neighbours(draw: Draw, dog: Image.Image, cat: Image.Image) -> None:
    together = draw(
        ["on the beach", "at the forest", "on the beach"],
        [dog, cat, cat],
        ["dog", "cat", "dog dog dog"],
        "dog",
        negative_prompt=["", "a cat", ""],
        generator=seeded(1, 2, 3),
    )
    alone = draw("at the forest", cat, "cat", negative_prompt="a cat", generator=seeded(2))
    assert close(together[1:2], alone)


def test_images_per_prompt(draw: Draw) -> None:
    four = draw(["on the beach", "at the forest"], num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
    assert close(four[1:2], draw(generator=seeded(2)))
    assert close(four[2:3], draw("at the forest", generator=seeded(3)))


def test_one_generator_goes_on_from_image_to_image(draw: Draw) -> None:
    two = draw(num_images_per_prompt=2, generator=torch.Generator().manual_seed(1))
    assert close(two[:1], draw(generator=seeded(1)))
    assert (two[0] - two[1]).abs().max() > 1e-3


def test_without_a_generator_the_global_one_counts(draw: Draw) -> None:
    torch.manual_seed(3)
    first = draw(generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, draw(generator=None))


def test_sizes(draw: Draw, pipe: BlipDiffusionPipeline) -> None:
    assert draw(height=48, width=16).shape == (1, 3, 48, 16)


# ------------------------------------------------------------------------------------------------------------ subjects


def test_subject_embeds_stand_in_for_references(draw: Draw, pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    subject = pipe.encode_subject(dog, "dog")
    assert subject.shape == (1, 4, 32)
    assert torch.equal(draw(reference=None, source="", subject_embeds=subject), draw())


def test_several_images_of_a_subject_give_their_mean(
    pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image
) -> None:
    both = pipe.encode_subject([dog, cat], "dog")
    singles = torch.cat([pipe.encode_subject(dog, "dog"), pipe.encode_subject(cat, "dog")])
    torch.testing.assert_close(both, singles.mean(dim=0, keepdim=True))


def test_equal_pairs_are_encoded_once(pipe: BlipDiffusionPipeline, draw: Draw, dog: Image.Image) -> None:
    sizes = []

    def note(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        sizes.append(len(output))

    handle = pipe.qformer.register_forward_hook(note)
    try:
        unknown = dog.rotate(180)
        draw(["on the beach"] * 3, [unknown] * 3, ["dog", "cat", "dog"], generator=seeded(1, 1, 1))
    finally:
        handle.remove()
    assert sizes == [2]


# ------------------------------------------------------------------------------------------------------- what comes out


def test_output_types(draw: Draw, pipe: BlipDiffusionPipeline) -> None:
    pixels, array, latents, images = (draw(output_type=kind) for kind in ("pt", "np", "latent", "pil"))
    assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1
    assert isinstance(array, np.ndarray) and np.array_equal(array, pixels.permute(0, 2, 3, 1).numpy())
    assert latents.shape == (1, 4, 4, 4)
    torch.testing.assert_close(pipe.model.latents.decode(latents), pixels)
    assert np.abs(np.asarray(images[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6


def test_return_dict(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    answer = pipe(ASKED[0], dog, "dog", generator=seeded(0), output_type="pt", return_dict=False)
    assert isinstance(answer, tuple) and len(answer) == 1 and answer[0].shape == (1, 3, 32, 32)


def test_the_callback_sees_and_changes_every_step(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    steps = []

    def note(of: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert of is pipe and tensors["latents"].shape == (1, 4, 4, 4)
        steps.append((index, int(timestep)))
        return {}

    def clear(of: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert torch.equal(draw(callback_on_step_end=note), draw())
    assert [index for index, _ in steps] == [0, 1, 2] and steps[0][1] == 999
    assert draw(callback_on_step_end=clear, output_type="latent").abs().max() == 0


def test_latents_begin_the_image(draw: Draw) -> None:
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(latents=noise, generator=None), draw())


def test_less_noise_to_begin_with(draw: Draw) -> None:
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(noise_scale=0.5), draw(latents=0.5 * noise, generator=None))
    assert torch.equal(draw(noise_scale=0.5, latents=noise, generator=None), draw())  # given latents are left alone


def test_generating_leaves_no_trace(pipe: BlipDiffusionPipeline, draw: Draw) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    state = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.model.state_dict().items())
    assert not any(module.training for module in pipe.model.children())


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"prompt": ["a", "b"], "source": ["dog"] * 3}, r"don't match \(2 of prompt, 3 of source_subject_category\)"),
        ({"prompt": []}, "don't match"),
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
        ({"resize_mode": "stretch"}, "use crop, squash or pad"),
        ({"generator": seeded(1, 2)}, "2 generators for 1 images"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents are \(1, 4, 8, 8\): these images need \(1, 4, 4, 4\)"),
        ({"prompt": ["a", "b"], "latents": torch.zeros(1, 4, 4, 4)}, r"need \(2, 4, 4, 4\)"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_drawing(
    pipe: BlipDiffusionPipeline, draw: Draw, asked: dict[str, Any], sentence: str
) -> None:
    handle = pipe.unet.register_forward_hook(lambda *_: pytest.fail("the U-Net was asked"))
    try:
        with pytest.raises(InputError, match=sentence):
            draw(**asked)
    finally:
        handle.remove()


def test_a_consistency_models_steps_are_of_those_it_was_distilled_from(
    own: BlipDiffusionPipeline, dog: Image.Image
) -> None:
    own.scheduler = LCMScheduler.from_config(own.scheduler.config)
    with pytest.raises(InputError, match="num_inference_steps is 51: use a whole number from 1 to 50"):
        own(ASKED[0], dog, "dog", num_inference_steps=51)


def test_as_many_subject_tokens_as_there_is_room_for(draw: Draw) -> None:
    """The template's "a" and the text's two ends stay."""
    with pytest.warns(UserWarning, match="dropped from its end: 'dog on the beach'"):
        assert draw(reference=None, subject_embeds=torch.ones(1, 29, 32)).isfinite().all()


def test_no_image_has_no_tokens(pipe: BlipDiffusionPipeline) -> None:
    with pytest.raises(InputError, match="no image of the subject"):
        pipe.encode_subject([], "dog")


def test_a_long_prompt_is_quoted_where_it_is_cut(draw: Draw) -> None:
    """Of 32 positions, the subject takes 4: 26 words are read, "a dog" among them."""
    with pytest.warns(UserWarning, match="dropped from its end: 'hat red'$"):
        cut = draw(" ".join(["beach"] * 24 + ["hat", "red"]))
    assert torch.equal(cut, draw(" ".join(["beach"] * 24)))
    with pytest.warns(UserWarning, match="dropped from its end: 'hat'$"):
        draw(negative_prompt=" ".join(["beach"] * 30 + ["hat"]))


# ------------------------------------------------------------------------------------------------------- the ecosystem


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own sigmas, with numpy 2
@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_another_scheduler(tiny_folder: Path, dog: Image.Image, name: str) -> None:
    import diffusers

    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe.scheduler = getattr(diffusers, name)(**levels, prediction_type="v_prediction")
    images = pipe(*ASKED[:1], dog, *ASKED[1:], num_inference_steps=4, generator=seeded(0), output_type="pt").images
    assert images.isfinite().all() and images.std() > 0.01


def test_from_model(model: BlipDiffusion, dog: Image.Image, draw: Draw) -> None:
    pipe = BlipDiffusionPipeline.from_model(model)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(pipe(ASKED[0], dog, "dog", "dog", generator=seeded(0), output_type="pt").images, draw())
