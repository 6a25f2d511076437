"""Rows with scores that are known beforehand: perfect, copied, shuffled, another's."""

from pathlib import Path

import pytest
import torch

from blip_diffusion.data.bench import Bench
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.generators.baselines import composite
from blip_diffusion.evaluation.generators.conditions import (
    SHUFFLED_PROMPTS,
    SHUFFLED_SUBJECTS,
    VAE_RECONSTRUCTION,
    ConditionResult,
    run_conditions,
)
from blip_diffusion.evaluation.generators.model import ImageGenerator
from blip_diffusion.evaluation.instances import build_instances
from blip_diffusion.evaluation.metrics.aggregate import (
    MetricResult,
    _between,
    is_reference_copy,
    mean_by_subject,
    score,
)
from blip_diffusion.evaluation.metrics.attributes import AttributeMetric
from blip_diffusion.evaluation.metrics.memorization import nearest_training_images, sample_diversity, training_bank
from blip_diffusion.evaluation.metrics.probe_data import build_probe_data
from blip_diffusion.evaluation.metrics.similarity import SubjectSimilarity
from tests.evaluation.toys import SIZE, WORLD, Bag, Everything, Middle, copying, generators, perfect, same

SEEDS = 2


@pytest.fixture(scope="module")
def metrics(bench: Bench) -> tuple[SubjectSimilarity, AttributeMetric]:
    probe_data = build_probe_data(WORLD, {subject.identity for subject in bench.subjects}, same, size=SIZE, each=8)
    return SubjectSimilarity("middle", CachedFeatures(Middle()), bench), AttributeMetric(
        CachedFeatures(Everything()), Bag(), bench, probe_data
    )


def rows(draw: ImageGenerator, bench: Bench, folder: Path) -> dict[str, ConditionResult]:
    return run_conditions("zero-shot", bench, build_instances(bench, SEEDS), generators(draw), folder)


def results(
    metrics: tuple[SubjectSimilarity, AttributeMetric], draw: ImageGenerator, bench: Bench, folder: Path
) -> tuple[MetricResult, MetricResult]:
    found, names = rows(draw, bench, folder), [subject.name for subject in bench.subjects]
    subject, text = (score(metric, found, names) for metric in metrics)
    return subject, text


@pytest.fixture(scope="module")
def of_perfect(
    metrics: tuple[SubjectSimilarity, AttributeMetric], bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MetricResult, MetricResult]:
    return results(metrics, perfect(), bench, tmp_path_factory.mktemp("perfect"))


@pytest.fixture(scope="module")
def of_copying(
    metrics: tuple[SubjectSimilarity, AttributeMetric], bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MetricResult, MetricResult]:
    return results(metrics, copying, bench, tmp_path_factory.mktemp("copying"))


def test_the_ground_truth_reaches_the_ceiling(of_perfect: tuple[MetricResult, MetricResult]) -> None:
    subject, text = of_perfect
    assert subject.between["fidelity"].value == pytest.approx(1.0, abs=0.15)
    assert (
        subject.rows["zero-shot"]["cosine_similarity"].value > subject.rows["other-instance"]["cosine_similarity"].value
    )
    assert subject.rows["ground-truth"] == subject.rows[VAE_RECONSTRUCTION]  # the toy autoencoder loses nothing
    assert text.between["top1_accuracy"].value == pytest.approx(1.0, abs=0.1)
    assert text.rows["zero-shot"]["scene"].value > 0.7


def test_wrong_subjects_lose_the_subject_and_keep_the_prompt(of_perfect: tuple[MetricResult, MetricResult]) -> None:
    subject, text = of_perfect
    assert (
        subject.rows[SHUFFLED_SUBJECTS]["cosine_similarity"].value
        < subject.rows["zero-shot"]["cosine_similarity"].value - 0.3
    )
    assert text.rows[SHUFFLED_SUBJECTS]["top1_accuracy"].value == pytest.approx(
        text.rows["zero-shot"]["top1_accuracy"].value, abs=0.05
    )


def test_wrong_prompts_lose_the_prompt_and_keep_the_subject(of_perfect: tuple[MetricResult, MetricResult]) -> None:
    subject, text = of_perfect
    assert text.rows[SHUFFLED_PROMPTS]["top1_accuracy"].value < text.rows["zero-shot"]["top1_accuracy"].value - 0.3
    assert subject.rows[SHUFFLED_PROMPTS] == subject.rows["zero-shot"]


