"""Held-out subjects of several views, as a user has them: some views are photos, the others metric what is drawn."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.data.compose import Composer
from blip_diffusion.data.grammar import Request
from blip_diffusion.data.minibench import bench_composer, known_scenes, order_of
from blip_diffusion.data.photos import Photo
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.data.synthetic.pair_sampler import Composer
from blip_diffusion.data.synthetic.prompt_templates import Request
from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.features.extractor import CachedFeatures, FeatureExtractor
from blip_diffusion.evaluation.features.linear_probe import fit_classifier
from blip_diffusion.evaluation.generators.model import autoencoder_reconstruction
from blip_diffusion.evaluation.metrics.probe_data import build_probe_data
from blip_diffusion.evaluation.metrics.statistics import centred_cosine
from blip_diffusion.images import to_pictures
from blip_diffusion.model import BlipDiffusion

PHOTOS, VIEWS = 4, 4
"""Views of a subject that are its photos, and views that metric."""


@dataclass(frozen=True, eq=False)
class EvalSubject:
    """A held-out subject with several views."""

    identity: str
    category: str
    photos: list[Photo]
    views: Tensor  # (V, 3, S, S) others of it, in scenes

    @property
    def folder(self) -> str:
        """Its own name for a folder: two eval_subjects may share a category."""
        return re.sub(r"[^\w-]+", "-", self.identity)


def eval_subjects(world: World, count: int, prompts: Sequence[str] = (), *, size: int = 128) -> list[EvalSubject]:
    """So many held-out subjects with enough views, by chance. Their photos stand in other scenes than `prompts`."""
    views: dict[str, list[int]] = {}
    for number, row in enumerate(world.cutouts):
        if row.split == "heldout" and row.kind != "outline":
            views.setdefault(row.identity, []).append(number)
    many = sorted(identity for identity, rows in views.items() if len(rows) >= PHOTOS + VIEWS)
    if len(many) < count:
        raise DataError(f"The world holds out {len(many)} subjects of eight views: ask for at most so many.")
    chosen = random.Random("eval_subjects").sample(many, count)
    composer, places = bench_composer(world, size), _places(world, prompts)
    return [_sitter(composer, identity, views[identity], places) for identity in chosen]


def _places(world: World, prompts: Sequence[str]) -> list[str]:
    """The scenes of the world, other than the prompts."""
    found = [scene for scene in known_scenes(world) if scene not in prompts]
    if not found:
        raise DataError("The world has no scenes but those of the prompts: choose fewer prompts.")
    return found


def _sitter(composer: Composer, identity: str, rows: Sequence[int], places: Sequence[str]) -> EvalSubject:
    rng = random.Random(f"subject {identity}")
    near, far = rows[::2][:PHOTOS], rows[1::2][:VIEWS]  # every other view, so that both see all sides
    shown, kept = (
        composer.compose([order_of(composer, row, Request(scene=rng.choice(places)), rng) for row in some], rng)
        for some in (near, far)
    )
    images, masks = (
        to_pictures(shown["target"]),
        to_pictures(shown["target_alpha"].expand(-1, 3, -1, -1)),
    )
    photos = [
        Photo(f"{number}.png", image, mask.convert("L"))
        for number, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    return EvalSubject(identity, composer.world.cutouts[rows[0]].category, photos, kept["target"])


@dataclass(frozen=True)
class Backbones:
    """What a scorer looks through: at the subject, of whose features the first `width` count, and at the scene."""

    subject: FeatureExtractor
    scene: FeatureExtractor
    width: int | None = None

    @property
    def backbone(self) -> str:
        """For the report."""
        return f"{self.subject.backbone}; scenes by {self.scene.backbone}"


class Scorer:
    """Backbones, and what they must know: how subjects look on average, and what the scenes look like once decoded."""

    def __init__(
        self,
        backbones: Backbones,
        world: World,
        model: BlipDiffusion,
        shown: Sequence[EvalSubject],
        prompts: Sequence[str],
        *,
        seeds: int = 1,
        probe_pictures: int = 12,
    ) -> None:
        """`probe_pictures` of each prompt's scene are what it learns scenes from; none shows one of the eval_subjects."""
        self.backbones, self.asked = backbones, list(prompts) * seeds
        size, sat = shown[0].views.shape[-1], {subject.identity for subject in shown}
        trip = autoencoder_reconstruction(model)
        probe_data = build_probe_data(world, sat, trip, size=size, each=probe_pictures, scenes=prompts)
        self.scene = fit_classifier(
            CachedFeatures(backbones.scene).of(probe_data.images), [request.scene for request in probe_data.requests]
        )
        views = [self._features(to_pictures(trip(subject.views))) for subject in shown]
        self.centre = torch.cat(views).mean(dim=0)
        self.views = {subject.identity: features for subject, features in zip(shown, views, strict=True)}
        self.upper_bound = self._ceiling()

    def __call__(self, subject: EvalSubject, drawn: Tensor) -> tuple[float, float]:
        """Images (B, 3, S, S) of a subject in the prompts, seed after seed, to two scores.

        Subject: how much more alike it is than other subjects are, of 1 as its own views are among themselves. Text:
        how many show the scene that was asked for.
        """
        images = to_pictures(drawn)
        features, scenes = self._features(images), self.scene(CachedFeatures(self.backbones.scene).of(images))
        own = float(self._cosines(features, subject.identity).mean())
        text = sum(found == asked for found, asked in zip(scenes, self.asked, strict=True)) / len(scenes)
        return (own - self._others(features, subject.identity)) / self.upper_bound, text

    def _features(self, images: Sequence[Image.Image]) -> Tensor:
        return CachedFeatures(self.backbones.subject).of(images)[:, : self.backbones.width]

    def _cosines(self, features: Tensor, identity: str) -> Tensor:
        return centred_cosine(features, self.views[identity], self.centre, self.centre)

    def _others(self, features: Tensor, identity: str) -> float:
        """The mean cosine with every other subject."""
        means = [float(self._cosines(features, name).mean()) for name in self.views if name != identity]
        return sum(means) / len(means)

    def _ceiling(self) -> float:
        """The same difference, of views of a subject among themselves: a mean over subjects."""
        gaps = []
        for name, features in self.views.items():
            cosines, count = self._cosines(features, name), len(features)
            own = float((cosines.sum() - cosines.trace()) / (count * (count - 1)))
            gaps.append(own - self._others(features, name))
        return max(sum(gaps) / len(gaps), 0.05)
