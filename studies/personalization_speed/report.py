"""Results of the comparison: when each method reaches a target fidelity, a table, and charts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.metrics.statistics import Estimate, bootstrap_ci
from blip_diffusion.plots import Line, line_chart
from studies.personalization_speed.subjects import PHOTOS

DREAMBOOTH = "dreambooth"


@dataclass(frozen=True)
class SpeedupConfig:
    """How much is measured."""

    subjects: int = 8  # that are reported
    search_subjects: int = 2  # that learning rates are searched on
    steps: int = 160
    every: int = 20  # steps between scores; the first ones come sooner, see `scored_steps`
    prompts: tuple[str, ...] = ("on the beach", "in a forest", "in a city at night", "in the snow")
    seeds: int = 1
    sampling_steps: int = 12
    batch_size: int = 3
    probe_images: int = 12  # of each scene, to fit the scene classifier to
    search_steps: int | None = None  # by default as many as `steps`
    dreambooth_steps: int | None = None  # by default as many as `steps`

    def __post_init__(self) -> None:
        for name in ("steps", "every", "seeds", "sampling_steps", "search_steps", "dreambooth_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}: use 1 or more.")
        if self.subjects < 2 or self.search_subjects < 1:
            raise InputError("The comparison needs two subjects, and one to search on.")
        if any((steps or self.every) % self.every for steps in (self.steps, self.search_steps, self.dreambooth_steps)):
            raise InputError(f"The steps must be a multiple of {self.every}, after which they are scored.")

    def steps_of(self, candidate: str) -> int:
        """Return the number of steps that a candidate is trained for."""
        return (self.dreambooth_steps if candidate == DREAMBOOTH else None) or self.steps


@dataclass(frozen=True)
class Point:
    """The scores of a method after a number of steps."""

    step: int
    seconds: float
    subject: float
    text: float


Curve = list[Point]


@dataclass(frozen=True)
class Outcome:
    """All results of a comparison."""

    config: SpeedupConfig
    backbone: str
    rates: dict[str, float]
    curves: dict[str, list[Curve]]  # by candidate, a curve for each subject
    searches: dict[str, dict[str, float]] = field(default_factory=dict)


def columns(curves: Sequence[Curve], name: str) -> Tensor:
    """Return one quantity of all curves: (scored steps, subjects)."""
    return torch.tensor([[float(getattr(point, name)) for point in curve] for curve in curves]).T


def reached(curves: Sequence[Curve], goal: float, quantity: str) -> float:
    """Return the steps or seconds until the mean subject score reaches `goal`, interpolated between scored steps.

    Infinity if it never does.
    """
    scores = columns(curves, "subject").mean(dim=1).tolist()
    spent = columns(curves, quantity).mean(dim=1).tolist()
    if scores[0] >= goal:
        return spent[0]
    for before, after in pairwise(range(len(scores))):
        if scores[after] >= goal:
            share = (goal - scores[before]) / (scores[after] - scores[before])
            return spent[before] + share * (spent[after] - spent[before])
    return float("inf")


def speedup(outcome: Outcome, name: str, quantity: str, *, resamples: int = 500) -> Estimate:
    """Return how many times sooner than DreamBooth a candidate reaches DreamBooth's final fidelity; 0 if never.

    DreamBooth's time is when it first reaches that fidelity. Both are bootstrapped over the same subjects. A candidate
    that starts above it counts one step.
    """
    count = len(outcome.curves[name])
    all_rows = torch.arange(count)
    draws = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))
    ratios = torch.tensor([_ratio(outcome, name, quantity, rows.tolist()) for rows in (all_rows, *draws)])
    low, high = ratios[1:].quantile(torch.tensor([0.025, 0.975])).tolist()
    return Estimate(float(ratios[0]), low, high)


def _ratio(outcome: Outcome, name: str, quantity: str, rows: Sequence[int]) -> float:
    dreambooth = [outcome.curves[DREAMBOOTH][row] for row in rows]
    own = [outcome.curves[name][row] for row in rows]
    goal = float(columns(dreambooth, "subject")[-1].mean())
    theirs, ours = (max(reached(curves, goal, quantity), _first_step(curves, quantity)) for curves in (dreambooth, own))
    return theirs / ours if ours < float("inf") else 0.0


def _first_step(curves: Sequence[Curve], quantity: str) -> float:
    """Return the cost of one step, the least that any candidate can need."""
    spent = columns(curves, quantity).mean(dim=1).tolist()
    return spent[0] + (spent[1] - spent[0]) / max(curves[0][1].step, 1)


def markdown(outcome: Outcome) -> str:
    """Write the table and its caption."""
    goal = float(columns(outcome.curves[DREAMBOOTH], "subject")[-1].mean())
    lines = [
        (
            f"Fidelity that DreamBooth ends with: {goal:.3f} after {outcome.config.steps_of(DREAMBOOTH)} steps; "
            f"{outcome.config.subjects} held-out subjects, {PHOTOS} photos each; scored by {outcome.backbone}."
        ),
        "",
        (
            "| method | learning rate | subject at 0 | subject, best | subject at the end | text at the end "
            "| steps to it | seconds to it | times sooner, steps | times sooner, seconds |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, curves in outcome.curves.items():
        subject, text = columns(curves, "subject"), columns(curves, "text")
        best = subject[int(subject.mean(dim=1).argmax())]
        cells = [
            name,
            f"{outcome.rates[name]:g}",
            *(str(bootstrap_ci(row[None])) for row in (subject[0], best, subject[-1])),
        ]
        cells.append(str(bootstrap_ci(text[-1][None])))
        cells += [_time(reached(curves, goal, "step")), _time(reached(curves, goal, "seconds"))]
        cells += [_times(speedup(outcome, name, quantity)) for quantity in ("step", "seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(value: float) -> str:
    return f"{value:.1f}" if value < float("inf") else "never"


def _times(value: Estimate) -> str:
    return f"{value.value:.1f} ({value.low:.1f} to {value.high:.1f})" if value.value else "never gets there"


def charts(outcome: Outcome, folder: Path) -> None:
    """Save charts of both scores over steps and seconds, with intervals over subjects."""
    for score in ("subject", "text"):
        for quantity, label in (("step", "steps"), ("seconds", "seconds of training")):
            lines = {name: _line(curves, score, quantity) for name, curves in outcome.curves.items()}
            title = f"{score} score, {outcome.config.subjects} held-out subjects"
            line_chart(lines, title=title, x_label=label).save(folder / f"{score}-{label.split()[0]}.png")


def _line(curves: Sequence[Curve], score: str, quantity: str) -> Line:
    rows = columns(curves, score)
    estimates = [bootstrap_ci(row[None]) for row in rows]
    spent = columns(curves, quantity).mean(dim=1).tolist()
    points = [(x, one.value) for x, one in zip(spent, estimates, strict=True)]
    return Line(points, [one.low for one in estimates], [one.high for one in estimates])
