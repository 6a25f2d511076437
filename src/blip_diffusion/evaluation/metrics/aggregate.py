"""From rows of pictures to what a judge says of them: means over subjects, with intervals over subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from blip_diffusion.evaluation.generators.conditions import DECODED, WRONG_PROMPT, Row
from blip_diffusion.evaluation.instances import Case
from blip_diffusion.evaluation.metrics.similarity import Card, Judge
from blip_diffusion.evaluation.metrics.statistics import Estimate, Statistic, estimate, normalised, relative


@dataclass(frozen=True)
class Verdict:
    """One judge: what it says of every row, and what that means for the method."""

    card: Card
    rows: dict[str, dict[str, Estimate]]  # by row and metric
    subjects: dict[str, dict[str, list[float | None]]]  # the same of each subject; null where it was not asked
    pictures: dict[str, list[float | None]]  # by metric: the method's pictures, in the order of its cases
    between: dict[str, Estimate]  # the method between its floor and its ceiling, where both are known


def judged(judge: Judge, rows: Mapping[str, Row], subjects: Sequence[str]) -> Verdict:
    """A judge's verdict on rows, of which the first is the method's."""
    scores = {name: judge(row.pictures, row.cases) for name, row in rows.items()}
    method = next(iter(rows))
    columns = {
        name: {
            metric: by_subject(values, rows[name].cases, subjects)
            for metric, values in found.items()
            if metric in judge.card.metrics
        }
        for name, found in scores.items()
    }
    return Verdict(
        judge.card,
        {
            name: {metric: estimate(column[None]) for metric, column in found.items() if not column.isnan().all()}
            for name, found in columns.items()
        },
        {name: {metric: numbers(column) for metric, column in found.items()} for name, found in columns.items()},
        {metric: numbers(values) for metric, values in scores[method].items()},
        _between(judge.card, method, columns),
    )


def by_subject(values: Tensor, cases: Sequence[Case], subjects: Sequence[str]) -> Tensor:
    """Values of pictures (B,) to the mean of each subject (N,); what was not asked for, NaN, does not count."""
    rows: dict[str, list[int]] = {name: [] for name in subjects}
    for i, case in enumerate(cases):
        rows[case.subject.name].append(i)
    return torch.stack([values[rows[name]].float().nanmean() for name in subjects])


def numbers(values: Tensor) -> list[float | None]:
    """As JSON knows them."""
    return [None if value != value else round(value, 5) for value in values.tolist()]


def _between(card: Card, method: str, columns: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Estimate]:
    """Subjects: 0 is another instance, 1 the ground truth. Prompts: the share of what the ground truth itself gets."""

    def of(metric: str, statistic: Statistic, *names: str) -> Estimate:
        return estimate(torch.stack([columns[name][metric] for name in names]), statistic)

    known, found = set(columns), {}
    if card.kind == "subject" and {"other-instance", "ground-truth"} <= known:
        fidelity = f"fidelity{_of_those_with_a_peer(columns['other-instance']['likeness'])}"
        found[fidelity] = of("likeness", normalised, method, "other-instance", "ground-truth")
        if DECODED in known:
            found["fidelity of the ground truth, decoded"] = of(
                "likeness", normalised, DECODED, "other-instance", "ground-truth"
            )
    if card.kind == "text" and DECODED in known:
        for metric in card.metrics:
            if metric != "match" and not columns[method][metric].isnan().all():
                found[metric] = of(metric, relative, method, DECODED)
    return {name: share for name, share in found.items() if isfinite(share.value)}


def _of_those_with_a_peer(floor: Tensor) -> str:
    """Said where some subjects (N,) have no other of their category: what is between is then not about all of them."""
    known, every = int((~floor.isnan()).sum()), len(floor)
    return "" if known == every else f" of the {known} of {every} subjects with a peer"


def copies(subject: Verdict, text: Verdict) -> bool:
    """Whether a method hands its reference back: likeness beyond the ceiling, prompts at their floor."""
    method = next(iter(subject.rows))
    floor = text.rows[WRONG_PROMPT]["named"]
    likeness, prompt = subject.rows[method]["likeness"], text.rows[method]["named"]
    return likeness.value > subject.rows["ground-truth"]["likeness"].value and prompt.low <= floor.high
