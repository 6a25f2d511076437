"""Retrieval in both directions among held-out composites, before and after reranking by matching; zero-shot categories.

Letters: `N` images, `T` different captions, `C` categories.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from blip_diffusion.blip2 import Blip2, RerankScore
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionParser, scene_words
from blip_diffusion.evaluation.blip2.captions import HeldOut, over_subjects, slices
from blip_diffusion.evaluation.metrics.retrieval import recall_at
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.prompts import Words

KS = (1, 5, 10)
Recalls = dict[str, dict[int, Estimate]]
"""Recalls by direction, "image to text" and "text to image", and by k."""
Hits = dict[str, dict[int, Tensor]]  # recall of each query, by direction and k
Directions = dict[str, tuple[Tensor, Tensor]]  # relevant candidates (N, M), and the subject of each query (N,)


@dataclass(frozen=True)
class RetrievalScores:
    """Recall at `KS` of ITC and of each `RerankScore`. All images with one caption are relevant for it."""

    images: int
    sentences: int
    reranked: int
    recalls: dict[str, Recalls]
    gain: dict[str, Recalls]  # of each reranking over ITC


@torch.no_grad()
def image_features(model: Blip2, held: HeldOut) -> Tensor:
    """Return the image encoder's features (N, P, V) of held-out images, after the layer norm."""
    return torch.cat([model.features(held.pixels[rows].to(model.device)) for rows in slices(len(held))])


@torch.no_grad()
def score_retrieval(model: Blip2, held: HeldOut, features: Tensor, *, rerank: int = 32) -> RetrievalScores:
    """Score retrieval by ITC, and after reranking the best candidates of each query with ITM.

    Args:
        model: A model with the head of ITC, and for reranking that of ITM.
        held: Images and captions.
        features: The images' `image_features` (N, P, V).
        rerank: Number of candidates of each query that are reranked; 0 for none.

    Returns:
        The recalls, with 95 % bootstrap intervals over subjects.

    Raises:
        CheckpointError: If the model has no such head.
    """
    sentences = sorted(set(held.captions))
    relevant = torch.tensor([[caption == other for other in sentences] for caption in held.captions])  # (N, T)
    vectors = _vectors(model, features)
    words = model.sentence_words(sentences)
    cosines = model.itc(vectors, model.sentence_vectors(words)).cpu()  # (N, T)
    rankings = {"ITC": (cosines, cosines.T)}
    if rerank:
        rankings |= _reranked(model, features, words, cosines, rerank)
    subject_of = [held.subjects[held.captions.index(sentence)] for sentence in sentences]
    directions = {"image to text": (relevant, held.subjects), "text to image": (relevant.T, torch.stack(subject_of))}
    hits = {name: _hits(scores, directions) for name, scores in rankings.items()}
    gains = {name: _difference(hits[name], hits["ITC"]) for name in list(hits)[1:]}
    estimated = [{name: _estimates(one, directions) for name, one in table.items()} for table in (hits, gains)]
    return RetrievalScores(len(held), len(sentences), rerank, *estimated)


@torch.no_grad()
def zero_shot_accuracy(model: Blip2, world: AssetLibrary, held: HeldOut, features: Tensor) -> dict[int, Estimate]:
    """Return the share of images whose category is among the k best by ITC (Radford et al. 2021, 3.1).

    The candidates are the sentences "a {category}".

    Args:
        model: A model with the head of ITC.
        world: The asset library, whose categories are the candidates.
        held: Images and captions.
        features: The images' `image_features` (N, P, V).

    Returns:
        By k of `KS`, accuracy in [0, 1] with its 95 % bootstrap interval over subjects.
    """
    categories = sorted({cutout.category for cutout in world.cutouts})
    parse = CaptionParser(scene_words(world))
    truth = [parse(caption).category for caption in held.captions]
    relevant = torch.tensor([[category == true for category in categories] for true in truth])  # (N, C)
    words = model.sentence_words([f"a {category}" for category in categories])
    cosines = model.itc(_vectors(model, features), model.sentence_vectors(words)).cpu()  # (N, C)
    return {k: over_subjects(recall_at(cosines, relevant, k), held.subjects) for k in KS}


def _vectors(model: Blip2, features: Tensor) -> Tensor:
    """Return the unit vectors (N, Q, E) of all queries."""
    return torch.cat([model.image_vectors(features[rows]) for rows in slices(len(features))])


def _hits(scores: tuple[Tensor, Tensor], directions: Directions) -> Hits:
    """Return the recall of each query (N,) or (T,), by direction and k."""
    return {
        direction: {k: recall_at(table, relevant, k) for k in KS}
        for table, (direction, (relevant, _)) in zip(scores, directions.items(), strict=True)
    }


def _difference(a: Hits, b: Hits) -> Hits:
    return {direction: {k: a[direction][k] - b[direction][k] for k in KS} for direction in a}


def _estimates(hits: Hits, directions: Directions) -> Recalls:
    return {
        direction: {k: over_subjects(one, directions[direction][1]) for k, one in row.items()}
        for direction, row in hits.items()
    }


def _reranked(
    model: Blip2, features: Tensor, words: Words, cosines: Tensor, rerank: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return scores (N, T) and (T, N) by `RerankScore`: the best candidates of each row, then the others by ITC."""
    by_image, by_text = _best(cosines, rerank), _best(cosines.T, rerank)
    pairs = (by_image | by_text.T).nonzero()  # (P, 2)
    logits = torch.cat([_logits(model, features, words, pairs[some]) for some in slices(len(pairs))]).cpu()
    rows, columns = pairs.unbind(1)
    others = cosines.double() - 1e6
    tables = {}
    for kind in get_args(RerankScore):
        scores = others.clone()
        scores[rows, columns] = model.rerank_scores(logits, cosines[rows, columns], kind).double()
        tables[kind] = torch.where(by_image, scores, others), torch.where(by_text, scores.T, others.T)
    return tables


def _best(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` highest scores of each row."""
    highest = scores.topk(min(count, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, highest, True)


def _logits(model: Blip2, features: Tensor, words: Words, pairs: Tensor) -> Tensor:
    images, texts = pairs.unbind(1)
    chosen = Words(words.input_ids[texts], words.attention_mask[texts])
    return model.itm(features[images], chosen).float()
