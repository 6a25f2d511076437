"""Held-out subjects with several views: some views are photos for tuning, images are compared with the others."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.data.benchmarks.minibench import bench_sampler, known_scenes, pair_spec_of
from blip_diffusion.data.photos import Photo
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.features.extractor import CachedFeatures, FeatureExtractor
from blip_diffusion.evaluation.features.linear_probe import fit_classifier
from blip_diffusion.evaluation.generators.model import autoencoder_reconstruction
from blip_diffusion.evaluation.metrics.probe_data import ProbeSource, build_probe_data
from blip_diffusion.evaluation.metrics.statistics import centred_cosine
from blip_diffusion.images import to_pil
from blip_diffusion.model import BlipDiffusion

PHOTOS, VIEWS = 4, 4
"""How many views of a subject are photos to tune on, and how many are kept for scoring."""


@dataclass(frozen=True, eq=False)
class EvalSubject:
    """A held-out subject with several views."""

    identity: str
    category: str
    photos: list[Photo]
    views: Tensor  # (V, 3, S, S) other views, in scenes

    @property
    def folder(self) -> str:
        """A unique folder name: two subjects may share a category."""
        return re.sub(r"[^\w-]+", "-", self.identity)


def eval_subjects(
    world: AssetLibrary, count: int, prompts: Sequence[str] = (), *, size: int = 128
) -> list[EvalSubject]:
    """Choose held-out subjects with enough views. Their photos show scenes other than those of `prompts`.

    Raises:
        DataError: If the assets hold too few such subjects, or no other scene.
    """
    views: dict[str, list[int]] = {}
    for number, row in enumerate(world.cutouts):
        if row.split == "heldout" and row.kind != "outline":
            views.setdefault(row.identity, []).append(number)
    enough = sorted(identity for identity, rows in views.items() if len(rows) >= PHOTOS + VIEWS)
    if len(enough) < count:
        raise DataError(f"The world holds out {len(enough)} subjects of eight views: ask for at most that many.")
    chosen = random.Random("sitters").sample(enough, count)
    sampler, scenes = bench_sampler(world, size), _other_scenes(world, prompts)
    return [_eval_subject(sampler, identity, views[identity], scenes) for identity in chosen]


def _other_scenes(world: AssetLibrary, prompts: Sequence[str]) -> list[str]:
    others = [scene for scene in known_scenes(world) if scene not in prompts]
    if not others:
        raise DataError("The world has no scenes but those of the prompts: choose fewer prompts.")
    return others


def _eval_subject(sampler: PairSampler, identity: str, rows: Sequence[int], scenes: Sequence[str]) -> EvalSubject:
    rng = random.Random(f"sitter {identity}")
    tuned, scored = rows[::2][:PHOTOS], rows[1::2][:VIEWS]  # every other view, so that both show all sides
    shown, kept = (
        sampler.render([pair_spec_of(sampler, row, PromptSpec(scene=rng.choice(scenes)), rng) for row in some], rng)
        for some in (tuned, scored)
    )
    images = to_pil(shown["target"])
    masks = to_pil(shown["target_alpha"].expand(-1, 3, -1, -1))
    photos = [
        Photo(f"{number}.png", image, mask.convert("L"))
        for number, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    return EvalSubject(identity, sampler.world.cutouts[rows[0]].category, photos, kept["target"])


@dataclass(frozen=True)
class Backbones:
    """Feature extractors of a scorer: for the subject (its first `width` features) and for scenes."""

    subject: FeatureExtractor
    scene: FeatureExtractor
    width: int | None = None

    @property
    def backbone(self) -> str:
        """A description for the report."""
        return f"{self.subject.backbone}; scenes by {self.scene.backbone}"


@dataclass(frozen=True)
class ScorerConfig:
    """The prompts that are scored, images per prompt, and composites per scene for fitting the scene classifier."""

    prompts: Sequence[str]
    seeds: int = 1
    probe_images: int = 12


class Scorer:
    """Score images of a subject for subject fidelity and prompt fidelity."""

    def __init__(
        self,
        backbones: Backbones,
        world: AssetLibrary,
        model: BlipDiffusion,
        subjects: Sequence[EvalSubject],
        config: ScorerConfig,
    ) -> None:
        """Fit the scene classifier to composites of other subjects, and read the views of `subjects`."""
        self.backbones, self.prompts = backbones, list(config.prompts) * config.seeds
        reconstruct = autoencoder_reconstruction(model)
        excluded = frozenset(subject.identity for subject in subjects)
        source = ProbeSource(world, excluded, reconstruct, subjects[0].views.shape[-1])
        data = build_probe_data(source, each=config.probe_images, scenes=config.prompts)
        labels = [request.scene for request in data.requests]
        self.scene = fit_classifier(CachedFeatures(backbones.scene).of_images(data.images), labels)
        views = [self._features(to_pil(reconstruct(subject.views))) for subject in subjects]
        self.centre = torch.cat(views).mean(dim=0)
        self.views = {subject.identity: features for subject, features in zip(subjects, views, strict=True)}
        self.upper_bound = self._upper_bound()

    def __call__(self, subject: EvalSubject, pixels: Tensor) -> tuple[float, float]:
        """Score images (B, 3, S, S) of a subject: all prompts of the first seed, then of the next.

        Returns:
            Subject fidelity: how much more similar the images are to the subject than to others, where 1 is the
            similarity among its own views. Prompt fidelity: the share of images that show the scene of their prompt.
        """
        images = to_pil(pixels)
        features = self._features(images)
        scenes = self.scene(CachedFeatures(self.backbones.scene).of_images(images))
        to_subject = float(self._cosines(features, subject.identity).mean())
        text = sum(predicted == expected for predicted, expected in zip(scenes, self.prompts, strict=True)) / len(
            scenes
        )
        return (to_subject - self._to_others(features, subject.identity)) / self.upper_bound, text

    def _features(self, images: Sequence[Image.Image]) -> Tensor:
        return CachedFeatures(self.backbones.subject).of_images(images)[:, : self.backbones.width]

    def _cosines(self, features: Tensor, identity: str) -> Tensor:
        return centred_cosine(features, self.views[identity], self.centre, self.centre)

    def _to_others(self, features: Tensor, identity: str) -> float:
        """Return the mean cosine to all other subjects."""
        means = [float(self._cosines(features, name).mean()) for name in self.views if name != identity]
        return sum(means) / len(means)

    def _upper_bound(self) -> float:
        """Return the same difference for the views of a subject among themselves, averaged over subjects."""
        gaps = []
        for name, features in self.views.items():
            cosines, count = self._cosines(features, name), len(features)
            own = float((cosines.sum() - cosines.trace()) / (count * (count - 1)))
            gaps.append(own - self._to_others(features, name))
        return max(sum(gaps) / len(gaps), 0.05)
