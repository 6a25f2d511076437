"""CIDEr-D and BLEU of captions against several references each, as in the evaluation of COCO captions."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

MAX_N = 4
SIGMA = 6.0
"""Standard deviation of CIDEr-D's penalty on the difference of lengths, in words."""

NGrams = Counter[tuple[str, ...]]


def words_of(caption: str) -> list[str]:
    """Return the lower-case words of a caption, without punctuation."""
    return re.findall(r"[\w']+", caption.lower())


def ngrams_of(words: Sequence[str], n: int) -> NGrams:
    """Count the n-grams of a sentence."""
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
    """Return the CIDEr-D of each caption (N,), from 0 to 10 (Vedantam, Zitnick & Parikh 2015, section 4).

    For n = 1 to 4: the cosine of tf-idf vectors of n-grams, in which a caption's counts are clipped to the
    reference's, times exp(-(difference of lengths)² / 2σ²); averaged over references and n, times 10. The document
    frequencies are those of the references of all images.

    Args:
        captions: One caption for each of N images.
        references: One or more references for each image.

    Example:
        >>> cider_d(["a dog on the beach"], [["a dog on the beach", "a dog by the sea"]])
    """
    ours = [words_of(caption) for caption in captions]
    theirs = [[words_of(one) for one in group] for group in references]
    scores = torch.zeros(len(captions), dtype=torch.float64)
    for n in range(1, MAX_N + 1):
        frequency = Counter(gram for group in theirs for gram in {gram for one in group for gram in ngrams_of(one, n)})
        idf = {gram: math.log(len(theirs) / count) for gram, count in frequency.items()}
        unseen = math.log(len(theirs))
        for row, (own, group) in enumerate(zip(ours, theirs, strict=True)):
            caption = _weighted(ngrams_of(own, n), idf, unseen)
            for one in group:
                penalty = math.exp(-((len(own) - len(one)) ** 2) / (2 * SIGMA**2))
                similarity = _clipped_cosine(caption, _weighted(ngrams_of(one, n), idf, unseen))
                scores[row] += 10 * penalty * similarity / (MAX_N * len(group))
    return scores.float()


def _weighted(counts: NGrams, idf: Mapping[tuple[str, ...], float], unseen: float) -> dict[tuple[str, ...], float]:
    return {gram: count * idf.get(gram, unseen) for gram, count in counts.items()}


def _clipped_cosine(a: Mapping[tuple[str, ...], float], b: Mapping[tuple[str, ...], float]) -> float:
    norms = math.prod(math.sqrt(sum(value**2 for value in vector.values())) for vector in (a, b))
    product = sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b)
    return product / norms if norms else 0.0


def bleu_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
    """Return what BLEU-4 is computed from, for each caption (10, N).

    The rows are the numbers of n-grams that a reference has too, for n = 1 to 4; the numbers of all n-grams; the
    caption's length in words; and the length of the reference nearest in length.
    """
    columns = []
    for caption, group in zip(captions, references, strict=True):
        own, others = words_of(caption), [words_of(one) for one in group]
        matches, totals = [], []
        for n in range(1, MAX_N + 1):
            counts, allowed = ngrams_of(own, n), NGrams()
            for one in others:
                allowed |= ngrams_of(one, n)
            matches.append((counts & allowed).total())
            totals.append(counts.total())
        nearest = min((len(one) for one in others), key=lambda length: (abs(length - len(own)), length))
        columns.append([*matches, *totals, len(own), nearest])
    return torch.tensor(columns, dtype=torch.float32).T


def bleu(counts: Tensor) -> Tensor:
    """Return the corpus BLEU-4 (R,) of sums or means (10, R) of `bleu_counts` (Papineni et al. 2002, section 2.3).

    The geometric mean of the four precisions, times exp(1 - reference length / caption length) if the captions are
    shorter. 0 if no 4-gram matches.
    """
    matches, totals = counts[:MAX_N], counts[MAX_N : 2 * MAX_N]
    own, nearest = counts[2 * MAX_N :]
    precision = (matches / totals.clamp(min=1e-12)).log().mean(dim=0).exp()
    brevity = (1 - nearest / own.clamp(min=1e-12)).clamp(max=0).exp()
    return precision * brevity
