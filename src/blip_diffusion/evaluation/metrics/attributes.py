"""The metric `text`: retrieval of an image's prompt, and classification of each attribute in the prompt.

One linear probe maps features of an image to MiniLM's sentence space; others classify scene, colour and style. Count,
position and accessory have probes of patches (`layout_probes`). All are fitted to `probe_data`. Unlike CLIP-T, the
metric supports only MiniBench's prompt templates. Its accuracy on the ground truth is reported with each of its scores.
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
from blip_diffusion.evaluation.metrics.layout_probes import (
    PatchExtractor,
    axes_of,
    fit_layout_probes,
    image_and_patch_features,
    place_of,
)
from blip_diffusion.evaluation.metrics.probe_data import ProbeData
from blip_diffusion.evaluation.metrics.similarity import (
    ACCURACY,
    SIMILARITY,
    MetricInfo,
    TextEncoder,
    prompt_retrieval,
)
from blip_diffusion.images import open_image

ATTRIBUTES = ("scene", "colour", "count", "position", "style", "accessory")
WHOLE_IMAGE = ("scene", "colour", "style")
"""Attributes that are classified from features of the whole image."""
UNSPECIFIED = {attribute: str(getattr(PromptSpec(), attribute)) for attribute in ATTRIBUTES}


class AttributeMetric:
    """Prompt fidelity: retrieval of the prompt among the benchmark's, and the accuracy of each of its attributes."""

    def __init__(
        self,
        features: CachedFeatures,
        patches: PatchExtractor,
        encoder: TextEncoder,
        bench: Bench,
        data: ProbeData,
        *,
        name: str = "text",
    ) -> None:
        """Fit the probes. Raises `InputError` for a benchmark other than MiniBench.

        Args:
            features: Features of the images that are scored.
            patches: The network of `features`, which also returns features of patches.
            encoder: The text encoder.
            bench: The benchmark with the prompts.
            data: The images to which the probes are fitted.
            name: The metric's name.
        """
        if not bench.world:
            raise InputError("The metric text supports only MiniBench's prompts: use clip-b32 for another benchmark.")
        self._features, self._bench, self._encoder = features, bench, encoder
        probe_features, probe_patches = image_and_patch_features(patches, data.images)
        embedded = encoder(data.captions)
        self._centre = embedded.mean(0)
        self._to_sentence = fit_probe(probe_features, embedded - self._centre)
        self._classifiers = {
            attribute: fit_classifier(probe_features, [str(getattr(request, attribute)) for request in data.requests])
            for attribute in WHOLE_IMAGE
        }
        self._layout = fit_layout_probes(patches, data.images, probe_patches, data.masks, data.requests)
        self.info = self._describe(name, len(data.images))

    def _describe(self, name: str, images: int) -> MetricInfo:
        prompts, scenes = len(self._bench.prompt_ids), len(self._classifiers["scene"].labels)
        protocol = (
            f"linear probes of images, patches and crops, fitted to {images} composites of held-out subjects beside "
            f"the benchmark's, in training scenes, through the generator's autoencoder; a position is right if "
            f"the row and column that it names are; by chance, top-1 among "
            f"{prompts} prompts is {1 / prompts:.3f}, among {scenes} scenes {1 / scenes:.3f}"
        )
        labels = {SIMILARITY: "similarity to the prompt", ACCURACY: "prompt top-1"}
        labels |= {attribute: f"{attribute} correct" for attribute in ATTRIBUTES}
        extractor = self._features.extractor
        backbone = f"{extractor.backbone}; {self._encoder.backbone}"
        return MetricInfo(name, "text", extractor.family, backbone, extractor.preprocessing, protocol, labels)

    def __call__(self, images: Sequence[Path], instances: Sequence[Instance]) -> dict[str, Tensor]:
        features = self._features(images)
        scores = prompt_retrieval(F.normalize(self._to_sentence(features), dim=1), instances, self._bench, self._embed)
        for attribute in ATTRIBUTES:
            scores[attribute] = self._correct(attribute, images, instances, features)
        return scores

    def _correct(
        self, attribute: str, images: Sequence[Path], instances: Sequence[Instance], features: Tensor
    ) -> Tensor:
        """Return 1 where an attribute is as requested, 0 where it is not, and NaN where none is requested."""
        targets = [str(getattr(instance.prompt.request, attribute)) for instance in instances]
        correct = torch.full((len(targets),), float("nan"))
        for group, rows in self._groups(attribute, targets).items():
            labels = self._classify(attribute, group, [images[row] for row in rows], features[rows])
            correct[rows] = torch.tensor(
                [float(targets[row] == label) for row, label in zip(rows, labels, strict=True)]
            )
        return correct

    @staticmethod
    def _groups(attribute: str, targets: Sequence[str]) -> dict[str, list[int]]:
        """Group the rows that request an attribute: accessories by place, positions by axes, all else together."""
        keys = {"accessory": place_of, "position": axes_of}
        groups: dict[str, list[int]] = {}
        for row, value in enumerate(targets):
            if value != UNSPECIFIED[attribute]:
                groups.setdefault(keys[attribute](value) if attribute in keys else "", []).append(row)
        return groups

    def _classify(self, attribute: str, group: str, images: Sequence[Path], features: Tensor) -> list[str]:
        if attribute in WHOLE_IMAGE:
            return self._classifiers[attribute](features)
        opened = [open_image(path) for path in images]
        if attribute == "accessory":
            return self._layout.accessory(group, opened)
        return self._layout.position(group, opened) if attribute == "position" else self._layout.count(opened)

    def _embed(self, texts: list[str]) -> Tensor:
        return F.normalize(self._encoder(texts) - self._centre, dim=1)
