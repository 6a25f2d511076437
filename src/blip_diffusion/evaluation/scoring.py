"""A generator in, a report out. A generator is anything that makes pictures of cases.

Every row is judged the same way, whether a generator drew it, a composer, or nobody: one disc in the middle stands for
the subject, and what lies outside it for the scene.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_diffusion.data.compose import Composer, ComposerConfig
from blip_diffusion.data.world import World
from blip_diffusion.evaluation.cases import Bench, Case, Material, first_row, prepare
from blip_diffusion.evaluation.judges import Judge, pooled
from blip_diffusion.evaluation.metrics import (
    Estimate,
    Statistic,
    by_subject,
    centred_cosine,
    estimate,
    normalised,
    relative,
)
from blip_diffusion.evaluation.report import (
    COPIED,
    GENERATED,
    OTHER,
    OTHER_DECODED,
    SHUFFLED_PROMPTS,
    SHUFFLED_REFERENCES,
    TRUTH,
    TRUTH_DECODED,
    Report,
    Scores,
    Verdict,
)
from blip_diffusion.evaluation.scenes import (
    RoundTrip,
    SceneProbe,
    SceneSet,
    fit_probe,
    training_pictures,
    unknown_pictures,
)

DISC = 0.5
"""Diameter, in frames, of the disc that stands for the subject. Of ten regions it told subjects apart best."""

Draw = Callable[[Sequence[Case]], Tensor]
"""A generator: some cases to their pictures (B, 3, S, S) in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a judge sees of pictures: features (B, F) of the subject's region and of the rest."""

    subject: Tensor
    scene: Tensor

    def repeated(self, times: int) -> "Seen":
        """Each picture so many times in a row."""
        return Seen(*(x.repeat_interleave(times, dim=0) for x in (self.subject, self.scene)))

    def rolled(self, shape: tuple[int, int, int], prompts: int) -> "Seen":
        """Each subject's pictures, moved on by so many prompts: what is seen is then another scene than asked for."""
        return Seen(*(x.view(*shape, -1).roll(prompts, 1).flatten(0, 2) for x in (self.subject, self.scene)))


@torch.no_grad()
def see(judge: Judge, pixels: Tensor, *, batch: int = 32) -> Seen:
    """A judge's features of pictures (B, 3, S, S)."""
    disc = subject_region(pixels.shape[-1])
    parts = []
    for some in torch.split(pixels, batch):
        maps = judge.maps(some)
        parts.append((pooled(maps, disc), pooled(maps, 1 - disc)))
    return Seen(torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts]))


def subject_region(side: int) -> Tensor:
    """1 inside the disc that stands for the subject, and 0 outside: (1, 1, S, S)."""
    at = (torch.arange(side) + 0.5) / side - 0.5
    return ((at[:, None] ** 2 + at[None] ** 2).sqrt() <= DISC / 2).float()[None, None]


