from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from blip_diffusion.checkpoint.diffusers_export import save_stable_diffusion
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.textual_inversion import TextualInversion, TextualInversionConfig
from tests.training.photos import photo_batch

from .overfit import moved_parameters, overfit


def make_objective(model: BlipDiffusion, vectors: int = 1) -> TextualInversion:
    return TextualInversion(model, noising_from(model.scheduler), "rex", "dog", TextualInversionConfig(vectors))


@pytest.mark.parametrize("vectors", [1, 3])
def test_trains_only_the_new_embedding(model: BlipDiffusion, dog: Image.Image, vectors: int) -> None:
    objective = make_objective(model, vectors)
    assert moved_parameters(objective) == {id(objective.vectors)} and objective.vectors.shape == (1, vectors, 32)
    before = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    first, last = overfit(objective, photo_batch(model, dog), steps=25, lr=1e-2)
    assert last < (1 - 1e-4) * first
    assert [n for n, p in objective.named_parameters() if not torch.equal(p, before[n])] == ["vectors"]


@torch.no_grad()
def test_new_embedding_starts_as_the_category(model: BlipDiffusion) -> None:
    """Where the category is one word of the vocabulary, the new word is at first that word."""
    tokenizer = model.tokenizer
    word = next(w for w in ("dog", "cat", "horse", "a") if len(tokenizer(w, add_special_tokens=False).input_ids) == 1)
    objective = TextualInversion(model, noising_from(model.scheduler), "rex", word, TextualInversionConfig(1))
    torch.testing.assert_close(objective.states(["on the beach"]), model.text_states([f"a {word} on the beach"]))


@torch.no_grad()
@pytest.mark.parametrize("vectors", [1, 3])
def test_stable_diffusion_pipeline_loads_the_embedding(model: BlipDiffusion, tmp_path: Path, vectors: int) -> None:
    save_stable_diffusion(model, tmp_path / "base")
    objective = make_objective(model, vectors)
    objective.vectors += torch.randn(objective.vectors.shape, generator=torch.Generator().manual_seed(0))
    objective.export(tmp_path / "rex")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    plain.load_textual_inversion(tmp_path / "rex", weight_name="learned_embeds.safetensors")
    encoded, _ = plain.encode_prompt("a <rex> on the beach", torch.device("cpu"), 1, False)
    torch.testing.assert_close(encoded, objective.states(["on the beach"]), atol=1e-4, rtol=1e-4)


def test_errors() -> None:
    for vectors in (0, 33):
        with pytest.raises(ConfigError, match=f"vectors is {vectors}: use 1 to 32"):
            TextualInversionConfig(vectors)
