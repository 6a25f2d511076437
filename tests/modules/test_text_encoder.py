import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel

from blip_diffusion.model import TextEncoderConfig, build_text_encoder
from blip_diffusion.modules.text_encoder import SubjectTextEncoder

CONFIG = TextEncoderConfig(vocabulary=40, width=16, layers=2, heads=2, inner=32, positions=20)
IDS = torch.tensor([[38, 3, 4, 5, 6, 39]])


@pytest.fixture(scope="module")
def encoder() -> SubjectTextEncoder:
    torch.manual_seed(0)
    network = build_text_encoder(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return network


@pytest.fixture(scope="module")
def subject() -> Tensor:
    return torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def states(encoder: SubjectTextEncoder, ids: Tensor, subject: Tensor, at: int = 2) -> Tensor:
    return encoder(ids, subject, at)


def moved(a: Tensor, b: Tensor) -> list[bool]:
    return (a - b).abs().amax(dim=(0, 2)).gt(1e-5).tolist()


@torch.no_grad()
def test_text_encoder_without_subject_equals_clip(encoder: SubjectTextEncoder) -> None:
    clip = CLIPTextModel(encoder.config).eval()
    clip.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder(IDS).last_hidden_state, clip(IDS).last_hidden_state)
    assert torch.equal(encoder(input_ids=IDS).pooler_output, clip(input_ids=IDS).pooler_output)


@torch.no_grad()
def test_word_embeddings_as_subject_equal_the_words(encoder: SubjectTextEncoder) -> None:
    """Token embeddings inserted as a subject are as good as the words: positions after them move up."""
    words = encoder.embeddings.token_embedding(IDS[:, 2:4])
    torch.testing.assert_close(
        states(encoder, torch.cat([IDS[:, :2], IDS[:, 4:]], dim=1), words), encoder(IDS).last_hidden_state
    )


@torch.no_grad()
def test_words_as_several_subjects_are_those_words(encoder: SubjectTextEncoder) -> None:
    blocks = [encoder.embeddings.token_embedding(IDS[:, place : place + 1]) for place in (1, 3)]
    rest = torch.cat([IDS[:, :1], IDS[:, 2:3], IDS[:, 4:]], dim=1)
    torch.testing.assert_close(encoder(rest, blocks, [1, 2]), encoder(IDS).last_hidden_state)


def test_one_subject_in_a_list_is_that_subject(encoder: SubjectTextEncoder, subject: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(encoder(IDS, [subject], [2]), encoder(IDS, subject, 2))


@pytest.mark.parametrize("at", [1, 2, 4])
def test_position_of_the_subject_tokens(encoder: SubjectTextEncoder, subject: Tensor, at: int) -> None:
    before, after = states(encoder, IDS, subject, at), states(encoder, IDS, -subject, at)
    assert before.shape == (1, 9, 16)
    assert moved(before, after) == [False] * at + [True] * (9 - at)


@pytest.mark.parametrize("token", range(3))
def test_subject_tokens_are_causal_too(encoder: SubjectTextEncoder, subject: Tensor, token: int) -> None:
    other = subject.clone()
    other[:, token] *= -1
    assert moved(states(encoder, IDS, subject), states(encoder, IDS, other)) == [
        position >= 2 + token for position in range(9)
    ]


@pytest.mark.parametrize("word", range(6))
def test_causal_mask_hides_later_words(encoder: SubjectTextEncoder, subject: Tensor, word: int) -> None:
    other = IDS.clone()
    other[:, word] = 20
    position = word if word < 2 else word + 3
    assert moved(states(encoder, IDS, subject), states(encoder, other, subject)) == [
        row >= position for row in range(9)
    ]


def test_rows_of_a_batch_are_independent(encoder: SubjectTextEncoder, subject: Tensor) -> None:
    pair = states(encoder, torch.cat([IDS, IDS.flip(1)]), torch.cat([subject, -subject]))
    torch.testing.assert_close(pair[:1], states(encoder, IDS, subject))
    torch.testing.assert_close(pair[1:], states(encoder, IDS.flip(1), -subject))


def test_subject_tokens_receive_gradients(encoder: SubjectTextEncoder, subject: Tensor) -> None:
    tokens = subject.clone().requires_grad_(True)
    (encoder(IDS, tokens)[:, -1] * torch.arange(16)).sum().backward()  # a plain sum of normed states is constant
    assert tokens.grad is not None and (tokens.grad.abs().amax(dim=2) > 1e-4).all()
    encoder.zero_grad()


def test_subject_needs_a_prompt(encoder: SubjectTextEncoder, subject: Tensor) -> None:
    with pytest.raises(ValueError, match="input_ids is missing"):
        encoder(subject_tokens=subject)
