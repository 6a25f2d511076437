from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blip_diffusion.checkpoint.components import load_heads
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
def make_objective(model: BlipDiffusion) -> Make:
    torch.manual_seed(0)
    heads = init_heads(SHAPES["tiny"].qformer, 16, [])

    def make(**config: Any) -> Representation:
        settings = RepresentationConfig(**config)
        return Representation(model.subject_encoder, model.qformer_tokenizer, model.reference, heads, settings)

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


def test_overfits_one_batch(make_objective: Make, pairs: SubjectBatch) -> None:
    before, after = overfit(make_objective(reconstruction_weight=1.0), pairs, steps=25, lr=2e-3)
    assert after < 0.75 * before


@pytest.mark.parametrize("image", ["reference", "target"])
def test_cached_features_give_the_same_losses(make_objective: Make, pairs: SubjectBatch, image: str) -> None:
    objective = make_objective(image=image)
    objective.eval()
    cached = objective.encode(pairs)
    assert cached["caption"] == pairs["caption" if image == "target" else "reference_caption"]
    assert not cached["features"].requires_grad
    fresh, again = objective(pairs, context()), objective(cached, context())
    assert fresh.keys() == again.keys()
    for name, loss in fresh.items():
        assert torch.equal(loss, again[name]), name


def test_a_share_of_the_captions_is_the_category_alone(make_objective: Make, pairs: SubjectBatch) -> None:
    """In training only, equally for the shared negatives and for the step itself, and others in the next step."""
    objective = make_objective(category_captions=0.5)
    encoded, whole = objective.encode(pairs), pairs["reference_caption"]
    assert objective.eval()._captions(encoded, context()) == whole
    objective.train()
    captions = objective._captions(encoded, context())
    assert 0 < sum(short != caption for short, caption in zip(captions, whole, strict=True)) < 6
    assert torch.equal(objective._tokenize(captions).input_ids, objective._shared(pairs, context()).input_ids)
    assert any(captions != objective._captions(encoded, context(step=step)) for step in range(1, 5))
    everything = make_objective(category_captions=1.0).train()._captions(encoded, context())
    assert everything == [f"a {category}" for category in pairs["category"]]


