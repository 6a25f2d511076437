"""Editing: what is outside the mask stays, nothing stays on the U-Net, and bad input is one sentence."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from diffusers.models.attention_processor import Attention
from PIL import Image, ImageDraw
from torch import Tensor

from blip_diffusion import references
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint
from blip_diffusion.errors import InputError
from blip_diffusion.images import to_tensor
from blip_diffusion.modules import attention_control
from blip_diffusion.modules.widened_unet import widened
from blip_diffusion.pipelines.attention_alignment import AttentionControl, Sentence, align
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset

SIZE = 32


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    image = Image.effect_noise((SIZE, SIZE), 80).convert("RGB")
    ImageDraw.Draw(image).ellipse((8, 8, 20, 24), fill="brown")
    return image


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    image = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(image).rectangle((8, 8, 19, 23), fill=255)
    return image


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outside(mask: Image.Image) -> Tensor:
    return to_tensor([mask.convert("RGB")]) < 0.5


def processors(unet: Any) -> dict[str, Any]:
    return {name: part.processor for name, part in unet.named_modules() if isinstance(part, Attention)}


@pytest.mark.parametrize("inversion", ["direct", "ddim", "ddpm", "none"])
def test_pixels_outside_the_mask_stay(
    pipe: BlipDiffusionPipeline, photo: Image.Image, mask: Image.Image, dog: Image.Image, inversion: Any
) -> None:
    options = {"mask": mask, "inversion": inversion, "generator": rng(), "num_images_per_prompt": 2}
    out = pipe.edit(photo, "cat", "dog", dog, prompt="on the beach", **options)
    assert len(out.images) == 2 and out.mask.size == photo.size
    before, after = to_tensor([photo]), to_tensor(out.images)
    kept = outside(mask).expand_as(after)
    assert torch.equal(after[kept], before.expand_as(after)[kept])
    assert (after - before).abs().amax() > 0.05


def test_the_same_seed_edits_the_same(pipe: BlipDiffusionPipeline, photo: Image.Image, dog: Image.Image) -> None:
    edits = [
        pipe.edit(photo, "cat", "dog", dog, inversion="ddpm", generator=rng(seed), output_type="pt").images
        for seed in (0, 0, 1)
    ]
    assert torch.equal(edits[0], edits[1]) and not torch.equal(edits[0], edits[2])


def test_an_empty_edit_keeps_the_photo(pipe: BlipDiffusionPipeline, photo: Image.Image) -> None:
    """Inverted and sampled under the same words without guidance, edit-friendly DDPM draws the photo's latents."""
    options = {"mask": "none", "guidance_scale": 1.0, "output_type": "latent", "describe_source": False}
    out = pipe.edit(photo, "dog", "dog", prompt="on the beach", inversion="ddpm", generator=rng(), **options)
    clean = pipe.model.latents.encode(to_tensor([photo]))
    torch.testing.assert_close(out.images, clean, atol=1e-4, rtol=1e-4)


def test_a_tuned_subject_comes_with_its_own_word(fresh_pipe: BlipDiffusionPipeline, photo: Image.Image) -> None:
    tokens = torch.randn(1, 4, 32, generator=rng())
    fresh_pipe.load_subject(Subject("tom", "dog", tokens, fingerprint(fresh_pipe.unet, fresh_pipe.text_encoder)))
    options: dict[str, Any] = {"mask": "none", "output_type": "pt", "generator": rng()}
    found = fresh_pipe.edit(photo, "cat", **options).images
    options["generator"] = rng()
    assert torch.equal(found, fresh_pipe.edit(photo, "cat", "dog", subject_embeds=tokens, **options).images)


