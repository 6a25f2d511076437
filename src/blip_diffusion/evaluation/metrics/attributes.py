"""The metric `text`: retrieval of an image's prompt, and classification of each attribute in the prompt.

One linear probe maps features of an image to MiniLM's sentence space; others classify scene, colour, count, position,
style and accessory. They are fitted to `probe_data` in seconds. Unlike CLIP-T, it supports only MiniBench's prompt
templates. Its accuracy on the ground truth is reported with each of its scores.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.features.linear_probe import fit_classifier, fit_probe
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.evaluation.metrics.probe_data import ProbeData
from blip_diffusion.evaluation.metrics.similarity import (
    ACCURACY,
    SIMILARITY,
    MetricInfo,
    TextEncoder,
    prompt_retrieval,
)

ATTRIBUTES = ("scene", "colour", "count", "position", "style", "accessory")
UNSPECIFIED = {attribute: str(getattr(PromptSpec(), attribute)) for attribute in ATTRIBUTES}


class AttributeMetric:
    """Prompt fidelity: retrieval of the prompt among the benchmark's, and the accuracy of each of its attributes."""

    def __init__(
        self, features: CachedFeatures, encoder: TextEncoder, bench: Bench, data: ProbeData, *, name: str = "text"
    ) -> None:
        """Fit the probes. Raises `InputError` for a benchmark other than MiniBench."""
        if not bench.world:
            raise InputError("The metric text supports only MiniBench's prompts: use clip-b32 for another benchmark.")
        self._features, self._bench, self._encoder = features, bench, encoder
        probe_features = features.of_images(data.images)
        embedded = encoder(data.captions)
        self._centre = embedded.mean(0)
        self._to_sentence = fit_probe(probe_features, embedded - self._centre)
        self._classifiers = {
            attribute: fit_classifier(probe_features, [str(getattr(request, attribute)) for request in data.requests])
            for attribute in ATTRIBUTES
        }
        self.info = self._describe(name, len(data.images))

    def _describe(self, name: str, images: int) -> MetricInfo:
        prompts, scenes = len(self._bench.prompt_ids), len(self._classifiers["scene"].labels)
        protocol = (
            f"linear probes fitted to {images} composites of held-out subjects outside of the benchmark, in training "
            f"scenes, through the generator's autoencoder; by chance, top-1 among {prompts} prompts is "
            f"{1 / prompts:.3f}, among {scenes} scenes {1 / scenes:.3f}"
        )
        labels = {SIMILARITY: "similarity to the prompt", ACCURACY: "prompt top-1"}
        labels |= {attribute: f"{attribute} correct" for attribute in ATTRIBUTES}
        extractor = self._features.extractor
        backbone = f"{extractor.backbone}; {self._encoder.backbone}"
        return MetricInfo(name, "text", extractor.family, backbone, extractor.preprocessing, protocol, labels)

    def __call__(self, images: Sequence[Path], instances: Sequence[Instance]) -> dict[str, Tensor]:
        features = self._features(images)
        scores = prompt_retrieval(F.normalize(self._to_sentence(features), dim=1), instances, self._bench, self._embed)
        for attribute, classify in self._classifiers.items():
            targets = [str(getattr(instance.prompt.request, attribute)) for instance in instances]
            pairs = zip(targets, classify(features), strict=True)
            correct = [a == b if a != UNSPECIFIED[attribute] else float("nan") for a, b in pairs]
            scores[attribute] = torch.tensor(correct, dtype=torch.float)
        return scores

    def _embed(self, texts: list[str]) -> Tensor:
        return F.normalize(self._encoder(texts) - self._centre, dim=1)
