import pytest
import torch
from torch.nn import functional as F

from blip_diffusion.modules.heads import ContrastiveHead, LanguageHead, MatchingHead, ReconstructionHead
from blip_diffusion.modules.qformer import QFormerConfig

QUERIES, WORDS = torch.randn(3, 4, 16), torch.randn(5, 6, 16)


def test_contrastive_head_uses_the_best_query() -> None:
    head = ContrastiveHead(16, 8)
    images, sentences = head.images(QUERIES), head.sentences(WORDS)
    assert images.shape == (3, 4, 8) and sentences.shape == (5, 8)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3, 4))
    cosines = head.similarity(images, sentences) * 0.07
    assert cosines.shape == (3, 5)
    assert cosines[1, 2].item() == pytest.approx((images[1] @ sentences[2]).max().item(), abs=1e-6)


def test_contrastive_head_uses_the_first_word() -> None:
    head, other = ContrastiveHead(16, 8), WORDS.clone()
    other[:, 1:] += 1
    assert torch.equal(head.sentences(WORDS), head.sentences(other))


@pytest.mark.parametrize(("temperature", "used"), [(0.07, 0.07), (-1.0, 0.001), (9.0, 0.5)])
def test_temperature_is_clamped(temperature: float, used: float) -> None:
    head, unit = ContrastiveHead(16, 8), F.normalize(torch.ones(1, 1, 8), dim=-1)
    head.temperature.data.fill_(temperature)
    assert head.similarity(unit, unit[:, 0]).item() == pytest.approx(1 / used, rel=1e-5)


def test_matching_averages_the_logits_of_the_queries() -> None:
    head = MatchingHead(16)
    each = torch.stack([head(QUERIES[:, [query]]) for query in range(4)])
    torch.testing.assert_close(head(QUERIES), each.mean(dim=0))


def test_language_head_is_tied_to_the_word_embeddings() -> None:
    head = LanguageHead(QFormerConfig(width=16, heads=2, vocabulary=50))
    embeddings = torch.randn(50, 16, requires_grad=True)
    logits = head(WORDS, embeddings)
    assert logits.shape == (5, 6, 50)
    logits.sum().backward()
    assert embeddings.grad is not None and embeddings.grad.abs().sum() > 0
    assert all(parameter.shape != embeddings.shape for parameter in head.parameters())


def test_reconstruction_depends_on_every_token() -> None:
    head, tokens = ReconstructionHead(16, size=16, patch=4), QUERIES.clone().requires_grad_(True)
    reconstructed = head(tokens)
    assert reconstructed.shape == (3, 4, 16, 16)
    assert reconstructed.min() >= 0 and reconstructed.max() <= 1
    reconstructed[:, :, 0, 0].sum().backward()
    assert tokens.grad is not None and (tokens.grad.abs().amax(dim=2) > 0).all()


def test_reconstruction_places_patches() -> None:
    """What one place paints lies in its own patch: row 1, column 2 of a grid of 4."""
    torch.manual_seed(0)
    head = ReconstructionHead(16, size=16, patch=4, layers=0)
    other = ReconstructionHead(16, size=16, patch=4, layers=0)
    other.load_state_dict(head.state_dict())
    other.places.data[0, 1 * 4 + 2] += torch.randn(16)
    difference = (head(QUERIES) - other(QUERIES)).abs().amax(dim=(0, 1))
    assert difference[4:8, 8:12].max() > 0
    difference[4:8, 8:12] = 0
    assert difference.max() == 0
