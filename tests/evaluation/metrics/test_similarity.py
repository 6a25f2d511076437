"""The DreamBooth paper's protocol, compared with plain loops."""

import itertools
from pathlib import Path

import pytest
import torch

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.evaluation.features.clip import Clip
from blip_diffusion.evaluation.features.dino import Dino
from blip_diffusion.evaluation.features.extractor import CachedFeatures
from blip_diffusion.evaluation.generators.baselines import reference_copy
from blip_diffusion.evaluation.instances import build_instances, with_next_prompt, with_other_subject
from blip_diffusion.evaluation.metrics.similarity import ClipTextSimilarity, DreamBoothSimilarity
from blip_diffusion.images import open_image
from tests.evaluation.fakes import Everything


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / a.norm() / b.norm()).item()


def test_dino_is_the_mean_over_all_real_images(bench: Bench, tiny_dino: Path) -> None:
    network = Dino(str(tiny_dino))
    metric = DreamBoothSimilarity("DINO", CachedFeatures(network), bench)
    instances = build_instances(bench.part(3, 2), 1)
    copied = [reference_copy(instance) for instance in instances]
    scores = metric(copied, instances)
    for path, instance, score in zip(copied, instances, scores["cosine_similarity"].tolist(), strict=True):
        embedding = network([open_image(path)])[0]
        real = [cosine(embedding, network([open_image(other)])[0]) for other in instance.subject.images]
        assert score == pytest.approx(sum(real) / len(real), abs=1e-5)
    assert (
        scores["top1_accuracy"].mean() >= metric(copied, with_other_subject(instances, bench))["top1_accuracy"].mean()
    )


def test_real_images_are_compared_with_the_other_ones(bench: Bench, tiny_dino: Path) -> None:
    """The paper's "real images": over all pairs of different images."""
    network, subject = Dino(str(tiny_dino)), bench.subjects[0]
    instance = build_instances(bench, 1)[0]
    real = list(subject.images[1:])
    result = DreamBoothSimilarity("DINO", CachedFeatures(network), bench)(real, [instance] * len(real))[
        "cosine_similarity"
    ]
    features = {path: network([open_image(path)])[0] for path in subject.images}
    for path, score in zip(real, result.tolist(), strict=True):
        others = [cosine(features[path], features[other]) for other in subject.images if other != path]
        assert score == pytest.approx(sum(others) / len(others), abs=1e-5)


def test_clip_t_is_the_cosine_to_the_prompt(bench: Bench, tiny_clip: Path) -> None:
    clip = Clip(str(tiny_clip))
    metric = ClipTextSimilarity("CLIP-T", CachedFeatures(clip), clip, bench)
    instances = build_instances(bench.part(2, 3), 1)
    images = [instance.subject.images[1] for instance in instances]
    result = metric(images, instances)
    for path, instance, score in zip(images, instances, result["cosine_similarity"].tolist(), strict=True):
        expected = cosine(clip([open_image(path)])[0], clip.encode_text([instance.prompt_text])[0])
        assert score == pytest.approx(expected, abs=1e-5)
    for a, b in itertools.pairwise((result, metric(images, with_next_prompt(instances, bench)))):
        assert not torch.equal(a["cosine_similarity"], b["cosine_similarity"])


def test_features_are_computed_once(bench: Bench) -> None:
    class Counting(Everything):
        looked = 0

        def __call__(self, images):  # type: ignore[no-untyped-def]
            self.looked += len(images)
            return super().__call__(images)

    network = Counting()
    features = CachedFeatures(network, batch_size=2)
    paths = [path for subject in bench.subjects for path in subject.images]
    first = features([*paths, *paths])
    assert torch.equal(first[: len(paths)], features(paths)) and network.looked == len(paths)
