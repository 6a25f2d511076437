"""Several subjects in one image, several references of one, and mixtures of subjects."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image, ImageDraw
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.framing import Box, frames_of
from blip_diffusion.modules.placed_unet import token_codes
from blip_diffusion.nn_utils import iter_modules
from blip_diffusion.pipelines.composition import SubjectRegion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset
from blip_diffusion.prompts import insert_positions

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
DEEP = Preset(deepcache_interval=2)


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    image = Image.new("RGB", (48, 48), "white")
    ImageDraw.Draw(image).rectangle((10, 8, 40, 44), fill="black")
    return image


def mask(box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("L", (64, 64))
    ImageDraw.Draw(image).rectangle(box, fill="white")
    return image


def draw(pipe: BlipDiffusionPipeline, *subjects: SubjectRegion, prompt: str = "on the beach", **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    arguments = {"subjects": list(subjects), "generator": generator, "output_type": "latent", **more}
    latents: Tensor = pipe(prompt, **arguments).images
    return latents


@pytest.mark.parametrize("mode", ["attention", "multidiffusion"])
def test_each_subject_acts_most_in_its_own_region(
    pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image, mode: Any
) -> None:
    def of(right: Image.Image) -> Tensor:
        parts = SubjectRegion(dog, "dog", LEFT), SubjectRegion(right, "dog", RIGHT)
        return draw(pipe, *parts, region_mode=mode, num_inference_steps=1)

    moved = (of(cat) - of(dog)).abs().sum(dim=(0, 1, 2))
    assert moved[2:].sum() > 1.5 * moved[:2].sum()


@pytest.mark.parametrize("mode", ["attention", "multidiffusion"])
def test_one_subject_of_the_whole_image_is_the_plain_call(
    pipe: BlipDiffusionPipeline, dog: Image.Image, mode: Any
) -> None:
    one = SubjectRegion(dog, "dog", (0, 0, 1, 1))
    plain = draw(pipe, subjects=None, reference_image=dog, source_subject_category="dog")
    torch.testing.assert_close(draw(pipe, one, region_mode=mode), plain, atol=1e-4, rtol=1e-4)


def test_a_mask_is_a_box_where_it_is_one(pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image) -> None:
    boxes = draw(pipe, SubjectRegion(dog, "dog", LEFT), SubjectRegion(cat, "cat", RIGHT))
    masks = [
        SubjectRegion(dog, "dog", mask=mask((0, 0, 31, 63))),
        SubjectRegion(cat, "cat", mask=mask((32, 0, 63, 63))),
    ]
    torch.testing.assert_close(draw(pipe, *masks), boxes)


def test_without_regions_all_stand_in_one_sentence(
    pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image
) -> None:
    parts = SubjectRegion(dog, "dog"), SubjectRegion(cat, "cat")
    together = draw(pipe, *parts)
    assert not torch.allclose(together, draw(pipe, *parts[::-1]), atol=1e-3)
    tokens = [pipe.encode_subject(image, word) for image, word in ((dog, "dog"), (cat, "cat"))]
    states = pipe.model.several_subjects_states(["a dog and a cat on the beach"], ["dog", "cat"], tokens, [None, None])
    embeds = draw(pipe, prompt=None, subjects=None, prompt_embeds=states)  # type: ignore[arg-type]
    assert torch.equal(together, embeds)


@pytest.mark.parametrize(
    "more",
    [{"num_images_per_prompt": 2}, {"guidance_scale": 1.0}, {"prompt": ["on grass", "in the snow"]}, {"width": 48}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["attention", "multidiffusion"])
def test_batches_sizes_and_no_guidance(
    pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image, mode: Any, more: dict[str, Any]
) -> None:
    parts = SubjectRegion(dog, "dog", LEFT), SubjectRegion(cat, "cat", RIGHT)
    latents = draw(pipe, *parts, region_mode=mode, subject_scale=0.5, **more)
    assert latents.isfinite().all()
    assert len(latents) == 2 - (("guidance_scale" in more) or ("width" in more))


def test_cached_features_and_split_guidance(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image
) -> None:
    parts = SubjectRegion(dog, "dog", LEFT), SubjectRegion(cat, "cat", RIGHT)
    plain = draw(fresh_pipe, *parts)
    fresh_pipe.set_preset(Preset(split_cfg_batch=True))
    torch.testing.assert_close(draw(fresh_pipe, *parts), plain, atol=1e-4, rtol=1e-4)
    fresh_pipe.set_preset(DEEP)
    assert not torch.allclose(draw(fresh_pipe, *parts), plain) and draw(fresh_pipe, *parts).isfinite().all()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in iter_modules(fresh_pipe.unet))


@pytest.mark.parametrize("mode", ["attention", "multidiffusion"])
def test_a_controlnet_that_adds_nothing_changes_nothing(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image, mode: Any
) -> None:
    parts = SubjectRegion(dog, "dog", LEFT), SubjectRegion(cat, "cat", RIGHT)
    options = {"region_mode": mode, "subject_scale": 0.5, "num_inference_steps": 2}
    net = ControlNetModel.from_unet(fresh_pipe.unet, conditioning_embedding_out_channels=(8, 16, 16, 16))
    controlled = draw(fresh_pipe, *parts, **options, controlnet=net, image=dog)
    torch.testing.assert_close(controlled, draw(fresh_pipe, *parts, **options), atol=1e-4, rtol=1e-4)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in iter_modules(net))


def test_other_engines_are_refused(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    fresh_pipe.set_preset(Preset(engine="openvino"))
    with pytest.raises(InputError, match="region_mode attention can't run on the engine openvino"):
        draw(fresh_pipe, SubjectRegion(dog, "dog", LEFT), SubjectRegion(dog, "dog", RIGHT))
    with pytest.raises(InputError, match="subject_scale can't run on the engine openvino"):
        fresh_pipe("x", dog, "dog", subject_scale=0.5)


@pytest.mark.parametrize(
    ("regions", "more", "sentence"),
    [
        ([LEFT, None], {}, "1 boxes or masks for 2 subjects"),
        ([LEFT, (1.5, 0, 2, 1)], {}, "The box is"),
        ([LEFT, (0.5, 0, 1.5, 1)], {}, "boxes of several subjects lie within the image"),
        ([LEFT, mask((0, 0, 63, 63)).crop((0, 0, 64, 20))], {}, "in the proportions of the image"),
        ([LEFT, Image.new("L", (64, 64))], {}, "The mask of a subject is empty"),
        ([None] * 8, {}, "8 subjects take 32 positions"),
        ([LEFT, RIGHT], {"region_mode": "x"}, "no region_mode 'x'"),
        ([LEFT, RIGHT], {"box": LEFT}, "box and subjects exclude each other"),
        ([], {}, "give at least one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_regions_that_do_not_fit(
    pipe: BlipDiffusionPipeline, dog: Image.Image, regions: list[Any], more: dict[str, Any], sentence: str
) -> None:
    parts = [
        SubjectRegion(dog, "dog", mask=one) if isinstance(one, Image.Image) else SubjectRegion(dog, "dog", one)
        for one in regions
    ]
    with pytest.raises(InputError, match=sentence):
        draw(pipe, *parts, **more)


# ------------------------------------------------------------------------------------------------------ placed tokens


@torch.no_grad()
def test_one_subject_of_several_is_encoded_as_one(placed: BlipDiffusionPipeline) -> None:
    model, tokens = placed.model, torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    alone = model.text_states(["a dog on the beach"], tokens)
    assert torch.equal(model.several_subjects_states(["a dog on the beach"], ["dog"], [tokens], [None]), alone)


@torch.no_grad()
def test_each_block_ends_in_its_own_places(placed: BlipDiffusionPipeline) -> None:
    model, tokens = placed.model, torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    frames = [frames_of([[Box(*box)]]) for box in (LEFT, RIGHT)]
    states = model.several_subjects_states(["a dog and a cat"], ["dog", "cat"], [tokens, tokens], frames)
    codes = states[..., -model.place_width :]
    second = insert_positions(placed.tokenizer, ["dog", "cat"])[1] + 4
    for start, frame in zip((2, second), frames, strict=True):
        assert torch.equal(codes[:, start : start + 4], token_codes(frame, 4, model.place_width))
    assert int(codes.abs().sum(dim=-1).gt(0).sum()) == 8


@pytest.mark.parametrize("mode", ["attention", "multidiffusion"])
def test_tokens_are_placed_in_their_boxes(placed: BlipDiffusionPipeline, dog: Image.Image, mode: Any) -> None:
    seen: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["encoder_hidden_states"])

    handle = placed.unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        parts = SubjectRegion(dog, "dog", LEFT), SubjectRegion(dog, "dog", RIGHT)
        draw(placed, *parts, region_mode=mode, guidance_scale=1.0, num_inference_steps=1)
    finally:
        handle.remove()
    sentences = seen[0] if mode == "multidiffusion" else torch.cat(seen[0].chunk(2, dim=1))
    alone = [
        placed.model.text_states(["a dog on the beach"], placed.encode_subject(dog, "dog"), frames_of([[Box(*box)]]))
        for box in (LEFT, RIGHT)
    ]
    assert torch.equal(sentences, torch.cat(alone))


# ---------------------------------------------------------------------------------- references, scales and mixtures


def test_a_list_within_the_list_is_one_subject(pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image) -> None:
    mean = pipe.encode_subject([dog, cat], "dog")
    options = {"subjects": None, "source_subject_category": "dog"}
    assert torch.equal(draw(pipe, **options, reference_image=[[dog, cat]]), draw(pipe, **options, subject_embeds=mean))
    with pytest.raises(InputError, match="no image of the subject"):
        draw(pipe, **options, reference_image=[[]])


def test_the_subject_scale(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    options = {"subjects": None, "reference_image": dog, "source_subject_category": "dog"}
    plain, half = draw(fresh_pipe, **options), draw(fresh_pipe, **options, subject_scale=0.5)
    words = torch.zeros(1, 0, fresh_pipe.text_encoder.config.hidden_size)
    none = draw(fresh_pipe, subjects=None, subject_embeds=words, target_subject_category="dog")
    assert torch.equal(draw(fresh_pipe, **options, subject_scale=1), plain)
    torch.testing.assert_close(draw(fresh_pipe, **options, subject_scale=0), none)
    assert not torch.allclose(half, plain, atol=1e-3) and not torch.allclose(half, none, atol=1e-3)
    fresh_pipe.set_subject_scale({"down": 0.5, "mid": 0.5, "up": [0.5, 0.5]})
    assert torch.equal(draw(fresh_pipe, **options), half)


@pytest.mark.parametrize("scale", [-1, 3, "1", {"left": 1}, {"down": [1, 1, 1]}], ids=str)
def test_scales_that_do_not_fit(pipe: BlipDiffusionPipeline, scale: Any) -> None:
    with pytest.raises(InputError, match="subject_scale"):
        pipe.set_subject_scale(scale)


def test_mixtures(pipe: BlipDiffusionPipeline, dog: Image.Image, cat: Image.Image) -> None:
    a, b = pipe.encode_subject(dog, "dog"), pipe.encode_subject(cat, "cat")
    torch.testing.assert_close(pipe.blend([a, b], [1, 3]), 0.25 * a + 0.75 * b)
    torch.testing.assert_close(pipe.blend([a, b]), (a + b) / 2)
    for weights, end in (([1, 0], a), ([0, 1], b)):
        torch.testing.assert_close(pipe.blend([a, b], weights, mode="spherical"), end)
    middle = pipe.blend([a, b], mode="spherical")
    torch.testing.assert_close(middle.norm(dim=-1), (a.norm(dim=-1) + b.norm(dim=-1)) / 2)
    similar = [torch.cosine_similarity(middle, end, dim=-1) for end in (a, b)]
    np.testing.assert_allclose(similar[0], similar[1], atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "mode", "sentence"),
    [([1], "linear", "1 weights for 2"), ([1, -1], "linear", "add up to 0"), ([2, -1], "spherical", "weights from 0"),
     ([1, 1], "cubic", "no blend mode 'cubic'")],
)  # fmt: skip
def test_mixtures_that_cannot_be(
    pipe: BlipDiffusionPipeline, dog: Image.Image, weights: list[float], mode: Any, sentence: str
) -> None:
    tokens = pipe.encode_subject(dog, "dog")
    with pytest.raises(InputError, match=sentence):
        pipe.blend([tokens, tokens], weights, mode)
