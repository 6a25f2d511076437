"""What a bench asks, as data, and the pictures that an answer is compared with."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_diffusion.data.backgrounds import named as named_place
from blip_diffusion.data.compose import Composer, ComposerConfig
from blip_diffusion.data.names import BENCH
from blip_diffusion.data.world import CutOut, World
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.evaluation.scenes import PHRASES, order_in


@dataclass(frozen=True)
class Bench:
    """What is asked: every subject in every scene, from every seed."""

    subjects: tuple[str, ...]  # identities
    prompts: tuple[str, ...] = PHRASES[:10]
    seeds: int = 1
    scenes: tuple[str, ...] = PHRASES  # what the probe tells apart; the prompts are among them
    probe_pictures: int = 24  # of each scene

    def __post_init__(self) -> None:
        if len(self.subjects) < 2 or len(self.prompts) < 2 or self.seeds < 1:
            raise InputError("A bench needs two subjects, two prompts and a seed at least.")
        if strangers := set(self.prompts) - set(self.scenes):
            raise InputError(f"No scene that the probe learns is called {min(strangers)!r}.")

    @property
    def pictures(self) -> int:
        """How many a generator draws in each row."""
        return len(self.subjects) * len(self.prompts) * self.seeds


@dataclass(frozen=True, eq=False)
class Case:
    """One picture to be made."""

    identity: str
    category: str
    prompt: str
    seed: int  # of the noise; no two cases of a bench share it
    reference: Tensor  # (3, S, S) in [0, 1]: the subject before a plain colour


def mini_bench(world: World, *, subjects: int = 30, prompts: int = 10, seeds: int = 1) -> Bench:
    """The bench of a world: its share of `BENCH`, made up to the number with other held-out subjects."""
    named = _ranked(world)
    if not 2 <= subjects <= len(named):
        raise InputError(f"--subjects is {subjects}: use a number from 2 to {len(named)}, which the world holds out.")
    scenes = _scenes(world)
    if not 2 <= prompts <= len(scenes):
        raise InputError(f"--prompts is {prompts}: use a number from 2 to {len(scenes)}.")
    best = named[: max(subjects, len(BENCH))]
    spread = [best[i * len(best) // subjects] for i in range(subjects)]  # a few are of every sort
    return Bench(tuple(spread), scenes[:prompts], seeds, scenes)


def _ranked(world: World) -> list[str]:
    """Held-out subjects whose category others have too: those of `BENCH`, new categories, then the rest."""
    trained = {row.category for row in _drawable(world, "train")}
    held = {row.identity: row.category for row in _drawable(world, "heldout") if row.category in trained}
    named = [name for name in BENCH if name in held]
    taken = {held[name] for name in named}
    for identity, category in held.items():
        if category not in taken:
            named.append(identity)
            taken.add(category)
    return named + [identity for identity in held if identity not in named]


def _scenes(world: World) -> tuple[str, ...]:
    """The phrases of which the world has a photograph to train on, or which can be drawn."""
    photographed = {phrase for scene in world.scenes if scene.split == "train" for phrase in scene.phrases}
    return tuple(p for p in PHRASES if p in photographed or named_place(p, random.Random(0)) is not None)


@dataclass(frozen=True, eq=False)
class Material:
    """The pictures that a bench compares with. Rows are cases: subject after subject, prompt after prompt."""

    cases: list[Case]
    ground_truth: Tensor  # (B, 3, S, S) the reference's own cut-out in the scene
    other_instance: Tensor  # (B, 3, S, S) another subject of the same category there

    @property
    def references(self) -> Tensor:
        """(B, 3, S, S)."""
        return torch.stack([case.reference for case in self.cases])


def prepare(world: World, bench: Bench, *, size: int = 128) -> Material:
    """Cases, ceiling and floor. What a subject gets depends on nothing but the subject, the prompts and the seeds."""
    composer = Composer(world, ComposerConfig(size=size, rotation=0.0), batch_size=1, seed=0)
    parts = [_subject(composer, bench, identity) for identity in bench.subjects]
    return Material(
        [case for cases, _, _ in parts for case in cases],
        torch.cat([truth for _, truth, _ in parts]),
        torch.cat([other for _, _, other in parts]),
    )


def _subject(composer: Composer, bench: Bench, identity: str) -> tuple[list[Case], Tensor, Tensor]:
    """The cases of one subject, its ground truth and another instance, in the same scenes."""
    rng = random.Random(f"bench {identity}")
    row = first_row(composer.world, identity)
    others = _others(composer.world, row)
    asked = [prompt for prompt in bench.prompts for _ in range(bench.seeds)]
    own = composer.compose([order_in(composer, row, prompt, rng) for prompt in asked], rng)
    other = composer.compose([order_in(composer, rng.choice(rng.choice(others)), prompt, rng) for prompt in asked], rng)
    category, reference = composer.world.cutouts[row].category, own["reference"][0]
    cases = [
        Case(identity, category, prompt, _seed(identity, prompt, number % bench.seeds), reference)
        for number, prompt in enumerate(asked)
    ]
    return cases, own["target"], other["target"]


def first_row(world: World, identity: str) -> int:
    """The first picture of a subject."""
    for i, row in enumerate(world.cutouts):
        if row.identity == identity:
            return i
    raise DataError(f"The world has no subject {identity!r}: build it again, or choose another bench.")


def _others(world: World, own: int) -> list[list[int]]:
    """The pictures of each other subject of the same category."""
    subject = world.cutouts[own]
    others: dict[str, list[int]] = {}
    for i, row in enumerate(world.cutouts):
        if row.category == subject.category and row.identity != subject.identity and row.kind != "outline":
            others.setdefault(row.identity, []).append(i)
    if not others:
        raise DataError(f"The world has no other {subject.category}: the floor of {subject.identity!r} needs one.")
    return list(others.values())


def _drawable(world: World, split: str) -> Iterator[CutOut]:
    return (row for row in world.cutouts if row.split == split and row.kind != "outline")


def _seed(*parts: object) -> int:
    """A seed that depends on nothing but its case."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6])
