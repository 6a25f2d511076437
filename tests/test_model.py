"""The model's data flow, and the published sizes, counted on the meta device."""

import pytest
import torch
from torch import Tensor, nn

from blip_diffusion.checkpoint.key_maps import subject_encoder_to_published
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import InputError
from blip_diffusion.model import BlipDiffusion, ModelConfig, build_subject_encoder, build_text_encoder

PUBLISHED = ModelConfig()


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_subject_encoder() -> None:
    """`reference/method.md` A1, counted in the published code: 493,983,744 parameters in 679 tensors,
    of which one is a table of positions that nothing reads."""
    with torch.device("meta"):
        encoder = build_subject_encoder(PUBLISHED)
        state = subject_encoder_to_published(encoder.state_dict())
    assert numbers(encoder.image_encoder) == 290_583_552
    assert numbers(encoder.qformer) == 198_663_936 + 16 * 768
    assert numbers(encoder.projection) == 4_723_968
    assert sum(tensor.numel() for tensor in state.values()) == 493_983_744 and len(state) == 678
    assert encoder.qformer.query_tokens.shape == (1, 16, 768)
    assert encoder.image_encoder.width == 1024


def test_published_text_encoder() -> None:
    with torch.device("meta"):
        assert numbers(build_text_encoder(PUBLISHED.text_encoder)) == 123_060_480


def test_published_unet_and_vae() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**PUBLISHED.unet), AutoencoderKL(**PUBLISHED.vae)
    assert numbers(unet) == 859_520_964 and numbers(vae) == 83_653_863  # Stable Diffusion 1.5's


# ------------------------------------------------------------------------------------------------------------ the flow


@torch.no_grad()
def test_encode_subject_returns_tokens(model: BlipDiffusion, batch: SubjectBatch) -> None:
    tokens = model.subject_tokens(batch["reference"], batch["category"])
    assert tokens.shape == (6, 4, 32)
    pixels = batch["reference"][:1]

    def differs(pixels: Tensor, word: str) -> bool:
        return bool((model.subject_tokens(pixels, [word]) - tokens[:1]).abs().max() > 1e-3)

    category = batch["category"][0]
    assert not differs(pixels, category) and differs(pixels.flip(-2), category) and differs(pixels, category + " dog")


@torch.no_grad()
def test_encode_prompt_returns_states(model: BlipDiffusion) -> None:
    subject = torch.randn(2, 4, 32)
    plain, full = model.text_states(["a dog", "a cat"]), model.text_states(["a dog", "a cat"], subject)
    assert plain.shape == full.shape == (2, model.text_length, 32)
    torch.testing.assert_close(plain[:, :2], full[:, :2])  # [BOS] a
    assert (plain[:, 2] - full[:, 2]).abs().max() > 0.1
    other = model.text_states(["a dog", "a cat"], -subject)
    assert (other[:, 2:] - full[:, 2:]).abs().amax(dim=2).min() > 1e-4


@torch.no_grad()
def test_denoiser_uses_the_text_states(model: BlipDiffusion) -> None:
    states = torch.randn(2, 8, 32)
    prediction = model.denoiser(states)(torch.randn(2, 4, 4, 4), torch.tensor(3))
    assert prediction.shape == (2, 4, 4, 4)


def test_an_empty_category(model: BlipDiffusion, batch: SubjectBatch) -> None:
    with pytest.raises(InputError, match="category is empty"):
        model.subject_tokens(batch["reference"][:1], [""])
