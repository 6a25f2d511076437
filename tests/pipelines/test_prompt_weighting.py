"""Weights on words of a prompt: refused without compel, and applied around the subject tokens with it."""

import time
from importlib import util

import pytest
import torch
from PIL import Image

from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.prompt_weighting import SUBJECT, _Encoder, _Tokenizer, parse_weights

from .sampling import Generate

needs_compel = pytest.mark.skipif(util.find_spec("compel") is None, reason="the extra weighting")


def states(pipe: BlipDiffusionPipeline, dog: Image.Image, prompt: str, **options: object) -> torch.Tensor:
    return pipe.encode_prompt(prompt, dog, "dog", **options)[0]  # type: ignore[arg-type]


@pytest.mark.skipif(util.find_spec("compel") is not None, reason="compel is installed")
def test_a_missing_library_is_named(generate: Generate) -> None:
    with pytest.raises(InputError, match=r"compel: pip install 'blip-diffusion\[weighting\]'"):
        generate("on the (beach)1.5", prompt_weighting=True)


def test_subject_tokens_have_ids_of_their_own(pipe: BlipDiffusionPipeline) -> None:
    tokenizer = _Tokenizer(pipe.tokenizer, 3)
    words, alone, empty = tokenizer([f"a {SUBJECT} dog", SUBJECT, ""])["input_ids"]
    plain = pipe.tokenizer("a dog", add_special_tokens=False).input_ids
    at = len(pipe.tokenizer("a", add_special_tokens=False).input_ids)
    assert words == [*plain[:at], -1, -2, -3, *plain[at:]]
    assert (alone, empty) == ([-1, -2, -3], [pipe.tokenizer.bos_token_id])


@torch.no_grad()
def test_ids_of_subject_tokens_become_the_subject(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    subject = pipe.encode_subject(dog, "dog")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = pipe.text_encoder(ids, subject, 2)
    encoder = _Encoder(pipe.text_encoder, subject[0], torch.device("cpu"))
    mixed = torch.tensor([[5, 6, -1, -2, -3, -4, 7, 8]])
    assert torch.equal(encoder(mixed, torch.ones_like(mixed)).last_hidden_state, expected)
    hidden = torch.ones_like(mixed)
    hidden[0, 6] = 0
    masked = encoder(mixed, hidden).last_hidden_state
    assert torch.equal(masked[:, :6], expected[:, :6]) and not torch.equal(masked[:, 7], expected[:, 7])


@needs_compel
@pytest.mark.parametrize("prompt", ["on the beach", "", "on the \\(beach\\)"])
def test_a_prompt_without_weights_stays(pipe: BlipDiffusionPipeline, dog: Image.Image, prompt: str) -> None:
    plain = states(pipe, dog, prompt.replace("\\", ""))
    assert torch.equal(states(pipe, dog, prompt, prompt_weighting=True), plain)


@needs_compel
def test_weights_act_on_words_only(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain = states(pipe, dog, "on the beach")
    strong = states(pipe, dog, "on the (beach)1.5", prompt_weighting=True)
    assert torch.equal(strong, states(pipe, dog, "on the (beach:1.5)", prompt_weighting=True))
    moved = (strong - plain).abs().amax(dim=(0, 2)) > 0
    words = len(pipe.tokenizer("beach", add_special_tokens=False).input_ids)
    assert int(moved.sum()) == words  # neither subject tokens nor other words
    weak = states(pipe, dog, "on the (beach)0.5", prompt_weighting=True)
    assert torch.equal(weak[:, :6], plain[:, :6]) and not torch.equal(weak, plain)


@needs_compel
def test_the_negative_prompt_has_weights(pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    pair = [pipe.encode_prompt("", dog, "dog", negative_prompt=text, prompt_weighting=True)[1] for text in
            ("red sky", "red (sky)1.4")]  # fmt: skip
    assert not torch.equal(*pair)


@needs_compel
def test_a_list_of_prompts_equals_single_ones(generate: Generate) -> None:
    prompts = ["on the (beach)1.4", "in the snow-"]
    both = generate(prompts, prompt_weighting=True, generator=[torch.Generator().manual_seed(0) for _ in prompts])
    for prompt, image in zip(prompts, both, strict=True):
        torch.testing.assert_close(generate(prompt, prompt_weighting=True)[0], image, atol=1e-5, rtol=1e-4)


@needs_compel
@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ('("a dog", "a cat").and()', "operator of compel"),
        ('("a dog", "a cat").blend(1, 2)', "operator of compel"),
        ("a cat.swap(dog)", "operator of compel"),
        ("(beach)99", "from 0 to 10"),
        ("(" * 40 + "beach" + ")" * 40, "at most 16 parentheses"),
        ("(" * 15, "3 within each other"),
    ],
)
def test_what_is_no_weight_is_refused(generate: Generate, prompt: str, sentence: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=sentence):
        generate(prompt, prompt_weighting=True)
    assert time.monotonic() - start < 5


@needs_compel
def test_the_plain_text_has_no_weights() -> None:
    assert parse_weights("on the (beach:1.5) at++ night").plain == "on the beach at night"
