"""The three attention patterns. Changing masked inputs must not change the output."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blip_diffusion.errors import ConfigError
from blip_diffusion.modules.qformer import (
    AttentionPattern,
    Layer,
    QFormer,
    QFormerConfig,
    QFormerOutput,
    attention_pattern,
)

CONFIG = QFormerConfig(
    width=16,
    layers=3,
    heads=2,
    inner=32,
    vocabulary=50,
    positions=12,
    vision_width=10,
    queries=4,
    cross_attention_every=2,
)
WORDS = torch.tensor([[1, 7, 8, 9, 2]])
PATTERNS = list(AttentionPattern)


@pytest.fixture(scope="module")
def qformer() -> QFormer:
    torch.manual_seed(0)
    network = QFormer(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)  # fresh weights hardly let one row see another
    return network


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(
    network: QFormer, features: Tensor | None, ids: Tensor | None, pattern: AttentionPattern, mask: Tensor | None = None
) -> QFormerOutput:
    return network(features, ids, mask, pattern)


def moved(a: Tensor, b: Tensor) -> list[bool]:
    """Which rows (of a batch of one) differ."""
    return (a - b).abs().amax(dim=(0, 2)).gt(1e-5).tolist()


def changed(ids: Tensor, at: int) -> Tensor:
    other = ids.clone()
    other[:, at] = 30
    return other


# -------------------------------------------------------------------------------------------------- attention patterns


def test_unimodal_attention_is_within_queries_or_words(qformer: QFormer, features: Tensor) -> None:
    both = read(qformer, features, WORDS, AttentionPattern.UNIMODAL)
    other_words = read(qformer, features, changed(WORDS, 1), AttentionPattern.UNIMODAL)
    other_image = read(qformer, features + 1, WORDS, AttentionPattern.UNIMODAL)
    assert moved(both.queries, other_words.queries) == [False] * 4
    assert moved(both.words, other_image.words) == [False] * 5
    assert moved(both.words, other_words.words) == [True] * 5  # words see later words too
    assert moved(both.queries, other_image.queries) == [True] * 4


@pytest.mark.parametrize("at", range(1, 5))
def test_causal_words_do_not_attend_to_later_words(qformer: QFormer, features: Tensor, at: int) -> None:
    before = read(qformer, features, WORDS, AttentionPattern.CAUSAL)
    after = read(qformer, features, changed(WORDS, at), AttentionPattern.CAUSAL)
    assert moved(before.words, after.words) == [False] * at + [True] * (5 - at)
    assert moved(before.queries, after.queries) == [False] * 4


def test_causal_words_attend_to_the_queries(qformer: QFormer, features: Tensor) -> None:
    before = read(qformer, features, WORDS, AttentionPattern.CAUSAL)
    after = read(qformer, features + 1, WORDS, AttentionPattern.CAUSAL)
    assert moved(before.words, after.words) == [True] * 5


def test_bidirectional_attention_is_complete(qformer: QFormer, features: Tensor) -> None:
    before = read(qformer, features, WORDS, AttentionPattern.BIDIRECTIONAL)
    after = read(qformer, features, changed(WORDS, 4), AttentionPattern.BIDIRECTIONAL)
    assert moved(before.queries, after.queries) == [True] * 4
    assert moved(before.words, after.words) == [True] * 5


@pytest.mark.parametrize("pattern", PATTERNS)
def test_padding_is_masked(qformer: QFormer, features: Tensor, pattern: AttentionPattern) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    before = read(qformer, features, WORDS, pattern, mask)
    after = read(qformer, features, changed(WORDS, 4), pattern, mask)
    assert moved(before.queries, after.queries) == [False] * 4
    assert moved(before.words, after.words) == [False, False, False, False, True]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_unequal_lengths_in_a_batch_equal_singles(
    qformer: QFormer, features: Tensor, pattern: AttentionPattern
) -> None:
    images = torch.cat([features, features.flip(1) * 2])
    ids = torch.tensor([[1, 7, 8, 9, 2], [1, 5, 2, 0, 0]])
    together = read(qformer, images, ids, pattern, (ids > 0).long())
    for row, length in enumerate((5, 3)):
        alone = read(qformer, images[row : row + 1], ids[row : row + 1, :length], pattern)
        torch.testing.assert_close(together.queries[row], alone.queries[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.words[row, :length], alone.words[0], atol=1e-5, rtol=1e-5)


def test_causal_mask_equals_the_expected_pattern() -> None:
    sees = attention_pattern(AttentionPattern.CAUSAL, 2, torch.zeros(1, 3), None, torch.device("cpu"))[0, 0]
    assert sees.long().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_queries_or_words_alone_equal_the_unimodal_pass(qformer: QFormer, features: Tensor) -> None:
    both = read(qformer, features, WORDS, AttentionPattern.UNIMODAL)
    queries = read(qformer, features, None, AttentionPattern.UNIMODAL)
    words = read(qformer, None, WORDS, AttentionPattern.UNIMODAL)
    torch.testing.assert_close(both.queries, queries.queries)
    torch.testing.assert_close(both.words, words.words)
    assert queries.words.shape == (1, 0, 16) and words.queries.shape == (1, 0, 16)


# ------------------------------------------------------------------------------------------------------------ the rest


def test_image_enters_through_cross_attention_only(features: Tensor) -> None:
    """With the values of cross-attention at zero, no image makes a difference."""
    torch.manual_seed(0)
    blind = QFormer(CONFIG).eval()
    for layer in blind.layers:
        assert isinstance(layer, Layer)
        if layer.cross_attention is not None:
            torch.nn.init.zeros_(layer.cross_attention.value.weight)
    before = read(blind, features, WORDS, AttentionPattern.BIDIRECTIONAL)
    after = read(blind, features + 9, WORDS, AttentionPattern.BIDIRECTIONAL)
    assert torch.equal(before.queries, after.queries) and torch.equal(before.words, after.words)


def test_every_other_layer_has_cross_attention(qformer: QFormer) -> None:
    assert [layer.cross_attention is not None for layer in qformer.layers] == [True, False, True]


def test_query_feed_forward_is_initialised_from_that_of_words() -> None:
    fresh = QFormer(CONFIG)
    for layer in fresh.layers:
        mine, theirs = layer.query_feed_forward.state_dict(), layer.word_feed_forward.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert layer.query_feed_forward.up.weight is not layer.word_feed_forward.up.weight
    assert fresh.query_tokens.std().item() == pytest.approx(0.02, rel=0.3)


def test_the_order_of_words_matters(qformer: QFormer, features: Tensor) -> None:
    swapped = WORDS[:, [0, 2, 1, 3, 4]]
    before = read(qformer, features, WORDS, AttentionPattern.BIDIRECTIONAL)
    after = read(qformer, features, swapped, AttentionPattern.BIDIRECTIONAL)
    assert all(moved(before.queries, after.queries))


def test_errors(qformer: QFormer) -> None:
    with pytest.raises(ConfigError, match="width 10 is not a multiple of 4 heads"):
        QFormerConfig(width=10, heads=4)
    with pytest.raises(ValueError, match="image features, words, or both"):
        qformer()


def test_fewer_queries_are_spread_over_the_grid() -> None:
    qformer = QFormer(replace(CONFIG, queries=16))
    before = qformer.query_tokens.detach().clone()
    qformer.keep_queries(4)
    assert torch.equal(qformer.query_tokens, before[:, [5, 7, 13, 15]])
    qformer.keep_queries(3)
    assert qformer.config.queries == 3 and qformer.query_tokens.shape[1] == 3
    with pytest.raises(ConfigError, match="use 1 to 3"):
        qformer.keep_queries(4)


def test_without_a_vocabulary_no_words_are_built_or_read() -> None:
    qformer = QFormer(replace(CONFIG, vocabulary=0))
    assert not [name for name in qformer.state_dict() if "word" in name or "position" in name]
    assert qformer(torch.randn(2, 5, CONFIG.vision_width)).queries.shape[:2] == (2, CONFIG.queries)
    with pytest.raises(ConfigError, match="reads no words"):
        qformer(None, torch.zeros(1, 2, dtype=torch.long))
