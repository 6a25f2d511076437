"""Conditions with known scores: perfect, copied, shuffled, another subject."""

from pathlib import Path

import pytest
import torch

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.generators.conditions import (
    SHUFFLED_PROMPTS,
    SHUFFLED_SUBJECTS,
    VAE_RECONSTRUCTION,
    ConditionResult,
    ConditionRunner,
)
from blip_diffusion.evaluation.generators.model import ImageGenerator
from blip_diffusion.evaluation.instances import build_instances
from blip_diffusion.evaluation.metrics.aggregate import (
    MetricResult,
    _normalized,
    is_reference_copy,
    mean_by_subject,
    score,
)
from blip_diffusion.evaluation.metrics.attributes import AttributeMetric
from blip_diffusion.evaluation.metrics.probe_data import ProbeSource, build_probe_data
from blip_diffusion.evaluation.metrics.similarity import SubjectSimilarity
from tests.evaluation.fakes import (
    SIZE,
    WORLD,
    Bag,
    Everything,
    Middle,
    Patches,
    copying,
    generator_set,
    identity,
    perfect,
)

SEEDS = 2


@pytest.fixture(scope="module")
def metrics(bench: Bench) -> tuple[SubjectSimilarity, AttributeMetric]:
    probe_data = build_probe_data(source({subject.identity for subject in bench.subjects}), each=8)
    return SubjectSimilarity("middle", CachedFeatures(Middle()), bench), AttributeMetric(
        CachedFeatures(Everything()), Patches(), Bag(), bench, probe_data
    )


def source(excluded: set[str]) -> ProbeSource:
    return ProbeSource(WORLD, frozenset(excluded), identity, SIZE)


def conditions(generator: ImageGenerator, bench: Bench, folder: Path, seeds: int = SEEDS) -> dict[str, ConditionResult]:
    runner = ConditionRunner(bench, generator_set(generator), folder)
    return runner.run("zero-shot", build_instances(bench, seeds))


def results(
    metrics: tuple[SubjectSimilarity, AttributeMetric], generator: ImageGenerator, bench: Bench, folder: Path
) -> tuple[MetricResult, MetricResult]:
    result, names = conditions(generator, bench, folder), [subject.name for subject in bench.subjects]
    subject, text = (score(metric, result, names) for metric in metrics)
    return subject, text


@pytest.fixture(scope="module")
def perfect_results(
    metrics: tuple[SubjectSimilarity, AttributeMetric], bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MetricResult, MetricResult]:
    return results(metrics, perfect(), bench, tmp_path_factory.mktemp("perfect"))


@pytest.fixture(scope="module")
def copying_results(
    metrics: tuple[SubjectSimilarity, AttributeMetric], bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MetricResult, MetricResult]:
    return results(metrics, copying, bench, tmp_path_factory.mktemp("copying"))


def test_the_ground_truth_reaches_the_upper_bound(perfect_results: tuple[MetricResult, MetricResult]) -> None:
    subject, text = perfect_results
    assert subject.normalized["fidelity"].value == pytest.approx(1.0, abs=0.15)
    assert (
        subject.conditions["zero-shot"]["cosine_similarity"].value
        > subject.conditions["other-instance"]["cosine_similarity"].value
    )
    assert (
        subject.conditions["ground-truth"] == subject.conditions[VAE_RECONSTRUCTION]
    )  # the fake autoencoder loses nothing
    assert text.normalized["top1_accuracy"].value == pytest.approx(1.0, abs=0.1)
    assert text.conditions["zero-shot"]["scene"].value > 0.7


def test_wrong_subjects_reduce_only_the_subject_score(
    perfect_results: tuple[MetricResult, MetricResult],
) -> None:
    subject, text = perfect_results
    assert (
        subject.conditions[SHUFFLED_SUBJECTS]["cosine_similarity"].value
        < subject.conditions["zero-shot"]["cosine_similarity"].value - 0.3
    )
    assert text.conditions[SHUFFLED_SUBJECTS]["top1_accuracy"].value == pytest.approx(
        text.conditions["zero-shot"]["top1_accuracy"].value, abs=0.05
    )


def test_wrong_prompts_reduce_only_the_prompt_score(perfect_results: tuple[MetricResult, MetricResult]) -> None:
    subject, text = perfect_results
    assert (
        text.conditions[SHUFFLED_PROMPTS]["top1_accuracy"].value
        < text.conditions["zero-shot"]["top1_accuracy"].value - 0.3
    )
    assert subject.conditions[SHUFFLED_PROMPTS] == subject.conditions["zero-shot"]


def test_only_copies_of_training_images_are_flagged(
    copying_results: tuple[MetricResult, MetricResult], perfect_results: tuple[MetricResult, MetricResult]
) -> None:
    subject, text = copying_results
    assert subject.conditions["zero-shot"]["cosine_similarity"].value == pytest.approx(
        subject.conditions["reference-copy"]["cosine_similarity"].value, abs=0.05
    )
    assert is_reference_copy(subject, text)
    assert not is_reference_copy(*perfect_results)
    assert not is_reference_copy(copying_results[0], perfect_results[1])  # very like, but the prompts are followed


def test_attributes_are_scored_for_prompts_that_contain_them(
    perfect_results: tuple[MetricResult, MetricResult], bench: Bench
) -> None:
    _, text = perfect_results
    requests = [instance.prompt.request for instance in build_instances(bench, SEEDS)]
    for attribute, none in (("colour", ""), ("count", 1), ("style", ""), ("accessory", "")):
        given = [request is not None and getattr(request, attribute) != none for request in requests]
        assert [value is not None for value in text.images[attribute]] == given


def test_images_of_the_probes_are_encoded_once(bench: Bench) -> None:
    data, patches = build_probe_data(source(set()), each=2), Patches()
    AttributeMetric(CachedFeatures(Everything()), patches, Bag(), bench, data)
    encoded = [id(image) for image in patches.encoded]
    assert [encoded.count(id(image)) for image in data.images] == [1] * len(data.images)


def test_attribute_without_upper_bound_has_no_ratio(
    perfect_results: tuple[MetricResult, MetricResult],
) -> None:
    info, seen = perfect_results[1].info, torch.ones(2)
    columns = {name: dict.fromkeys(info.scores, seen) for name in ("zero-shot", VAE_RECONSTRUCTION)}
    columns[VAE_RECONSTRUCTION] = {**columns[VAE_RECONSTRUCTION], "scene": torch.zeros(2)}
    assert "scene" not in (result := _normalized(info, "zero-shot", columns)) and result["top1_accuracy"].value == 1


def test_baselines_have_one_sample_per_prompt(
    perfect_results: tuple[MetricResult, MetricResult], bench: Bench, tmp_path: Path
) -> None:
    result = conditions(perfect(), bench, tmp_path)
    assert len(result["zero-shot"].instances) == SEEDS * len(result["no-subject"].instances)
    assert set(result["reference-copy"].images) == {subject.images[0] for subject in bench.subjects}


def test_means_ignore_missing_scores(bench: Bench) -> None:
    instances = build_instances(bench.part(2, 2), 1)
    values = torch.tensor([1.0, float("nan"), float("nan"), float("nan")])
    assert torch.equal(mean_by_subject(values, instances, [s.name for s in bench.part(2, 2).subjects]).isnan(),
                       torch.tensor([False, True]))  # fmt: skip