def test_another_engine_edits_alike(fresh_pipe: BlipDiffusionPipeline, photo: Image.Image, dog: Image.Image) -> None:
    pytest.importorskip("openvino")
    options: dict[str, Any] = {"prompt": "on the beach", "mask": "none", "output_type": "pt"}
    plain = fresh_pipe.edit(photo, "cat", "dog", dog, generator=rng(), **options).images
    fresh_pipe.set_preset(Preset(engine="openvino"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = fresh_pipe.edit(photo, "cat", "dog", dog, generator=rng(), **options).images
    torch.testing.assert_close(plain, other, atol=0.02, rtol=0)
    with pytest.raises(InputError, match="engine torch"):
        fresh_pipe.edit(photo, "cat", "dog", dog, **options, attention=AttentionControl())


def test_attention_control_leaves_nothing_behind(
    pipe: BlipDiffusionPipeline, photo: Image.Image, dog: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = processors(pipe.unet)
    control = AttentionControl(cross_attention=1.0, self_attention=1.0, shape="keep", weights={"beach": 2.0})
    options: dict[str, Any] = {"prompt": "on the beach", "mask": "none", "output_type": "pt"}
    plain = pipe.edit(photo, "cat", "dog", dog, **options).images
    held = pipe.edit(photo, "cat", "dog", dog, **options, attention=control).images
    assert not torch.allclose(plain, held) and processors(pipe.unet) == before

    def fail(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(attention_control.AttentionController, "maps", fail)
    with pytest.raises(KeyboardInterrupt):
        pipe.edit(photo, "cat", "dog", dog, **options, attention=control)
    assert processors(pipe.unet) == before


def test_control_of_nothing_is_plain(pipe: BlipDiffusionPipeline, photo: Image.Image, dog: Image.Image) -> None:
    options: dict[str, Any] = {"prompt": "on the beach", "mask": "none", "output_type": "pt"}
    plain = pipe.edit(photo, "cat", "dog", dog, **options).images
    none = pipe.edit(photo, "cat", "dog", dog, **options, attention=AttentionControl(cross_attention=0.0)).images
    torch.testing.assert_close(plain, none, atol=1e-4, rtol=1e-4)


def test_positions_count_subject_tokens_and_pieces(pipe: BlipDiffusionPipeline) -> None:
    tokenizer, length = pipe.tokenizer, pipe.model.text_length
    source, target = Sentence("a dog on the beach"), Sentence("a cat on the beach", 4)
    control = AttentionControl(weights={"beach": 3.0})
    found = align(tokenizer, source, target, "cat", control, length)
    old, new = (one.positions(tokenizer, length) for one in (source, target))
    category = len(tokenizer("cat", add_special_tokens=False).input_ids)
    first = 2 + 4 + category  # of the words after [BOS], "a", subject tokens and category
    tail = len(new) - (4 + category + 1)
    assert old[-tail:] == new[-tail:]
    for k in range(tail):
        assert found.mapping[len(old) - tail + 1 + k, first + k] == 1 and found.unmapped[first + k] == 0
    assert found.unmapped[2:first].tolist() == [1.0] * (4 + category)
    assert found.mapping[len(old) + 1, len(new) + 1] == 1 and found.mapping[len(old) + 3, len(new) + 3] == 1
    beach = len(tokenizer("beach", add_special_tokens=False).input_ids)
    assert (found.factor == 3).nonzero().flatten().tolist() == list(range(len(new) + 1 - beach, len(new) + 1))
    kept = align(tokenizer, source, target, "cat", AttentionControl(shape="keep"), length)
    assert kept.unmapped[2:first].tolist() == [0.0] * (4 + category)
    assert torch.allclose(kept.mapping[2 : 2 + len(old) - tail - 1, 2:first].sum(), torch.tensor(1.0))


def test_the_subject_of_the_photo_is_searched_once(
    placed: BlipDiffusionPipeline, photo: Image.Image, dog: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Image.Image] = []
    predict = references._predicted_box

    def count(model: Any, image: Image.Image) -> Any:
        searched.append(image)
        return predict(model, image)

    monkeypatch.setattr(references, "_predicted_box", count)
    placed.edit(photo, "cat", "dog", dog, num_inference_steps=2, resize_mode="subject", generator=rng())
    assert len(searched) == 1 and searched[0].size == photo.size


@pytest.mark.parametrize("resamplings", [1, 3])
def test_inpainting_blends(
    pipe: BlipDiffusionPipeline, photo: Image.Image, mask: Image.Image, dog: Image.Image, resamplings: int
) -> None:
    out = pipe.inpaint(photo, mask, dog, "dog", prompt="on the beach", resamplings=resamplings, generator=rng())
    kept = outside(mask)
    assert torch.equal(to_tensor(out.images)[kept], to_tensor([photo])[kept])
    assert (to_tensor(out.images) - to_tensor([photo])).abs().amax() > 0.05


def test_a_widened_unet_reads_the_mask(
    fresh_pipe: BlipDiffusionPipeline, photo: Image.Image, mask: Image.Image, dog: Image.Image, tmp_path: Path
) -> None:
    plain = fresh_pipe("on the beach", dog, "dog", "dog", generator=rng(), output_type="pt").images
    fresh_pipe.unet = widened(fresh_pipe.unet, 2 * fresh_pipe.model.latents.channels + 1)
    assert fresh_pipe.model.reads_mask
    assert torch.equal(fresh_pipe("on the beach", dog, "dog", "dog", generator=rng(), output_type="pt").images, plain)
    with torch.no_grad():
        fresh_pipe.unet.conv_in.weight.normal_(std=0.1)
    fresh_pipe.save_pretrained(tmp_path / "wide")
    again = BlipDiffusionPipeline.from_pretrained(tmp_path / "wide")
    again.set_progress_bar_config(disable=True)
    first, other = (
        again.inpaint(one, mask, dog, "dog", generator=rng(), output_type="pt").images
        for one in (photo, Image.eval(photo, lambda value: 255 - value))
    )
    inside = ~outside(mask)
    assert not torch.allclose(first[inside], other[inside])
    assert again.edit(photo, "cat", "dog", dog).images
    with pytest.raises(InputError, match="strength"):
        again.inpaint(photo, mask, dog, "dog", strength=0.5)


def test_inpainting_unets_get_what_diffusers_gives_them(
    fresh_pipe: BlipDiffusionPipeline, photo: Image.Image, mask: Image.Image, dog: Image.Image
) -> None:
    """The same latents from the same noise as `StableDiffusionInpaintPipeline`, with a U-Net of nine channels."""
    fresh_pipe.unet = widened(fresh_pipe.unet, 9)
    with torch.no_grad():
        fresh_pipe.unet.conv_in.weight.normal_(std=0.2)
        fresh_pipe.vae.quant_conv.weight[4:] = (
            0  # diffusers samples the masked image's latents: without spread, the mean
        )
        fresh_pipe.vae.quant_conv.bias[4:] = -30
    states: dict[str, Tensor] = {}

    def keep(_: Any, __: int, ___: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states.update(tensors)
        return {}

    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    fresh_pipe("on the beach", dog, "dog", "dog", callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["prompt_embeds"], generator=rng(), **options)  # fmt: skip
    empty, text = states["prompt_embeds"].chunk(2)
    theirs = StableDiffusionInpaintPipeline(
        fresh_pipe.vae,
        fresh_pipe.text_encoder,
        fresh_pipe.tokenizer,
        fresh_pipe.unet,
        DDIMScheduler.from_config(fresh_pipe.scheduler.config, steps_offset=1),  # which trailing timesteps don't read
        None,
        None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 4, 4, generator=rng())
    given = {"image": photo, "mask_image": mask, "height": SIZE, "width": SIZE, "strength": 1.0, "latents": noise}
    expected = theirs(prompt_embeds=text, negative_prompt_embeds=empty, output_type="latent", **given, **options).images
    found = fresh_pipe.inpaint(
        photo, mask, dog, "dog", prompt="on the beach", guidance_rescale=0.0, generator=rng(), output_type="latent",
        **options,
    ).images  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_inpainting_checkpoint_loads_as_the_unet(
    fresh_pipe: BlipDiffusionPipeline, tiny_folder: Path, tmp_path: Path
) -> None:
    wide = widened(fresh_pipe.unet, 9)
    wide.save_pretrained(tmp_path / "unet")
    (file,) = (tmp_path / "unet").glob("*.safetensors")
    for source in (tmp_path / "unet", file):
        pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder, unet=source)
        assert pipe.model.reads_mask and torch.equal(pipe.unet.conv_in.weight, wide.conv_in.weight)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mask": Image.new("L", (16, 16), 255)}, r"\(16, 16\)"),
        ({"mask": Image.new("L", (SIZE, SIZE))}, "empty"),
        ({"mask": "subject"}, "no subject finder"),
        ({"mask": "auto"}, "auto"),
        ({"inversion": "null-text"}, "null-text"),
        ({"strength": 0}, "strength"),
        ({"attention": AttentionControl(weights={"sofa": 2.0})}, "sofa"),
        ({"prompt": ["a", "b"]}, "one prompt"),
        ({"width": 33}, "33"),
        ({"latents": None}, "latents"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_input_is_one_sentence(
    pipe: BlipDiffusionPipeline, photo: Image.Image, dog: Image.Image, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        pipe.edit(photo, "cat", "dog", dog, **{"prompt": "on the beach", **change})


@pytest.mark.parametrize(
    ("picture", "named"),
    [
        (Image.new("RGB", (1, 1)), "1 x 1 pixels"),
        (Image.new("RGB", (SIZE, SIZE), "red"), "The photo has only one colour"),
        ("photo.png", "image is a str"),
    ],
    ids=["one pixel", "one colour", "path"],
)
def test_a_photo_without_a_subject_is_one_sentence(
    pipe: BlipDiffusionPipeline, dog: Image.Image, picture: Any, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        pipe.edit(picture, "cat", "dog", dog)


def test_a_white_mask_is_the_whole_photo(
    pipe: BlipDiffusionPipeline, photo: Image.Image, mask: Image.Image, dog: Image.Image
) -> None:
    whole = Image.new("L", photo.size, 255)
    edited, painted = pipe.edit(photo, "cat", "dog", dog, mask=whole), pipe.inpaint(photo, whole, dog, "dog")
    assert edited.mask.getextrema() == painted.mask.getextrema() == (255, 255)
    for bad, named in ((Image.new("L", photo.size), "empty"), (mask.resize((16, 16)), r"\(16, 16\)")):
        with pytest.raises(InputError, match=named):
            pipe.inpaint(photo, bad, dog, "dog")


@pytest.mark.parametrize("kind", ["edit", "inpaint"])
def test_step_callback_is_called_after_each_step(
    pipe: BlipDiffusionPipeline, photo: Image.Image, mask: Image.Image, dog: Image.Image, kind: str
) -> None:
    steps: list[int] = []

    def keep(_: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        assert timestep.ndim == 0 and tensors["latents"].shape[0] == 1
        steps.append(index)

    options = {"num_inference_steps": 4, "generator": rng(), "callback_on_step_end": keep}
    if kind == "edit":
        pipe.edit(photo, "cat", "dog", dog, mask=mask, **options)
    else:
        pipe.inpaint(photo, mask, dog, "dog", resamplings=1, **options)
    assert steps == list(range(pipe.num_timesteps))
    with pytest.raises(InputError, match="callback_on_step_end"):
        pipe.inpaint(photo, mask, dog, "dog", callback_on_step_end=1)
