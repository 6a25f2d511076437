"""Generators with a tiny model: inputs, and independence of the batch."""

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
def test_image_does_not_depend_on_its_batch(
    pipe: BlipDiffusionPipeline, instances: list[Instance], method: object
) -> None:
    assert callable(method)
    generate_images: ImageGenerator = method(pipe, num_inference_steps=2)
    together = generate_images(instances)
    assert len(together) == len(instances)
    assert far(together, [generate_images([instance])[0] for instance in instances]) <= 1


def test_zero_shot_equals_the_pipeline(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    """For "a red dog", the Q-Former gets the category, and the prompt has the colour before it."""
    bench = read_bench(published(tmp_path))
    instance = build_instances(bench, 1)[5]
    assert instance.prompt_text == "a red dog"
    generated = zero_shot(pipe, num_inference_steps=2)([instance])
    by_hand = pipe(
        "", open_image(instance.subject.images[0]), "dog", "red dog",
        num_inference_steps=2, generator=torch.Generator().manual_seed(instance.seed),
    ).images  # fmt: skip
    assert far(generated, by_hand) == 0


def test_no_subject_condition_ignores_the_reference(pipe: BlipDiffusionPipeline, bench: Bench) -> None:
    one, other = build_instances(bench, 1)[0], build_instances(bench, 1)[len(bench.prompt_ids)]
    swapped = Instance(BenchSubject(one.subject.name, "dog", False, other.subject.images), 0, one.prompt, 0)
    words, image = (method(pipe, num_inference_steps=2) for method in (no_subject, zero_shot))
    assert far(words([one]), words([swapped])) == 0
    assert far(image([one]), image([swapped])) > 0


def test_tuned_subject_is_loaded_during_its_generation(pipe: BlipDiffusionPipeline, instances: list[Instance]) -> None:
    """An untuned subject gives the image of the zero-shot condition, and is unloaded afterwards."""
    loaded: list[str] = []

    def tune(subject: BenchSubject) -> Subject:
        loaded.append(subject.name)
        image = open_image(subject.images[0])
        tokens, base = pipe.encode_subject(image, subject.category), fingerprint(pipe.unet, pipe.text_encoder)
        weights = {"conv_out.bias": pipe.unet.conv_out.bias.detach() + heavier}
        return Subject(subject.name, subject.category, tokens, base, weights=weights)

    shown, heavier = zero_shot(pipe, num_inference_steps=2)(instances), 0.0
    assert far(tuned(pipe, tune, num_inference_steps=2)(instances), shown) <= 1
    assert loaded == list(dict.fromkeys(instance.subject.name for instance in instances))
    heavier = 1.0
    assert far(tuned(pipe, tune, num_inference_steps=2)(instances), shown) > 1
    assert pipe.subjects == () and far(zero_shot(pipe, num_inference_steps=2)(instances), shown) == 0


def test_ground_truth_photographs_exclude_the_reference(bench: Bench) -> None:
    find = photo_of_other_subject(bench)
    for instance in build_instances(bench, 3):
        assert other_photo(instance) in instance.subject.images[1:]
        assert find(instance) == find(instance) and find(instance) not in instance.subject.images


def test_reconstruction_runs_on_the_device_of_the_autoencoder(model: BlipDiffusion) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    result = autoencoder_reconstruction(model)(pixels)
    assert result.shape == pixels.shape and result.dtype == torch.float32
    assert torch.equal(autoencoder_reconstruction(model)(pixels.double()), result)
    model.vae.to("meta")
    with pytest.raises(NotImplementedError, match="copy out of meta"):  # all but the way back can be gone there
        autoencoder_reconstruction(model)(pixels)


def test_composite_does_not_depend_on_its_batch(bench: Bench) -> None:
    instances = build_instances(bench, 1)[:4]
    generate_images = composite(WORLD, size=SIZE)
    assert [a.tobytes() for a in generate_images(instances)] == [
        generate_images([instance])[0].tobytes() for instance in instances
    ]
