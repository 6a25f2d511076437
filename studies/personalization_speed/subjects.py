"""Held-out subjects of several views, as a user has them: some views are photos, the others judge what is drawn."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.benchmarks.minibench import bench_composer, known_scenes, order_of
from blip_diffusion.data.photos import Photo
from blip_diffusion.data.synthetic.assets import World
from blip_diffusion.data.synthetic.pair_sampler import Composer
from blip_diffusion.data.synthetic.prompt_templates import Request
from blip_diffusion.errors import DataError
from blip_diffusion.evaluation.features.linear_probe import fit_classifier
from blip_diffusion.evaluation.features.networks import Network
from blip_diffusion.evaluation.generators.baselines import round_trip_of
from blip_diffusion.evaluation.metrics.probe_data import lessons
from blip_diffusion.evaluation.metrics.similarity import Seen
from blip_diffusion.evaluation.metrics.statistics import centred_cosine
from blip_diffusion.model import BlipDiffusion

PHOTOS, VIEWS = 4, 4
"""Views of a subject that are its photos, and views that judge."""


@dataclass(frozen=True, eq=False)
class Sitter:
    """A held-out subject with several views."""

    identity: str
    category: str
    photos: list[Photo]
    views: Tensor  # (V, 3, S, S) others of it, in scenes

    @property
    def folder(self) -> str:
        """Its own name for a folder: two sitters may share a category."""
        return re.sub(r"[^\w-]+", "-", self.identity)


def sitters(world: World, count: int, prompts: Sequence[str] = (), *, size: int = 128) -> list[Sitter]:
    """So many held-out subjects with enough views, by chance. Their photos stand in other scenes than `prompts`."""
    views: dict[str, list[int]] = {}
    for number, row in enumerate(world.cutouts):
        if row.split == "heldout" and row.kind != "outline":
            views.setdefault(row.identity, []).append(number)
    many = sorted(identity for identity, rows in views.items() if len(rows) >= PHOTOS + VIEWS)
    if len(many) < count:
        raise DataError(f"The world holds out {len(many)} subjects of eight views: ask for at most so many.")
    chosen = random.Random("sitters").sample(many, count)
    composer, places = bench_composer(world, size), _places(world, prompts)
    return [_sitter(composer, identity, views[identity], places) for identity in chosen]


def _places(world: World, prompts: Sequence[str]) -> list[str]:
    """The scenes of the world, other than the prompts."""
    found = [scene for scene in known_scenes(world) if scene not in prompts]
    if not found:
        raise DataError("The world has no scenes but those of the prompts: choose fewer prompts.")
    return found


def _sitter(composer: Composer, identity: str, rows: Sequence[int], places: Sequence[str]) -> Sitter:
    rng = random.Random(f"sitter {identity}")
    near, far = rows[::2][:PHOTOS], rows[1::2][:VIEWS]  # every other view, so that both see all sides
    shown, kept = (
        composer.compose([order_of(composer, row, Request(scene=rng.choice(places)), rng) for row in some], rng)
        for some in (near, far)
    )
    pictures, masks = (
        images.to_pictures(shown["target"]),
        images.to_pictures(shown["target_alpha"].expand(-1, 3, -1, -1)),
    )
    photos = [
        Photo(f"{number}.png", picture, mask.convert("L"))
        for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True))
    ]
    return Sitter(identity, composer.world.cutouts[rows[0]].category, photos, kept["target"])


@dataclass(frozen=True)
class Eyes:
    """What a jury looks through: at the subject, of whose features the first `width` count, and at the scene."""

    subject: Network
    scene: Network
    width: int | None = None

    @property
    def backbone(self) -> str:
        """For the report."""
        return f"{self.subject.backbone}; scenes by {self.scene.backbone}"


class Jury:
    """Eyes, and what they must know: how subjects look on average, and what the scenes look like once decoded."""

    def __init__(
        self,
        eyes: Eyes,
        world: World,
        model: BlipDiffusion,
        shown: Sequence[Sitter],
        prompts: Sequence[str],
        *,
        seeds: int = 1,
        probe_pictures: int = 12,
    ) -> None:
        """`probe_pictures` of each prompt's scene are what it learns scenes from; none shows one of the sitters."""
        self.eyes, self.asked = eyes, list(prompts) * seeds
        size, sat = shown[0].views.shape[-1], {sitter.identity for sitter in shown}
        trip = round_trip_of(model)
        studied = lessons(world, sat, trip, size=size, each=probe_pictures, scenes=prompts)
        self.scene = fit_classifier(
            Seen(eyes.scene).of(studied.pictures), [request.scene for request in studied.requests]
        )
        views = [self._features(images.to_pictures(trip(sitter.views))) for sitter in shown]
        self.centre = torch.cat(views).mean(dim=0)
        self.views = {sitter.identity: features for sitter, features in zip(shown, views, strict=True)}
        self.ceiling = self._ceiling()

    def __call__(self, sitter: Sitter, drawn: Tensor) -> tuple[float, float]:
        """Pictures (B, 3, S, S) of a subject in the prompts, seed after seed, to two scores.

        Subject: how much more alike it is than other subjects are, of 1 as its own views are among themselves. Text:
        how many show the scene that was asked for.
        """
        pictures = images.to_pictures(drawn)
        features, scenes = self._features(pictures), self.scene(Seen(self.eyes.scene).of(pictures))
        own = float(self._cosines(features, sitter.identity).mean())
        text = sum(found == asked for found, asked in zip(scenes, self.asked, strict=True)) / len(scenes)
        return (own - self._others(features, sitter.identity)) / self.ceiling, text

    def _features(self, pictures: Sequence[Image.Image]) -> Tensor:
        return Seen(self.eyes.subject).of(pictures)[:, : self.eyes.width]

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
