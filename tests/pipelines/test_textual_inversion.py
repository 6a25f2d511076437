"""Textual inversions: several vectors, the placeholder word, and files that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .sampling import Sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of the libraries' own


def test_multi_vector_inversion_is_expanded(load_pipeline: Callable[[], Any], sample: Sample) -> None:
    pipe = load_pipeline()
    plain, before = sample(pipe), sample(pipe, "rex on the beach")
    torch.manual_seed(0)
    pipe.load_textual_inversion(torch.randn(3, pipe.text_encoder.config.hidden_size), token="<rex>")
    assert torch.equal(sample(pipe), plain)
    assert not torch.equal(sample(pipe, "<rex> on the beach"), before)
    first = pipe.tokenizer.convert_tokens_to_ids("<rex>")
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(["<rex>"], pipe.tokenizer)).input_ids[0]
    assert len(ids) == 5 and first in ids and len(set(ids)) == 5


def test_inversion_token_comes_from_the_file(load_pipeline: Callable[[], Any], sample: Sample, tmp_path: Path) -> None:
    pipe, other = load_pipeline(), load_pipeline()
    word = torch.randn(1, pipe.text_encoder.config.hidden_size)
    save_file({"<rex>": word}, tmp_path / "rex.safetensors")
    pipe.load_textual_inversion(str(tmp_path / "rex.safetensors"))
    other.load_textual_inversion(word, token="<rex>")
    assert torch.equal(sample(pipe, "<rex>"), sample(other, "<rex>"))


def automatic(name: Any, tensor: Any) -> dict[str, Any]:
    return {"string_to_param": {"*": tensor}, "name": name}


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"emb_params": torch.ones(2, 32)}, "rex"),
        ({"<own>": torch.ones(2, 32)}, "<own>"),
        (automatic("web", torch.ones(2, 32)), "web"),
        (automatic(7, torch.ones(2, 32)), "rex"),
        (torch.ones(32), "rex"),
    ],
)
def test_inversion_token_defaults_to_the_file_name(
    fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, table: Any, word: str
) -> None:
    torch.save(table, tmp_path / "rex.pt")
    fresh_pipe.load_textual_inversion(tmp_path / "rex.pt")
    assert word in fresh_pipe.tokenizer.get_added_vocab()


def test_multi_vector_category_is_expanded(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    torch.manual_seed(0)
    fresh_pipe.load_textual_inversion(torch.randn(3, 32), "<rex>")
    whole = fresh_pipe.maybe_convert_prompt("<rex>", fresh_pipe.tokenizer)

    def generate_image(*categories: str) -> Tensor:
        return fresh_pipe("x", dog, *categories, generator=torch.Generator().manual_seed(0), output_type="pt").images

    assert torch.equal(generate_image("dog", "<rex>"), generate_image("dog", whole))
    assert torch.equal(generate_image("<rex>"), generate_image("<rex>", whole))
    assert not torch.equal(generate_image("dog", "<rex>"), generate_image("dog", "<rex>_1"))


@pytest.mark.parametrize(
    ("given", "token", "sentence"),
    [
        (torch.ones(2, 99), "<rex>", "is for another model: its vectors are 99 wide, and this model's 32"),
        ({"a": torch.ones(32), "b": torch.ones(32)}, None, r"holds 2 tensors \(a, b\)"),
        ({"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}, None, "is for Stable Diffusion XL"),
        ("no", None, "There is no textual inversion at no"),
        ("no.pt", None, "There is no textual inversion at no.pt"),
        (torch.ones(1, 32) * float("nan"), "<rex>", "not finite"),
        (torch.ones(1).expand(10**7, 32), "<rex>", r"is \(10000000, 32\)"),
        ([torch.ones(1, 32), torch.ones(1, 32)], ["<rex>"], "1 tokens for 2"),
        (torch.ones(1, 32), None, "has the word None"),
        ({7: torch.ones(1, 32), "name": 3}, 5, "has the word 5"),
    ],
)
def test_invalid_inversions_are_refused(
    load_pipeline: Callable[[], Any], sample: Sample, given: Any, token: Any, sentence: str
) -> None:
    pipe = load_pipeline()
    plain, words = sample(pipe), len(pipe.tokenizer)
    with pytest.raises(BlipDiffusionError, match=sentence) as caught:
        pipe.load_textual_inversion(given, token)
    assert "\n" not in str(caught.value)
    assert len(pipe.tokenizer) == words and torch.equal(sample(pipe), plain)


@pytest.mark.parametrize("word", [None, True, 1.5, ("a",), "<rex>\u202e", "\u200b", "x" * 201, "a b", "", "\x1b[2J"])
def test_words_that_are_no_text_are_refused(pipe: BlipDiffusionPipeline, tmp_path: Path, word: Any) -> None:
    torch.save({word: torch.ones(2, 32)}, tmp_path / "rex.pt")
    with pytest.raises(BlipDiffusionError, match=r"has the word .*: give one with token="):
        pipe.load_textual_inversion(tmp_path / "rex.pt")


@pytest.mark.parametrize("number", [3e38, -1e5])
def test_numbers_that_no_embedding_has_are_refused(pipe: BlipDiffusionPipeline, number: float) -> None:
    with pytest.raises(BlipDiffusionError, match="numbers above 10000: it is damaged"):
        pipe.load_textual_inversion(torch.full((2, 32), number), token="<rex>")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_vectors_of_any_float_type_are_read(
    fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_file({"<rex>": torch.ones(2, 32).to(dtype)}, tmp_path / "rex.safetensors")
    fresh_pipe.load_textual_inversion(tmp_path / "rex.safetensors")
    assert "<rex>" in fresh_pipe.tokenizer.get_added_vocab()
