from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.qformer import AttentionPattern
from blip_diffusion.training.initialization import init_heads
from blip_diffusion.training.objectives.representation import (
    Representation,
    RepresentationConfig,
    Shared,
    _candidates,
    _sample_negatives,
)
from blip_diffusion.training.shapes import SHAPES

from .overfit import context, ids, moved_parameters, overfit, with_gradient

Make = Any


@pytest.fixture
def method(model: BlipDiffusion) -> Make:
    torch.manual_seed(0)
    heads = init_heads(SHAPES["tiny"].qformer, 16, [])

    def make(**config: Any) -> Representation:
        own = RepresentationConfig(**config)
        return Representation(model.subject_encoder, model.qformer_tokenizer, model.reference, heads, own)

    return make


@pytest.fixture
def pairs(world: AssetLibrary) -> SubjectBatch:
    """Six pairs of six subjects, whatever the sampler drew."""
    batch = PairSampler(world, SyntheticConfig(size=32, object_crop_size=16), batch_size=6, seed=3)(0)
    return cast(SubjectBatch, {**batch, "identity": torch.arange(6)})


def part(batch: SubjectBatch, rows: slice) -> SubjectBatch:
    return cast(SubjectBatch, {key: value[rows] for key, value in batch.items()})  # type: ignore[index]


def itself(tensor: Tensor) -> Tensor:
    return tensor


def test_it_learns_a_batch(method: Make, pairs: SubjectBatch) -> None:
    before, after = overfit(method(reconstruction_weight=1.0), pairs, steps=25, lr=2e-3)
    assert after < 0.75 * before


# ------------------------------------------------------------------------------------------------------------ contrast


@torch.no_grad()
def test_contrast_is_cross_entropy_both_ways(method: Make, pairs: SubjectBatch) -> None:
    """As published, label smoothing of 0.1 included, where every image shows another subject."""
    own = method()
    own.eval()
    seen = own.encoder.image_encoder(own._pixels(pairs))
    images, sentences = own._embedded(seen, own._words(pairs))
    scores = own.heads["contrastive"].similarity(images, sentences)
    labels = torch.arange(6)
    both = [F.cross_entropy(rows, labels, label_smoothing=0.1) for rows in (scores, scores.T)]
    torch.testing.assert_close(own(pairs, context())["contrast"], torch.stack(both).mean())


def test_two_micro_batches_lend_each_other_their_negatives(method: Make, pairs: SubjectBatch) -> None:
    """Contrast over two halves of a step equals contrast over the whole, gradient included."""
    own = method()
    own.eval()
    own(pairs, context())["contrast"].backward()
    whole, loss = own.encoder.qformer.query_tokens.grad.clone(), own(pairs, context())["contrast"].item()
    own.zero_grad()
    halves = [part(pairs, slice(0, 3)), part(pairs, slice(3, 6))]
    contexts = [context(position=0), context(position=1)]
    with torch.no_grad():
        shared = own.gather_step_context(halves, contexts, itself)
    losses = []
    for position, half in enumerate(halves):
        losses.append(own(half, context(position=position, shared=shared))["contrast"] / 2)
        losses[-1].backward()
    assert sum(loss.item() for loss in losses) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(own.encoder.qformer.query_tokens.grad, whole, atol=1e-6, rtol=1e-3)


def test_what_is_shared_has_no_gradient_and_is_in_order(method: Make, pairs: SubjectBatch) -> None:
    halves = [part(pairs, slice(0, 3)), part(pairs, slice(3, 6))]
    own = method()
    own.eval()
    with torch.no_grad():
        shared = own.gather_step_context(halves, [context(), context()], itself)
        alone = own._shared(pairs)
    for field in fields(Shared):
        torch.testing.assert_close(getattr(shared, field.name), getattr(alone, field.name))
        assert len(getattr(shared, field.name)) == 6 and not getattr(shared, field.name).requires_grad


def test_one_micro_batch_shares_nothing(method: Make, pairs: SubjectBatch) -> None:
    assert method().gather_step_context([pairs], [context()], itself) is None
    assert (
        method(multimodal_every=2, reconstruction_weight=1.0).gather_step_context(
            [pairs, pairs], [context(step=1)] * 2, itself
        )
        is None
    )


# ------------------------------------------------------------------------------------------------------------ negatives


def test_another_image_of_the_subject_is_no_negative() -> None:
    identity, identities = torch.tensor([5, 7]), torch.tensor([5, 5, 7, 8])
    allowed = _candidates(torch.tensor([1, 2]), identity, identities)
    assert allowed.tolist() == [[False, True, True, True], [True, True, True, True]]