@dataclass(frozen=True, eq=False)
class Examiner:
    """One judge's features of the references and of the ground truth, and its scene probe, made into scores."""

    bench: Bench
    probe: SceneProbe
    references: Tensor  # (N, F)
    centre: Tensor  # (F,) of the ground truth

    def __call__(self, seen: Seen) -> Tensor:
        """Cosine, naming and scene of each subject, means over its pictures: (3, N)."""
        subjects, prompts, seeds = self.shape
        own = torch.arange(subjects).repeat_interleave(prompts * seeds)
        asked = torch.tensor([self.bench.scenes.index(prompt) for prompt in self.bench.prompts])
        asked = asked.repeat_interleave(seeds).repeat(subjects)
        cosines = centred_cosine(seen.subject, self.references, self.centre, self.references.mean(0))  # (B, N)
        nearest, scene = cosines.argmax(1), self.probe(seen.scene)
        columns = (cosines[torch.arange(len(own)), own], nearest == own, scene == asked)
        return torch.stack([by_subject(column, subjects) for column in columns])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Subjects, prompts and seeds."""
        return len(self.bench.subjects), len(self.bench.prompts), self.bench.seeds


@torch.no_grad()
def evaluate(
    draw: Draw,
    world: World,
    bench: Bench,
    *,
    round_trip: RoundTrip,
    judges: Sequence[Judge],
    size: int = 128,
    batch: int = 32,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Report, dict[str, Tensor]]:
    """The report of a generator, and the pictures of its rows (B, 3, S, S).

    `round_trip` is the generator's autoencoder: rows called decoded, and all that the scene probe learns from, went
    through it. "Prompts shuffled" judges the generated pictures of each subject by the next prompt. `tell` hears of
    each step that is done.
    """
    material = prepare(world, bench, size=size)
    pictures = {}
    for name, pixels in _rows_of(draw, material, bench, round_trip, batch):
        pictures[name] = pixels
        tell(f"{len(pixels)} pictures: {name}")
    lessons = _lessons(world, bench, round_trip, size, batch)
    verdicts = {}
    for judge in judges:
        verdicts[judge.name] = _verdict_of(judge, bench, pictures, *lessons, batch)
        tell(f"judged by {judge.name}")
    pooling = f"subject: disc of {DISC} frames in the middle; scene: the rest; picture {size} x {size}"
    return Report(bench, pooling, verdicts), pictures


def _rows_of(
    draw: Draw, material: Material, bench: Bench, round_trip: RoundTrip, batch: int
) -> Iterator[tuple[str, Tensor]]:
    cases = material.cases
    step = len(bench.prompts) * bench.seeds * (len(bench.subjects) // 2)  # to a subject far away in the list
    swapped = [
        dataclasses.replace(case, reference=other.reference)
        for case, other in zip(cases, cases[step:] + cases[:step], strict=True)
    ]
    yield GENERATED, _drawn(draw, cases, batch)
    yield SHUFFLED_REFERENCES, _drawn(draw, swapped, batch)
    yield TRUTH, material.ground_truth
    yield TRUTH_DECODED, _in_batches(round_trip, material.ground_truth, batch)
    yield OTHER, material.other_instance
    yield OTHER_DECODED, _in_batches(round_trip, material.other_instance, batch)
    yield COPIED, material.references


def _drawn(draw: Draw, cases: Sequence[Case], batch: int) -> Tensor:
    parts = [draw(cases[start : start + batch]).float().cpu() for start in range(0, len(cases), batch)]
    return torch.cat(parts)


def _in_batches(apply: Callable[[Tensor], Tensor], pixels: Tensor, batch: int) -> Tensor:
    return torch.cat([apply(some).float().cpu() for some in torch.split(pixels, batch)])


def _lessons(
    world: World, bench: Bench, round_trip: RoundTrip, size: int, batch: int
) -> tuple[SceneSet, SceneSet | None]:
    """What scene probes learn from, and held-out subjects in places that nobody knows; both decoded."""
    composer = Composer(world, ComposerConfig(size=size), batch_size=1, seed=0)
    studied = training_pictures(composer, bench.scenes, bench.probe_pictures)
    rows = [first_row(world, identity) for identity in bench.subjects]
    unknown = unknown_pictures(composer, bench.scenes, rows, 4)
    return (
        studied._replace(pictures=_in_batches(round_trip, studied.pictures, batch)),
        unknown and unknown._replace(pictures=_in_batches(round_trip, unknown.pictures, batch)),
    )


def _verdict_of(
    judge: Judge, bench: Bench, pictures: dict[str, Tensor], studied: SceneSet, unknown: SceneSet | None, batch: int
) -> Verdict:
    each = len(bench.prompts) * bench.seeds
    probe = fit_probe(see(judge, studied.pictures, batch=batch).scene, studied.labels, len(bench.scenes))
    seen = {name: see(judge, pixels, batch=batch) for name, pixels in pictures.items() if name != COPIED}
    references = see(judge, pictures[COPIED][::each], batch=batch)
    seen[COPIED] = references.repeated(each)
    examiner = Examiner(bench, probe, references.subject, seen[TRUTH].subject.mean(0))
    seen[SHUFFLED_PROMPTS] = seen[GENERATED].rolled(examiner.shape, 1)
    columns = {name: examiner(value) for name, value in seen.items()}  # (3, N) each

    def against(metric: int, statistic: Statistic, *names: str) -> Estimate:
        return estimate(torch.stack([columns[name][metric] for name in names]), statistic)

    return Verdict(
        judge.backbone,
        judge.preprocessing,
        {name: Scores(*(estimate(column[None]) for column in value)) for name, value in columns.items()},
        against(0, normalised, GENERATED, OTHER, TRUTH),
        against(0, normalised, GENERATED, OTHER_DECODED, TRUTH_DECODED),
        against(0, normalised, TRUTH_DECODED, OTHER, TRUTH),
        against(2, relative, GENERATED, TRUTH_DECODED),
        unknown and _accuracy(probe, see(judge, unknown.pictures, batch=batch), unknown.labels),
    )


def _accuracy(probe: SceneProbe, seen: Seen, labels: Tensor) -> float:
    return (probe(seen.scene) == labels).float().mean().item()
