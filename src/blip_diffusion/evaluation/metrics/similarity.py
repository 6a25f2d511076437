"""Similarity metrics: cosines between features of images, or of images and text, from frozen networks.

A metric scores images against instances. The instances are separate arguments, so that the same images can be scored
against wrong subjects or prompts, for a lower bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject
from blip_diffusion.evaluation.features.clip import Clip
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.evaluation.metrics.statistics import centred_cosine

DREAMBOOTH = "mean cosine to all real images of the subject, the reference included (Ruiz et al. 2023)"
SIMILARITY, ACCURACY = "cosine_similarity", "top1_accuracy"
"""Names of the two scores that every similarity metric has."""


@dataclass(frozen=True)
class MetricInfo:
    """Description of a metric in a report."""

    name: str
    kind: Literal["subject", "text"]
    family: str
    backbone: str
    preprocessing: str
    protocol: str
    scores: Mapping[str, str]  # label by name; the first one is the metric's main score
    bounds: tuple[str, str] = (
        "other-instance",
        "ground-truth",
    )  # conditions that are the lower and upper bound of a subject score

    @property
    def main(self) -> str:
        """The name of the main score."""
        return next(iter(self.scores))


class Metric(Protocol):
    """A function from images and their instances to scores."""

    info: MetricInfo

    def __call__(self, images: Sequence[Path], instances: Sequence[Instance]) -> dict[str, Tensor]:
        """Return each score of each image (B,); NaN if it doesn't apply to an instance."""
        ...


class TextEncoder(Protocol):
    """Texts to unit vectors."""

    backbone: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings (B, F)."""
        ...


class SubjectSimilarity:
    """Subject fidelity: the centred cosine to the reference, of features averaged over the subject's mask."""

    def __init__(self, name: str, features: CachedFeatures, bench: Bench, *, width: int | None = None) -> None:
        """`width` is the number of leading features that describe the subject; by default all do."""
        self._features, self._width = features, width
        self._index = {subject.name: i for i, subject in enumerate(bench.subjects)}
        self._references = self._of([subject.images[0] for subject in bench.subjects])  # (N, F)
        views = [path for subject in bench.subjects for path in subject.images[1:] or subject.images]
        self._centre = self._of(views).mean(0)
        extractor, count = features.extractor, len(bench.subjects)
        self.info = MetricInfo(
            name, "subject", extractor.family, extractor.backbone, extractor.preprocessing,
            f"centred cosine to the reference; top-1 among {count} subjects is {1 / count:.3f} by chance",
            {SIMILARITY: "similarity to the reference", ACCURACY: "subject top-1"},
        )  # fmt: skip

    def __call__(self, images: Sequence[Path], instances: Sequence[Instance]) -> dict[str, Tensor]:
        targets = torch.tensor([self._index[instance.subject.name] for instance in instances])
        features = self._of(images)
        cosines = centred_cosine(features, self._references, self._centre, self._references.mean(0))  # (B, N)
        return _similarity_and_accuracy(cosines, targets)

    def _of(self, images: Sequence[Path]) -> Tensor:
        """Return the compared features (B, F)."""
        return self._features(images)[:, : self._width]


class DreamBoothSimilarity:
    """DINO or CLIP-I: the mean cosine between an image and all real images of the subject (Ruiz et al. 2023).

    A real image is compared with the other real images; a copied reference with all of them.
    """

    def __init__(self, name: str, features: CachedFeatures, bench: Bench) -> None:
        self._features, self._subjects = features, bench.subjects
        extractor = features.extractor
        self.info = MetricInfo(
            name, "subject", extractor.family, extractor.backbone, extractor.preprocessing, DREAMBOOTH,
            {SIMILARITY: name, ACCURACY: "subject top-1"},
        )  # fmt: skip

    def __call__(self, images: Sequence[Path], instances: Sequence[Instance]) -> dict[str, Tensor]:
        features = F.normalize(self._features(images), dim=1)
        means = torch.stack([self._mean_cosines(one, features, images) for one in self._subjects], dim=1)  # (B, N)
        index = {subject.name: i for i, subject in enumerate(self._subjects)}
        return _similarity_and_accuracy(means, torch.tensor([index[one.subject.name] for one in instances]))

    def _mean_cosines(self, subject: BenchSubject, features: Tensor, images: Sequence[Path]) -> Tensor:
        """Return mean cosines (B,) to one subject's images."""
        cosines = features @ F.normalize(self._features(subject.images), dim=1).T  # (B, P)
        others = subject.images[1:] if len(subject.images) > 1 else ()
        counts = torch.tensor([[not (path == real and path in others) for real in subject.images] for path in images])
        return (cosines * counts).sum(1) / counts.sum(1)


class ClipTextSimilarity:
    """CLIP-T: the cosine between an image and its prompt (Ruiz et al. 2023)."""

    def __init__(self, name: str, features: CachedFeatures, clip: Clip, bench: Bench) -> None:
        self._features, self._clip, self._bench = features, clip, bench
        count = len(bench.prompt_ids)
        self.info = MetricInfo(
            name, "text", clip.family, clip.backbone, clip.preprocessing,
            f'cosine to the prompt without subject tokens, "a dog on the beach"; top-1 among {count} prompts is '
            f"{1 / count:.3f} by chance",
            {SIMILARITY: name, ACCURACY: "prompt top-1"},
        )  # fmt: skip

    def __call__(self, images: Sequence[Path], instances: Sequence[Instance]) -> dict[str, Tensor]:
        features = F.normalize(self._features(images), dim=1)
        return prompt_retrieval(features, instances, self._bench, self._embed)

    def _embed(self, texts: list[str]) -> Tensor:
        return F.normalize(self._clip.encode_text(texts), dim=1)


class EmbedFn(Protocol):
    """Texts to unit vectors (B, F)."""

    def __call__(self, texts: list[str], /) -> Tensor: ...


def prompt_retrieval(
    features: Tensor, instances: Sequence[Instance], bench: Bench, embed: EmbedFn
) -> dict[str, Tensor]:
    """Compare unit vectors (B, F) of images with all prompts of their subjects.

    Returns:
        The cosine to an image's prompt, and 1 if no other prompt of the benchmark is closer; (B,) each.
    """
    scores = {SIMILARITY: torch.zeros(len(instances)), ACCURACY: torch.zeros(len(instances))}
    index = {prompt_index: i for i, prompt_index in enumerate(bench.prompt_ids)}
    for subject in {instance.subject.name: instance.subject for instance in instances}.values():
        prompts = [bench.prompt(subject, number).sentence(subject.category) for number in bench.prompt_ids]
        rows = [i for i, instance in enumerate(instances) if instance.subject == subject]
        targets = torch.tensor([index[instances[i].prompt_index] for i in rows])
        cosines = features[rows] @ embed(prompts).T  # (b, P)
        for name, values in _similarity_and_accuracy(cosines, targets).items():
            scores[name][rows] = values
    return scores


def _similarity_and_accuracy(cosines: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return the cosine (B,) to each row's target column of (B, N), and 1 if that is the largest."""
    similarity = cosines[torch.arange(len(targets)), targets]
    return {SIMILARITY: similarity, ACCURACY: (cosines.argmax(1) == targets).float()}