def test_a_copy_is_flagged_and_nothing_else_is(
    of_copying: tuple[MetricResult, MetricResult], of_perfect: tuple[MetricResult, MetricResult]
) -> None:
    subject, text = of_copying
    assert subject.rows["zero-shot"]["cosine_similarity"].value == pytest.approx(
        subject.rows["reference-copy"]["cosine_similarity"].value, abs=0.05
    )
    assert is_reference_copy(subject, text)
    assert not is_reference_copy(*of_perfect)
    assert not is_reference_copy(of_copying[0], of_perfect[1])  # very like, but the prompts are followed


def test_aspects_are_judged_where_they_are_asked_for(
    of_perfect: tuple[MetricResult, MetricResult], bench: Bench
) -> None:
    _, text = of_perfect
    asked = [instance.prompt.request for instance in build_instances(bench, SEEDS)]
    for attribute, none in (("colour", ""), ("count", 1), ("style", ""), ("accessory", "")):
        given = [request is not None and getattr(request, attribute) != none for request in asked]
        assert [value is not None for value in text.images[attribute]] == given


def test_what_the_judge_sees_in_no_ground_truth_has_no_share(of_perfect: tuple[MetricResult, MetricResult]) -> None:
    info, seen = of_perfect[1].info, torch.ones(2)
    columns = {name: dict.fromkeys(info.metrics, seen) for name in ("zero-shot", VAE_RECONSTRUCTION)}
    columns[VAE_RECONSTRUCTION] = {**columns[VAE_RECONSTRUCTION], "scene": torch.zeros(2)}
    assert "scene" not in (found := _between(info, "zero-shot", columns)) and found["top1_accuracy"].value == 1


def test_floors_take_one_copy(of_perfect: tuple[MetricResult, MetricResult], bench: Bench, tmp_path: Path) -> None:
    found = rows(perfect(), bench, tmp_path)
    assert len(found["zero-shot"].instances) == SEEDS * len(found["no-subject"].instances)
    assert set(found["reference-copy"].images) == {subject.pictures[0] for subject in bench.subjects}


def test_by_subject_is_a_mean_of_what_was_asked(bench: Bench) -> None:
    instances = build_instances(bench.part(2, 2), 1)
    values = torch.tensor([1.0, float("nan"), float("nan"), float("nan")])
    assert torch.equal(mean_by_subject(values, instances, [s.name for s in bench.part(2, 2).subjects]).isnan(),
                       torch.tensor([False, True]))  # fmt: skip


def test_copies_of_one_picture_have_no_distance(bench: Bench, tmp_path: Path) -> None:
    part = bench.part(2, 2)
    instances = build_instances(part, 3)
    one = run_conditions("zero-shot", part, instances, generators(copying), tmp_path / "one")["zero-shot"]
    many = run_conditions("zero-shot", part, instances, generators(perfect()), tmp_path / "many")["zero-shot"]
    look = CachedFeatures(Everything())
    alike, apart = sample_diversity(look, one), sample_diversity(look, many)
    assert alike is not None and apart is not None
    assert alike.value == pytest.approx(0, abs=1e-5) and apart.value > 0.001
    assert sample_diversity(look, ConditionResult(one.images[::3], instances[::3])) is None


def test_a_memorised_picture_is_found(tmp_path: Path) -> None:
    bank = training_bank(WORLD, tmp_path, size=SIZE)
    scenes = [path for path in bank if path.name.startswith("scene")]
    assert len(scenes) == 2 * sum(scene.split == "train" for scene in WORLD.scenes)
    stamp = bank[0].stat().st_mtime_ns
    assert training_bank(WORLD, tmp_path, size=SIZE) == bank and bank[0].stat().st_mtime_ns == stamp
    for image, near, cosine in nearest_training_images(CachedFeatures(Everything()), bank[:3], bank):
        assert image == near and cosine == pytest.approx(1.0, abs=1e-5)


def test_a_composite_does_not_depend_on_its_batch(bench: Bench) -> None:
    instances = build_instances(bench, 1)[:4]
    draw = composite(WORLD, size=SIZE)
    assert [a.tobytes() for a in draw(instances)] == [draw([instance])[0].tobytes() for instance in instances]


def test_lessons_hold_nothing_of_the_bench(bench: Bench) -> None:
    """Only one held-out subject is in no bench: the grey dog, of one colour, that no lesson may differ from."""
    with pytest.raises(Exception, match="no subject beside"):
        build_probe_data(WORLD, {f"held{i}" for i in range(4)}, same, size=SIZE, each=1)
    probe_data = build_probe_data(WORLD, {subject.identity for subject in bench.subjects}, same, size=SIZE, each=1)
    assert len(probe_data.images) == len(probe_data.requests) == len(probe_data.sentences)
    assert {sentence.split()[1] for sentence in probe_data.sentences} == {"dog"}
