"""Which scene does a picture show? A linear probe on a judge's features, made from composites of training subjects.

Its pictures go through the generator's autoencoder first: a probe of clean pictures fails on decoded ones.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data import backgrounds, layout
from blip_diffusion.data.backgrounds import Backdrop
from blip_diffusion.data.compose import Composer, Order
from blip_diffusion.data.grammar import Request

PHRASES = (
    "on the beach", "in a forest", "in the desert", "on the moon", "underwater", "in the snow", "on grass",
    "in a flower garden", "by a lake", "in front of a castle", "in front of a brick wall", "in a kitchen",
    "in a bedroom", "in a city at night", "on a basketball court", "on train tracks", "on a wooden floor",
    "in space", "in a canyon", "in the mountains", "at sunset", "on a road", "in a library", "on a stage",
    "by a pool", "in front of a graffiti wall", "in the sea", "under a starry sky", "on a checkered floor",
)  # fmt: skip
"""What the probe tells apart, a phrase for each scene: the first ones are the bench's prompts."""


class SceneSet(NamedTuple):
    """Pictures (B, 3, S, S) and the numbers of their phrases (B,)."""

    pictures: Tensor
    labels: Tensor


RoundTrip = Callable[[Tensor], Tensor]
"""Pictures (B, 3, S, S) through an autoencoder and back."""


@dataclass(frozen=True)
class SceneProbe:
    """A linear classifier over features (B, F) that are standardised first."""

    weights: Tensor  # (F, K)
    bias: Tensor  # (K,)
    mean: Tensor  # (F,)
    std: Tensor  # (F,)

    def __call__(self, features: Tensor) -> Tensor:
        """The most likely scene of each picture, as its number: (B,)."""
        answers = (features - self.mean) / self.std @ self.weights + self.bias  # (B, K)
        return answers.argmax(dim=1)


def fit_probe(features: Tensor, labels: Tensor, classes: int, *, ridge: float = 0.2) -> SceneProbe:
    """Ridge regression of features (B, F) onto one-hot labels, in closed form; `ridge` is for each feature there is."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-4)
    x = ((features - mean) / std).double()  # (B, F)
    wanted = F.one_hot(labels, classes).double()  # (B, K)
    bias = wanted.mean(dim=0)
    gram = x @ x.T  # (B, B): with fewer pictures than features the dual is the smaller system
    dual = torch.linalg.solve(gram + ridge * x.shape[1] * torch.eye(len(x), dtype=x.dtype), wanted - bias)
    return SceneProbe((x.T @ dual).float(), bias.float(), mean, std)


def scene_orders(composer: Composer, rows: Sequence[int], phrase: str, rng: random.Random) -> list[Order]:
    """Composites of these cut-outs in the scene of a phrase: half in photographs and half in drawn places, if any."""
    return [order_in(composer, row, phrase, rng) for row in rows]


def order_in(composer: Composer, row: int, phrase: str, rng: random.Random) -> Order:
    """One cut-out in a scene; the reference shows the same cut-out before a plain colour far from its own."""
    colour = layout.measure(composer.world.pixels[[row]])[0].colour
    plain = backgrounds.plain_reference(rng, colour)
    return Order(row, row, Request(scene=phrase), place_of(composer, phrase, rng), plain)


def place_of(composer: Composer, phrase: str, rng: random.Random) -> Backdrop:
    """A photograph of the phrase or a drawn place: what a generator trained on both may answer."""
    drawn = backgrounds.named(phrase, rng)
    photograph = composer.place(phrase, rng)
    return drawn if drawn is not None and rng.random() < 0.5 else photograph


def training_pictures(composer: Composer, phrases: Sequence[str], each: int, *, seed: int = 0) -> SceneSet:
    """Composites of training subjects in training scenes: what a probe learns from."""
    rng = random.Random(f"probe {seed}")
    rows = [i for i, cutout in enumerate(composer.world.cutouts) if cutout.split == "train"]
    pictures = []
    for phrase in phrases:
        orders = scene_orders(composer, rng.choices(rows, k=each), phrase, rng)
        pictures.append(composer.compose(orders, rng)["target"])
    return SceneSet(torch.cat(pictures), torch.arange(len(phrases)).repeat_interleave(each))


def unknown_pictures(composer: Composer, phrases: Sequence[str], rows: Sequence[int], each: int) -> SceneSet | None:
    """Composites of these rows in held-out photographs of the phrases, as far as there are such."""
    kept = {phrase for scene in composer.world.scenes if scene.split == "heldout" for phrase in scene.phrases}
    pictures, labels = [], []
    for number, phrase in enumerate(phrases):
        if phrase in kept:
            rng = random.Random(f"unknown {phrase}")
            orders = [
                replace(order, backdrop=composer.place(phrase, rng, split="heldout"))
                for order in scene_orders(composer, rng.choices(rows, k=each), phrase, rng)
            ]
            pictures.append(composer.compose(orders, rng)["target"])
            labels += [number] * each
    return SceneSet(torch.cat(pictures), torch.tensor(labels)) if pictures else None
