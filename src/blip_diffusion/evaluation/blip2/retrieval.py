"""Retrieval in both directions among held-out composites, before and after reranking by matching; zero-shot categories.

Letters: `N` images, `T` different captions, `C` categories.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blip_diffusion.blip2 import Blip2
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionParser, scene_words
from blip_diffusion.evaluation.blip2.captions import HeldOut, over_subjects, slices
from blip_diffusion.evaluation.metrics.retrieval import recall_at
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.prompts import Words

KS = (1, 5, 10)
Recalls = dict[str, dict[int, float]]
"""Recalls by direction, "image to text" and "text to image", and by k."""


@dataclass(frozen=True)
class RetrievalScores:
    """Recall at `KS`. All images with one caption are relevant for it."""

    images: int
    sentences: int
    reranked: int
    contrast: Recalls
    matching: Recalls | None  # `None` without reranking


@torch.no_grad()
def image_features(model: Blip2, held: HeldOut) -> Tensor:
    """Return the image encoder's features (N, P, V) of held-out images, after the layer norm."""
    return torch.cat([model.features(held.pixels[rows].to(model.device)) for rows in slices(len(held))])


@torch.no_grad()
def score_retrieval(model: Blip2, held: HeldOut, features: Tensor, *, rerank: int = 32) -> RetrievalScores:
    """Score retrieval by ITC, and after reranking the best candidates of each query by ITM's logit plus cosine.

    Args:
        model: A model with the head of ITC, and for reranking that of ITM.
        held: Images and captions.
        features: The images' `image_features` (N, P, V).
        rerank: Number of candidates of each query that are reranked; 0 for none.

    Returns:
        The recalls.

    Raises:
        CheckpointError: If the model has no such head.
    """
    sentences = sorted(set(held.captions))
    relevant = torch.tensor([[caption == other for other in sentences] for caption in held.captions])  # (N, T)
    vectors = _vectors(model, features)
    words = model.sentence_words(sentences)
    cosines = model.itc(vectors, model.sentence_vectors(words)).cpu()  # (N, T)
    before = {"image to text": (cosines, relevant), "text to image": (cosines.T, relevant.T)}
    after = None
    if rerank:
        to_text, to_image = _reranked(model, features, words, cosines, rerank)
        after = _recalls({"image to text": (to_text, relevant), "text to image": (to_image, relevant.T)})
    return RetrievalScores(len(held), len(sentences), rerank, _recalls(before), after)


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


def _recalls(tables: dict[str, tuple[Tensor, Tensor]]) -> Recalls:
    return {
        name: {k: float(recall_at(scores, relevant, k).mean()) for k in KS}
        for name, (scores, relevant) in tables.items()
    }


def _reranked(model: Blip2, features: Tensor, words: Words, cosines: Tensor, rerank: int) -> tuple[Tensor, Tensor]:
    """Return scores (N, T) and (T, N): ITM's logit + cosine for the best candidates of each row, -100 for others."""
    n, t = cosines.shape
    by_image = cosines.topk(min(rerank, t), dim=1).indices
    by_text = cosines.T.topk(min(rerank, n), dim=1).indices
    rows = torch.arange(n)[:, None].expand_as(by_image).flatten()
    columns = torch.arange(t)[:, None].expand_as(by_text).flatten()
    needed = {*zip(rows.tolist(), by_image.flatten().tolist(), strict=True)}
    needed |= {*zip(by_text.flatten().tolist(), columns.tolist(), strict=True)}
    pairs = torch.tensor(sorted(needed))
    logits = torch.cat([_logits(model, features, words, pairs[some]) for some in slices(len(pairs))]).cpu()
    table = torch.full((n, t), -torch.inf)
    table[pairs[:, 0], pairs[:, 1]] = logits
    to_text, to_image = (torch.full_like(scores, -100.0) for scores in (cosines, cosines.T))
    to_text.scatter_(1, by_image, (table + cosines).gather(1, by_image))
    to_image.scatter_(1, by_text, (table + cosines).T.gather(1, by_text))
    return to_text, to_image


def _logits(model: Blip2, features: Tensor, words: Words, pairs: Tensor) -> Tensor:
    images, texts = pairs.unbind(1)
    chosen = Words(words.input_ids[texts], words.attention_mask[texts])
    return model.itm(features[images], chosen)[:, 1].float()
