"""Every intermediate tensor, compared with diffusers 0.33.1 and transformers 4.49.0, the last correct versions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.prompts import category_words, prompt_ids, subject_prompt

GOLDEN = Path(__file__).parent / "golden"
ENCODERS, IMAGES = 1e-5, 5e-5
QUESTION = ("swimming underwater", "teapot", "dog")

Golden = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    """Every tensor that `make_golden.py` wrote."""
    with np.load(GOLDEN / "dump.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def pipe() -> BlipDiffusionPipeline:
    pipe = BlipDiffusionPipeline.from_pretrained(GOLDEN / "pipe", qformer_tokenizer=GOLDEN / "tok" / "bert")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def published(pipe: BlipDiffusionPipeline) -> BlipDiffusion:
    return pipe.model


@pytest.fixture(scope="module")
def reference() -> Image.Image:
    """The reference of `make_golden.py`, higher than wide."""
    return Image.fromarray(np.random.RandomState(7).randint(0, 256, (40, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pixels(reference: Image.Image) -> Tensor:
    return images.to_tensor([images.fit_square(reference, 28, "squash")])


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """The noise that `make_golden.py` samples after its two images."""
    rng = np.random.RandomState(7)
    rng.randint(0, 256, (40, 32, 3), dtype=np.uint8)
    rng.randint(0, 256, (32, 32, 3), dtype=np.uint8)
    return torch.from_numpy(rng.randn(1, 4, 16, 16).astype("float32"))


def normalised(published: BlipDiffusion, pixels: Tensor) -> Tensor:
    return images.normalise(pixels, published.reference.mean, published.reference.std)


def assert_close(ours: Tensor, theirs: Tensor, error: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=error, rtol=0)


def test_reference_pixels(golden: Golden, published: BlipDiffusion, pixels: Tensor) -> None:
    assert torch.equal(normalised(published, pixels), golden["pixel_values"])


@torch.no_grad()
def test_image_encoder(golden: Golden, published: BlipDiffusion) -> None:
    features = published.subject_encoder.image_encoder(golden["pixel_values"])
    assert_close(features, golden["vision_last_hidden_state"], ENCODERS)


@torch.no_grad()
def test_subject_tokens(golden: Golden, published: BlipDiffusion, pixels: Tensor) -> None:
    assert_close(published.subject_tokens(pixels, ["teapot"]), golden["query_embeds"], ENCODERS)


@torch.no_grad()
def test_subject_tokens_of_categories_of_unequal_length(golden: Golden, published: BlipDiffusion) -> None:
    words = category_words(published.qformer_tokenizer, ["dog", "teapot x"])
    assert words.attention_mask.sum(dim=1).tolist() == [3, 5]
    pixels = torch.cat([golden["pixel_values"], golden["pixel_values"].flip(-1)])
    assert_close(published.subject_encoder(pixels, words), golden["query_embeds_batch2_padded"], ENCODERS)


def test_prompt_ids(golden: Golden, published: BlipDiffusion) -> None:
    prompt = subject_prompt("swimming underwater", "dog", repetitions=20)
    queries = golden["query_embeds"].shape[1]
    assert torch.equal(prompt_ids(published.tokenizer, [prompt], 77 - queries), golden["prompt_ids"])
    assert torch.equal(prompt_ids(published.tokenizer, [""], 77), golden["uncond_ids"])


@torch.no_grad()
def test_text_states_with_a_subject(golden: Golden, published: BlipDiffusion) -> None:
    prompt = subject_prompt("swimming underwater", "dog", repetitions=20)
    assert_close(published.text_states([prompt], golden["query_embeds"]), golden["ctx_text_embeddings"], ENCODERS)


@torch.no_grad()
def test_text_states_of_the_empty_prompt(golden: Golden, published: BlipDiffusion) -> None:
    assert_close(published.text_states([""]), golden["uncond_text_embeddings"], ENCODERS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("image", {}),
        ("image_g1", {"guidance_scale": 1.0}),
        ("image_neg", {"negative_prompt": "blurry", "prompt_reps": 1}),
        ("image_neg", {"neg_prompt": "blurry", "prompt_reps": 1}),
    ],
)
def test_images(
    golden: Golden, pipe: BlipDiffusionPipeline, reference: Image.Image, latents: Tensor, name: str, options: dict
) -> None:
    generated = generate(pipe, reference, latents=latents, **options)
    assert_close(generated, golden[name], IMAGES)


def test_image_of_a_seed(golden: Golden, pipe: BlipDiffusionPipeline, reference: Image.Image) -> None:
    generated = generate(pipe, reference, generator=torch.Generator().manual_seed(0))
    assert_close(generated, golden["image_seed0"], IMAGES)


def test_every_golden_tensor_is_compared(golden: Golden) -> None:
    source = Path(__file__).read_text()
    assert [name for name in golden if f'"{name}"' not in source] == []


def generate(pipe: BlipDiffusionPipeline, reference: Image.Image, **options: object) -> Tensor:
    prompt, source, target = QUESTION
    shape = {"height": 32, "width": 32, "num_inference_steps": 5}
    return pipe(prompt, reference, source, target, resize_mode="squash", output_type="pt", **shape, **options).images
