"""Diversity and memorisation of images with known distances."""

from pathlib import Path

import pytest

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.generators.conditions import ConditionResult, ConditionRunner
from blip_diffusion.evaluation.instances import build_instances
from blip_diffusion.evaluation.metrics.memorization import nearest_training_images, sample_diversity, training_bank
from tests.evaluation.fakes import SIZE, WORLD, Everything, copying, generator_set, perfect


def test_identical_samples_have_no_diversity(bench: Bench, tmp_path: Path) -> None:
    part = bench.part(2, 2)
    instances = build_instances(part, 3)
    one, many = (
        ConditionRunner(part, generator_set(generator), tmp_path / name).run("zero-shot", instances)["zero-shot"]
        for name, generator in (("one", copying), ("many", perfect()))
    )
    features = CachedFeatures(Everything())
    alike, apart = sample_diversity(features, one), sample_diversity(features, many)
    assert alike is not None and apart is not None
    assert alike.value == pytest.approx(0, abs=1e-5) and apart.value > 0.001
    assert sample_diversity(features, ConditionResult(one.images[::3], instances[::3])) is None


def test_memorised_image_is_found(tmp_path: Path) -> None:
    bank = training_bank(WORLD, tmp_path, size=SIZE)
    scenes = [path for path in bank if path.name.startswith("scene")]
    assert len(scenes) == 2 * sum(scene.split == "train" for scene in WORLD.scenes)
    stamp = bank[0].stat().st_mtime_ns
    assert training_bank(WORLD, tmp_path, size=SIZE) == bank and bank[0].stat().st_mtime_ns == stamp
    for image, near, cosine in nearest_training_images(CachedFeatures(Everything()), bank[:3], bank):
        assert image == near and cosine == pytest.approx(1.0, abs=1e-5)