def test_itg_has_no_target_for_the_end_of_a_shortened_caption(
    make_objective: Make, pairs: SubjectBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def keep(logits: torch.Tensor, labels: torch.Tensor, **more: Any) -> torch.Tensor:
        if logits.shape[1] > 2:  # of words, not of ITM
            seen.append(labels.view(len(pairs["category"]), -1))
        return F.log_softmax(logits, dim=1).mean()

    monkeypatch.setattr("blip_diffusion.training.objectives.representation.F.cross_entropy", keep)
    for share in (0.0, 1.0):
        make_objective(category_captions=share).train()(pairs, context())
    end = make_objective().tokenizer.sep_token_id
    whole, short = seen
    assert ((whole == end).sum(1) == 1).all() and not (short == end).any()
    assert ((short != -100).sum(1) > 0).all()  # the words of the category


# ------------------------------------------------------------------------------------------------------------ contrast


@torch.no_grad()
def test_itc_loss_is_symmetric_cross_entropy(make_objective: Make, pairs: SubjectBatch) -> None:
    """As published, label smoothing of 0.1 included, where every image shows another subject."""
    objective = make_objective()
    objective.eval()
    image_features = objective.encoder.image_encoder(objective._pixels(pairs))
    images, sentences = objective._embedded(image_features, objective._tokenize(objective.encode(pairs)["caption"]))
    scores = objective.heads["contrastive"].similarity(images, sentences)
    labels = torch.arange(6)
    both = [F.cross_entropy(rows, labels, label_smoothing=0.1) for rows in (scores, scores.T)]
    torch.testing.assert_close(objective(pairs, context())["contrast"], torch.stack(both).mean())


def test_micro_batches_share_their_negatives(make_objective: Make, pairs: SubjectBatch) -> None:
    """Contrast over two halves of a step equals contrast over the whole, gradient included."""
    objective = make_objective()
    objective.eval()
    objective(pairs, context())["contrast"].backward()
    whole, loss = objective.encoder.qformer.query_tokens.grad.clone(), objective(pairs, context())["contrast"].item()
    objective.zero_grad()
    halves = [part(pairs, slice(0, 3)), part(pairs, slice(3, 6))]
    contexts = [context(position=0), context(position=1)]
    with torch.no_grad():
        shared = objective.gather_step_context(halves, contexts, itself)
    losses = []
    for position, half in enumerate(halves):
        losses.append(objective(half, context(position=position, shared=shared))["contrast"] / 2)
        losses[-1].backward()
    assert sum(loss.item() for loss in losses) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(objective.encoder.qformer.query_tokens.grad, whole, atol=1e-6, rtol=1e-3)


def test_shared_features_have_no_gradient_and_are_ordered(make_objective: Make, pairs: SubjectBatch) -> None:
    halves = [part(pairs, slice(0, 3)), part(pairs, slice(3, 6))]
    objective = make_objective()
    objective.eval()
    with torch.no_grad():
        shared = objective.gather_step_context(halves, [context(), context()], itself)
        alone = objective._shared(pairs, context())
    for field in fields(Shared):
        torch.testing.assert_close(getattr(shared, field.name), getattr(alone, field.name))
        assert len(getattr(shared, field.name)) == 6 and not getattr(shared, field.name).requires_grad


def test_single_micro_batch_shares_nothing(make_objective: Make, pairs: SubjectBatch) -> None:
    assert make_objective().gather_step_context([pairs], [context()], itself) is None
    assert (
        make_objective(multimodal_every=2, reconstruction_weight=1.0).gather_step_context(
            [pairs, pairs], [context(step=1)] * 2, itself
        )
        is None
    )


# ------------------------------------------------------------------------------------------------------------ negatives


def test_images_of_the_same_subject_are_not_negatives() -> None:
    identity, identities = torch.tensor([5, 7]), torch.tensor([5, 5, 7, 8])
    captions = torch.arange(4)[:, None]
    allowed = _candidates(torch.tensor([1, 2]), identity, identities, captions[1:3], captions)
    assert allowed.tolist() == [[False, True, True, True], [True, True, True, True]]


def test_equal_captions_are_not_negatives() -> None:
    captions = torch.tensor([[1, 2], [1, 3], [1, 2], [1, 4]])
    allowed = _candidates(
        torch.tensor([1, 2]), torch.tensor([5, 6]), torch.tensor([4, 5, 6, 7]), captions[1:3], captions
    )
    assert allowed.tolist() == [[True, True, True, True], [False, True, True, True]]


def test_hard_negatives_are_sampled_by_similarity() -> None:
    scores = torch.tensor([[9.0, 2.0, 0.0, 9.0]]).expand(500, -1)
    negatives = torch.tensor([[False, True, True, False]]).expand(500, -1)
    sampled = _sample_negatives(scores, negatives, torch.Generator().manual_seed(0))
    counts = sampled.bincount(minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[1] / 500 == pytest.approx(torch.tensor([2.0, 0.0]).softmax(0)[0].item(), abs=0.04)


def test_itm_uses_matching_and_mismatched_pairs(make_objective: Make, pairs: SubjectBatch) -> None:
    """Three of each: images with their words, with others' words, others' images with the words."""
    objective, image_features = make_objective(), []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        image_features.append((args[0], args[1]))

    objective.eval()
    handle = objective.encoder.qformer.register_forward_pre_hook(note)
    objective(pairs, context())
    handle.remove()
    features, ids_ = next((features, words) for features, words in image_features if len(features) == 18)
    own_features, own_words = features[:6], ids_[:6]
    assert torch.equal(features[12:], own_features) and torch.equal(ids_[6:12], own_words)
    for row in range(6):
        assert not torch.equal(features[6 + row], own_features[row])
        assert any(torch.equal(features[6 + row], other) for other in own_features)
        assert any(torch.equal(ids_[12 + row], other) for other in own_words)


@torch.no_grad()
def test_itm_predicts_matching_pairs(make_objective: Make, pairs: SubjectBatch) -> None:
    """A head that predicts a match with logits 5 and -5 has a loss of 10 on two of three pairs."""
    objective = make_objective()
    objective.heads["matching"].weight.zero_()
    objective.heads["matching"].bias.copy_(torch.tensor([-5.0, 5.0]))
    assert objective(pairs, context())["matching"].item() == pytest.approx(10 * 2 / 3, rel=1e-3)


@torch.no_grad()
def test_batch_of_one_subject_has_no_negatives(make_objective: Make, pairs: SubjectBatch) -> None:
    same = cast(SubjectBatch, {**pairs, "identity": torch.zeros(6, dtype=torch.int64)})
    losses = make_objective()(same, context())
    assert losses["matching"] == 0 and losses["contrast"] == pytest.approx(0, abs=1e-6) and losses["retrieval"] == 1
    assert losses["loss"].isfinite()


# --------------------------------------------------------------------------------- words and reconstruction


@torch.no_grad()
def test_itg_ignores_padding(make_objective: Make, pairs: SubjectBatch) -> None:
    short, long = make_objective(max_caption_tokens=24), make_objective(max_caption_tokens=31)
    assert short.eval()(pairs, context())["generation"] == pytest.approx(
        long.eval()(pairs, context())["generation"].item(), rel=1e-5
    )


@torch.no_grad()
def test_itg_starts_with_the_dec_token(make_objective: Make, pairs: SubjectBatch) -> None:
    objective, image_features = make_objective(), []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        if args[3] is AttentionPattern.CAUSAL:
            image_features.append(args[1])

    handle = objective.encoder.qformer.register_forward_pre_hook(note)
    objective(pairs, context())
    handle.remove()
    (words,) = image_features
    assert objective.tokenizer.convert_ids_to_tokens(words[0])[:2] == ["[DEC]", "a"]
    assert (words[:, 0] == objective.tokenizer.bos_token_id).all()


@torch.no_grad()
def test_itg_depends_on_the_image(make_objective: Make, pairs: SubjectBatch) -> None:
    objective = make_objective()
    objective.eval()
    turned = cast(SubjectBatch, {**pairs, "reference": pairs["reference"].flip(0)})
    assert objective(pairs, context())["generation"] != objective(turned, context())["generation"]


@torch.no_grad()
def test_loss_weights_and_multimodal_every(make_objective: Make, pairs: SubjectBatch) -> None:
    config = {"contrast": 0.5, "matching": 2.0, "generation": 3.0, "reconstruction": 10.0}
    objective = make_objective(
        itc_weight=0.5, itm_weight=2.0, itg_weight=3.0, reconstruction_weight=10.0, multimodal_every=3
    )
    losses = objective(pairs, context(step=3))
    assert losses["loss"].item() == pytest.approx(sum(config[name] * losses[name].item() for name in config), rel=1e-5)
    paused = objective(pairs, context(step=4))
    assert set(paused) == {"reconstruction", "loss"} and paused["loss"].item() == pytest.approx(
        10 * paused["reconstruction"].item()
    )


def test_losses_of_weight_zero_are_left_out(make_objective: Make, pairs: SubjectBatch, tmp_path: Path) -> None:
    objective = make_objective(itm_weight=0.0, itg_weight=0.0)
    losses = objective(pairs, context())
    assert set(losses) == {"contrast", "retrieval", "loss"} and losses["loss"] == losses["contrast"]
    still = [objective.heads[name] for name in ("matching", "language", "reconstruction")]
    assert moved_parameters(objective).isdisjoint(ids(p for head in still for p in head.parameters()))
    objective.export(tmp_path)
    assert load_heads(dict(objective.heads.items()), tmp_path) == ["contrastive"]


def test_trainable_parameters(make_objective: Make, pairs: SubjectBatch) -> None:
    objective = make_objective(reconstruction_weight=1.0)
    encoder = objective.encoder
    still = ids(encoder.image_encoder.tower.parameters())
    assert moved_parameters(objective) == ids(objective.parameters()) - still
    objective.train()(pairs, context())["loss"].backward()
    assert not any(with_gradient(encoder.image_encoder.tower.parameters()))
    read = [encoder.qformer.query_tokens, encoder.image_encoder.norm.weight, encoder.projection.up.weight]
    heads = [
        objective.heads["contrastive"].temperature,
        objective.heads["matching"].weight,
        objective.heads["reconstruction"].places,
    ]
    assert all(with_gradient([*read, *heads, objective.heads["language"].dense.weight]))
    plain = moved_parameters(
        make_objective()
    )  # without reconstruction, what only it needs rests: processes would wait for it
    assert plain == ids(objective.parameters()) - still - ids(objective.heads["reconstruction"].parameters()) - ids(
        encoder.projection.parameters()
    )


@torch.no_grad()
def test_samples_show_reconstructions(make_objective: Make, pairs: SubjectBatch) -> None:
    assert make_objective().sample_images(pairs) == []
    columns = make_objective(reconstruction_weight=1.0).sample_images(pairs)
    assert [tuple(column.shape) for column in columns] == [(6, 3, 32, 32), (6, 3, 16, 16), (6, 3, 16, 16)]


def test_export_can_be_continued(make_objective: Make, tmp_path: Path) -> None:
    objective = make_objective(reconstruction_weight=1.0)
    objective.export(tmp_path)
    heads = init_heads(SHAPES["tiny"].qformer, 16, [tmp_path])
    assert all(torch.equal(heads.state_dict()[name], tensor) for name, tensor in objective.heads.state_dict().items())


def test_targets_with_their_captions_replace_references(make_objective: Make, pairs: SubjectBatch) -> None:
    objective = make_objective(image="target")
    swapped = cast(SubjectBatch, {**pairs, "reference": pairs["target"], "reference_caption": pairs["caption"]})
    for name, loss in make_objective()(swapped, context()).items():
        torch.testing.assert_close(objective(pairs, context())[name], loss)
    with pytest.raises(ConfigError, match="only references are reconstructed"):
        make_objective(image="target", reconstruction_weight=1.0)
