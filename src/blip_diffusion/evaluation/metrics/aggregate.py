"""The result of a metric on images: means over subjects, with bootstrap intervals over subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from blip_diffusion.evaluation.generators.conditions import SHUFFLED_PROMPTS, VAE_RECONSTRUCTION, ConditionResult
from blip_diffusion.evaluation.instances import Instance
from blip_diffusion.evaluation.metrics.similarity import ACCURACY, SIMILARITY, Metric, MetricInfo
from blip_diffusion.evaluation.metrics.statistics import (
    Estimate,
    Statistic,
    accuracy_ratio,
    bootstrap_ci,
    normalized_between_bounds,
)

Columns = Mapping[str, Mapping[str, Tensor]]
"""Means of subjects (N,) by condition and score."""


@dataclass(frozen=True)
class MetricResult:
    """The scores of every condition by one metric."""

    info: MetricInfo
    conditions: dict[str, dict[str, Estimate]]  # by condition and score
    subjects: dict[str, dict[str, list[float | None]]]  # the same for each subject; null without a value
    images: dict[str, list[float | None]]  # by score: the evaluated condition's images, in the order of its instances
    normalized: dict[str, Estimate]  # the evaluated condition between its bounds, if both are known


def score(metric: Metric, results: Mapping[str, ConditionResult], subjects: Sequence[str]) -> MetricResult:
    """Score conditions by a metric. The first condition is the one that is evaluated."""
    scores = {name: metric(result.images, result.instances) for name, result in results.items()}
    evaluated = next(iter(results))
    columns = {
        name: {
            score_name: mean_by_subject(values, results[name].instances, subjects)
            for score_name, values in by_score.items()
            if score_name in metric.info.scores
        }
        for name, by_score in scores.items()
    }
    return MetricResult(
        metric.info,
        {name: _estimates(by_score) for name, by_score in columns.items()},
        {name: {key: to_numbers(column) for key, column in by_score.items()} for name, by_score in columns.items()},
        {score_name: to_numbers(values) for score_name, values in scores[evaluated].items()},
        _normalized(metric.info, evaluated, columns),
    )


def _estimates(columns: Mapping[str, Tensor]) -> dict[str, Estimate]:
    return {name: bootstrap_ci(column[None]) for name, column in columns.items() if not column.isnan().all()}


def mean_by_subject(values: Tensor, instances: Sequence[Instance], subjects: Sequence[str]) -> Tensor:
    """Average the values of images (B,) by subject (N,), ignoring NaN."""
    rows: dict[str, list[int]] = {name: [] for name in subjects}
    for i, instance in enumerate(instances):
        rows[instance.subject.name].append(i)
    return torch.stack([values[rows[name]].float().nanmean() for name in subjects])


def to_numbers(values: Tensor) -> list[float | None]:
    """Convert a tensor to rounded numbers for JSON, NaN to null."""
    return [None if value != value else round(value, 5) for value in values.tolist()]


def _normalized(info: MetricInfo, evaluated: str, columns: Columns) -> dict[str, Estimate]:
    """Normalize the evaluated condition by its bounds, if these are known.

    Subject scores: 0 is the lower bound, 1 the upper bound. Text scores: the ratio to the ground truth's accuracy.
    """
    normalized = _subject_fidelity(info, evaluated, columns) if info.kind == "subject" else {}
    if info.kind == "text" and VAE_RECONSTRUCTION in columns:
        normalized = {
            name: _statistic(columns, name, accuracy_ratio, evaluated, VAE_RECONSTRUCTION)
            for name in info.scores
            if name != SIMILARITY and not columns[evaluated][name].isnan().all()
        }
    return {name: estimate for name, estimate in normalized.items() if isfinite(estimate.value)}


def _subject_fidelity(info: MetricInfo, evaluated: str, columns: Columns) -> dict[str, Estimate]:
    bounds, main = info.bounds, info.main
    if not set(bounds) <= set(columns):
        return {}
    name = f"fidelity{_subjects_with_peers(columns[bounds[0]][main])}"
    normalized = {name: _statistic(columns, main, normalized_between_bounds, evaluated, *bounds)}
    if VAE_RECONSTRUCTION in columns and VAE_RECONSTRUCTION not in bounds:
        reconstruction = _statistic(columns, main, normalized_between_bounds, VAE_RECONSTRUCTION, *bounds)
        normalized["fidelity of the VAE reconstruction"] = reconstruction
    return normalized


def _statistic(columns: Columns, score_name: str, statistic: Statistic, *conditions: str) -> Estimate:
    return bootstrap_ci(torch.stack([columns[name][score_name] for name in conditions]), statistic)


def _subjects_with_peers(lower_bound: Tensor) -> str:
    """Return a suffix for a score without the subjects (N,) that are alone in their category."""
    known, total = int((~lower_bound.isnan()).sum()), len(lower_bound)
    return "" if known == total else f" of the {known} of {total} subjects with a peer"


def is_reference_copy(subject: MetricResult, text: MetricResult) -> bool:
    """Return whether a condition only copies its reference: similarity above its upper bound, prompts at chance."""
    evaluated, main = next(iter(subject.conditions)), subject.info.main
    chance = text.conditions[SHUFFLED_PROMPTS][ACCURACY]
    similarity, prompts = subject.conditions[evaluated][main], text.conditions[evaluated][ACCURACY]
    return similarity.value > subject.conditions["ground-truth"][main].value and prompts.low <= chance.high
