"""Generators of a real, tiny model: what it is given, and that no image depends on its batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.subject_file import Subject, fingerprint
from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject, read_bench
from blip_diffusion.evaluation.generators.baselines import composite, other_photo, photo_of_other_subject
from blip_diffusion.evaluation.generators.model import ImageGenerator, autoencoder_reconstruction, no_subject, zero_shot
from blip_diffusion.evaluation.generators.personalized import tuned
from blip_diffusion.evaluation.instances import Instance, build_instances
from blip_diffusion.images import open_image
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.data.benchmarks.test_dreambench import published
from tests.evaluation.fakes import SIZE, WORLD


def far(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> float:
    """The largest difference of a pixel, in grey levels."""
    return max(
        float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()) for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def instances(bench: Bench) -> list[Instance]:
    return build_instances(bench.part(2, 3), 1)


@pytest.mark.parametrize("method", [zero_shot, no_subject])
def test_an_image_does_not_depend_on_its_batch(
    pipe: BlipDiffusionPipeline, instances: list[Instance], method: object
) -> None:
    assert callable(method)
    draw: ImageGenerator = method(pipe, num_inference_steps=2)
    together = draw(instances)
    assert len(together) == len(instances)
    assert far(together, [draw([instance])[0] for instance in instances]) <= 1


def test_zero_shot_is_the_pipeline_asked_by_hand(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    """ "a red dog" keeps the subject's own word for the Q-Former, and says the colour before the noun."""
    bench = read_bench(published(tmp_path))
    instance = build_instances(bench, 1)[5]
    assert instance.prompt_text == "a red dog"
    drawn = zero_shot(pipe, num_inference_steps=2)([instance])
    by_hand = pipe(
        "", open_image(instance.subject.images[0]), "dog", "red dog",
        num_inference_steps=2, generator=torch.Generator().manual_seed(instance.seed),
    ).images  # fmt: skip
    assert far(drawn, by_hand) == 0


def test_without_a_subject_the_reference_does_not_matter(pipe: BlipDiffusionPipeline, bench: Bench) -> None:
    one, other = build_instances(bench, 1)[0], build_instances(bench, 1)[len(bench.prompt_ids)]
    swapped = Instance(BenchSubject(one.subject.name, "dog", False, other.subject.images), 0, one.prompt, 0)
    words, image = (method(pipe, num_inference_steps=2) for method in (no_subject, zero_shot))
    assert far(words([one]), words([swapped])) == 0
    assert far(image([one]), image([swapped])) > 0


def test_each_subject_is_resident_while_it_is_drawn(pipe: BlipDiffusionPipeline, instances: list[Instance]) -> None:
    """Tuned not at all, it is drawn as zero-shot draws it; its weights are gone afterwards."""
    asked: list[str] = []

    def tune(subject: BenchSubject) -> Subject:
        asked.append(subject.name)
        image = open_image(subject.images[0])
        tokens, base = pipe.encode_subject(image, subject.category), fingerprint(pipe.unet, pipe.text_encoder)
        weights = {"conv_out.bias": pipe.unet.conv_out.bias.detach() + heavier}
        return Subject(subject.name, subject.category, tokens, base, weights=weights)

    shown, heavier = zero_shot(pipe, num_inference_steps=2)(instances), 0.0
    assert far(tuned(pipe, tune, num_inference_steps=2)(instances), shown) <= 1
    assert asked == list(dict.fromkeys(instance.subject.name for instance in instances))
    heavier = 1.0
    assert far(tuned(pipe, tune, num_inference_steps=2)(instances), shown) > 1
    assert pipe.subjects == () and far(zero_shot(pipe, num_inference_steps=2)(instances), shown) == 0


def test_photographs_are_never_the_reference(bench: Bench) -> None:
    find = photo_of_other_subject(bench)
    for instance in build_instances(bench, 3):
        assert other_photo(instance) in instance.subject.images[1:]
        assert find(instance) == find(instance) and find(instance) not in instance.subject.images


def test_images_go_where_the_autoencoder_is_and_come_back(model: BlipDiffusion) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    found = autoencoder_reconstruction(model)(pixels)
    assert found.shape == pixels.shape and found.dtype == torch.float32
    assert torch.equal(autoencoder_reconstruction(model)(pixels.double()), found)
    model.vae.to("meta")
    with pytest.raises(NotImplementedError, match="copy out of meta"):  # all but the way back can be gone there
        autoencoder_reconstruction(model)(pixels)


def test_a_composite_does_not_depend_on_its_batch(bench: Bench) -> None:
    instances = build_instances(bench, 1)[:4]
    draw = composite(WORLD, size=SIZE)
    assert [a.tobytes() for a in draw(instances)] == [draw([instance])[0].tobytes() for instance in instances]
