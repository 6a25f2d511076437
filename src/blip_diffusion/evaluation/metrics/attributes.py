"""The text judge of our own: which sentence a picture answers, and whether it has each thing that was asked for.

A linear probe leads from what `focus` sees to MiniLM's space of sentences, others to scene, colour, count, position,
style and accessory. They are made from `lessons` alone, in seconds. It is no CLIP-T: it knows the closed grammar of
the world, and its own accuracy on the ground truth stands beside every score of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.data.synthetic.prompt_templates import Request
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.features.linear_probe import fit_classifier, fit_probe
from blip_diffusion.evaluation.instances import Case
from blip_diffusion.evaluation.metrics.probe_data import Lessons
from blip_diffusion.evaluation.metrics.similarity import Card, Seen, prompts_named

ASPECTS = ("scene", "colour", "count", "position", "style", "accessory")
UNASKED = {aspect: str(getattr(Request(), aspect)) for aspect in ASPECTS}


class Sentences(Protocol):
    """Sentences to unit vectors, as `MiniLM` does."""

    backbone: str

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """(B, F)."""
        ...


class TextJudge:
    """Names the prompt among the bench's, and checks every aspect that the prompt asks for."""

    def __init__(self, seen: Seen, reader: Sentences, bench: Bench, studied: Lessons, *, name: str = "text") -> None:
        if not bench.world:
            raise InputError("The judge text knows MiniBench's prompts alone: judge another bench by a CLIP.")
        self._seen, self._bench = seen, bench
        features = seen.of(studied.pictures)
        self._read = reader
        words = reader(studied.sentences)
        self._centre = words.mean(0)
        self._speak = fit_probe(features, words - self._centre)
        self._checks = {
            aspect: fit_classifier(features, [str(getattr(request, aspect)) for request in studied.requests])
            for aspect in ASPECTS
        }
        self.card = self._card(name, seen, reader, len(studied.pictures))

    def _card(self, name: str, seen: Seen, reader: Sentences, pictures: int) -> Card:
        prompts, scenes = len(self._bench.asked), len(self._checks["scene"].labels)
        protocol = (
            f"linear probes made from {pictures} composites of held-out subjects beside the bench's in the world's "
            f"training scenes, through the generator's autoencoder; by chance, one of {prompts} prompts is named in "
            f"{1 / prompts:.3f} of the pictures, one of {scenes} scenes in {1 / scenes:.3f}"
        )
        metrics = {"match": "like its sentence", "named": "names the prompt", **{a: f"has its {a}" for a in ASPECTS}}
        network, backbone = seen.network, f"{seen.network.backbone}; {reader.backbone}"
        return Card(name, "text", network.family, backbone, network.preprocessing, protocol, metrics)

    def __call__(self, pictures: Sequence[Path], cases: Sequence[Case]) -> dict[str, Tensor]:
        features = self._seen(pictures)
        spoken = F.normalize(self._speak(features), dim=1)
        scores = prompts_named(spoken, cases, self._bench, lambda s: F.normalize(self._read(s) - self._centre, dim=1))
        for aspect, check in self._checks.items():
            asked = [str(getattr(case.prompt.request, aspect)) for case in cases]
            found = check(features)
            right = [a == f if a != UNASKED[aspect] else float("nan") for a, f in zip(asked, found, strict=True)]
            scores[aspect] = torch.tensor(right, dtype=torch.float)
        return scores