def test_hard_negatives_are_others_and_the_harder_the_likelier() -> None:
    scores = torch.tensor([[9.0, 2.0, 0.0, 9.0]]).expand(500, -1)
    negatives = torch.tensor([[False, True, True, False]]).expand(500, -1)
    drawn = _sample_negatives(scores, negatives, torch.Generator().manual_seed(0))
    counts = drawn.bincount(minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[1] / 500 == pytest.approx(torch.tensor([2.0, 0.0]).softmax(0)[0].item(), abs=0.04)


def test_matching_sees_true_pairs_and_wrong_ones(method: Make, pairs: SubjectBatch) -> None:
    """Three of each: images with their words, with others' words, others' images with the words."""
    own, seen = method(), []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        seen.append((args[0], args[1]))

    own.eval()
    handle = own.encoder.qformer.register_forward_pre_hook(note)
    own(pairs, context())
    handle.remove()
    features, ids_ = next((features, words) for features, words in seen if len(features) == 18)
    own_features, own_words = features[:6], ids_[:6]
    assert torch.equal(features[12:], own_features) and torch.equal(ids_[6:12], own_words)
    for row in range(6):
        assert not torch.equal(features[6 + row], own_features[row])
        assert any(torch.equal(features[6 + row], other) for other in own_features)
        assert any(torch.equal(ids_[12 + row], other) for other in own_words)


@torch.no_grad()
def test_matching_says_yes_to_true_pairs_alone(method: Make, pairs: SubjectBatch) -> None:
    """A head that says yes to all, with logits 5 and -5, errs by 10 on two pairs of three."""
    own = method()
    own.heads["matching"].weight.zero_()
    own.heads["matching"].bias.copy_(torch.tensor([-5.0, 5.0]))
    assert own(pairs, context())["matching"].item() == pytest.approx(10 * 2 / 3, rel=1e-3)


@torch.no_grad()
def test_a_batch_of_one_subject_has_nothing_to_tell_apart(method: Make, pairs: SubjectBatch) -> None:
    same = cast(SubjectBatch, {**pairs, "identity": torch.zeros(6, dtype=torch.int64)})
    losses = method()(same, context())
    assert losses["matching"] == 0 and losses["contrast"] == pytest.approx(0, abs=1e-6) and losses["retrieval"] == 1
    assert losses["loss"].isfinite()


# --------------------------------------------------------------------------------- words and reconstruction


@torch.no_grad()
def test_padding_is_not_generated(method: Make, pairs: SubjectBatch) -> None:
    short, long = method(max_caption_tokens=24), method(max_caption_tokens=31)
    assert short.eval()(pairs, context())["generation"] == pytest.approx(
        long.eval()(pairs, context())["generation"].item(), rel=1e-5
    )


@torch.no_grad()
def test_a_sentence_is_begun_by_its_own_token(method: Make, pairs: SubjectBatch) -> None:
    own, seen = method(), []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        if args[3] is AttentionPattern.CAUSAL:
            seen.append(args[1])

    handle = own.encoder.qformer.register_forward_pre_hook(note)
    own(pairs, context())
    handle.remove()
    (words,) = seen
    assert own.tokenizer.convert_ids_to_tokens(words[0])[:2] == ["[DEC]", "a"]
    assert (words[:, 0] == own.tokenizer.bos_token_id).all()


@torch.no_grad()
def test_generation_is_told_by_the_image(method: Make, pairs: SubjectBatch) -> None:
    own = method()
    own.eval()
    turned = cast(SubjectBatch, {**pairs, "reference": pairs["reference"].flip(0)})
    assert own(pairs, context())["generation"] != own(turned, context())["generation"]


@torch.no_grad()
def test_weights_and_pauses(method: Make, pairs: SubjectBatch) -> None:
    config = {"contrast": 0.5, "matching": 2.0, "generation": 3.0, "reconstruction": 10.0}
    own = method(itc_weight=0.5, itm_weight=2.0, itg_weight=3.0, reconstruction_weight=10.0, multimodal_every=3)
    losses = own(pairs, context(step=3))
    assert losses["loss"].item() == pytest.approx(sum(config[name] * losses[name].item() for name in config), rel=1e-5)
    paused = own(pairs, context(step=4))
    assert set(paused) == {"reconstruction", "loss"} and paused["loss"].item() == pytest.approx(
        10 * paused["reconstruction"].item()
    )


def test_what_moves(method: Make, pairs: SubjectBatch) -> None:
    own = method(reconstruction_weight=1.0)
    encoder = own.encoder
    still = ids(encoder.image_encoder.tower.parameters())
    assert moved_parameters(own) == ids(own.parameters()) - still
    own.train()(pairs, context())["loss"].backward()
    assert not any(with_gradient(encoder.image_encoder.tower.parameters()))
    read = [encoder.qformer.query_tokens, encoder.image_encoder.norm.weight, encoder.projection.up.weight]
    heads = [own.heads["contrastive"].temperature, own.heads["matching"].weight, own.heads["reconstruction"].places]
    assert all(with_gradient([*read, *heads, own.heads["language"].dense.weight]))
    plain = moved_parameters(method())  # without reconstruction, what only it needs rests: processes would wait for it
    assert plain == ids(own.parameters()) - still - ids(own.heads["reconstruction"].parameters()) - ids(
        encoder.projection.parameters()
    )


@torch.no_grad()
def test_it_shows_what_the_tokens_redraw(method: Make, pairs: SubjectBatch) -> None:
    assert method().sample_images(pairs) == []
    columns = method(reconstruction_weight=1.0).sample_images(pairs)
    assert [tuple(column.shape) for column in columns] == [(6, 3, 32, 32), (6, 3, 16, 16), (6, 3, 16, 16)]


def test_the_export_goes_on(method: Make, tmp_path: Path) -> None:
    own = method()
    own.export(tmp_path)
    heads = init_heads(SHAPES["tiny"].qformer, 16, [tmp_path])
    assert all(torch.equal(heads.state_dict()[name], tensor) for name, tensor in own.heads.state_dict().items())


def test_targets_with_their_captions_are_learned_instead_of_references(method: Make, pairs: SubjectBatch) -> None:
    own = method(image="target")
    swapped = cast(SubjectBatch, {**pairs, "reference": pairs["target"], "reference_caption": pairs["caption"]})
    for name, loss in method()(swapped, context()).items():
        torch.testing.assert_close(own(pairs, context())[name], loss)
    with pytest.raises(ConfigError, match="only references are reconstructed"):
        method(image="target", reconstruction_weight=1.0)
