"""Methods of a real, tiny model: who is shown to it, what is said to it, and that neither depends on the batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_diffusion import images
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint
from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject, read_bench
from blip_diffusion.evaluation.generators.baselines import (
    Draw,
    no_subject,
    photograph,
    photograph_of_another,
    round_trip_of,
    tuned,
    zero_shot,
)
from blip_diffusion.evaluation.instances import Case, cases_of
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.data.benchmarks.test_dreambench import published


def far(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> float:
    """The largest difference of a pixel, in grey levels."""
    return max(
        float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()) for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def cases(bench: Bench) -> list[Case]:
    return cases_of(bench.part(2, 3), 1)


@pytest.mark.parametrize("method", [zero_shot, no_subject])
def test_a_picture_does_not_depend_on_its_batch(pipe: BlipDiffusionPipeline, cases: list[Case], method: object) -> None:
    assert callable(method)
    draw: Draw = method(pipe, num_inference_steps=2)
    together = draw(cases)
    assert len(together) == len(cases)
    assert far(together, [draw([case])[0] for case in cases]) <= 1


def test_zero_shot_is_the_pipeline_asked_by_hand(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    """ "a red dog" keeps the subject's own word for the Q-Former, and says the colour before the noun."""
    bench = read_bench(published(tmp_path))
    case = cases_of(bench, 1)[5]
    assert case.sentence == "a red dog"
    drawn = zero_shot(pipe, num_inference_steps=2)([case])
    by_hand = pipe(
        "", images.open_picture(case.subject.pictures[0]), "dog", "red dog",
        num_inference_steps=2, generator=torch.Generator().manual_seed(case.seed),
    ).images  # fmt: skip
    assert far(drawn, by_hand) == 0


def test_without_a_subject_the_reference_does_not_matter(pipe: BlipDiffusionPipeline, bench: Bench) -> None:
    one, other = cases_of(bench, 1)[0], cases_of(bench, 1)[len(bench.asked)]
    swapped = Case(BenchSubject(one.subject.name, "dog", False, other.subject.pictures), 0, one.prompt, 0)
    words, picture = (method(pipe, num_inference_steps=2) for method in (no_subject, zero_shot))
    assert far(words([one]), words([swapped])) == 0
    assert far(picture([one]), picture([swapped])) > 0


def test_each_subject_is_resident_while_it_is_drawn(pipe: BlipDiffusionPipeline, cases: list[Case]) -> None:
    """Tuned not at all, it is drawn as zero-shot draws it; its weights are gone afterwards."""
    asked: list[str] = []

    def tune(subject: BenchSubject) -> Subject:
        asked.append(subject.name)
        picture = images.open_picture(subject.pictures[0])
        tokens, base = pipe.encode_subject(picture, subject.category), fingerprint(pipe.unet, pipe.text_encoder)
        weights = {"conv_out.bias": pipe.unet.conv_out.bias.detach() + heavier}
        return Subject(subject.name, subject.category, tokens, base, weights=weights)

    shown, heavier = zero_shot(pipe, num_inference_steps=2)(cases), 0.0
    assert far(tuned(pipe, tune, num_inference_steps=2)(cases), shown) <= 1
    assert asked == list(dict.fromkeys(case.subject.name for case in cases))
    heavier = 1.0
    assert far(tuned(pipe, tune, num_inference_steps=2)(cases), shown) > 1
    assert pipe.subjects == () and far(zero_shot(pipe, num_inference_steps=2)(cases), shown) == 0


def test_photographs_are_never_the_reference(bench: Bench) -> None:
    find = photograph_of_another(bench)
    for case in cases_of(bench, 3):
        assert photograph(case) in case.subject.pictures[1:]
        assert find(case) == find(case) and find(case) not in case.subject.pictures


def test_pictures_go_where_the_autoencoder_is_and_come_back(model: BlipDiffusion) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    found = round_trip_of(model)(pixels)
    assert found.shape == pixels.shape and found.dtype == torch.float32
    assert torch.equal(round_trip_of(model)(pixels.double()), found)
    model.vae.to("meta")
    with pytest.raises(NotImplementedError, match="copy out of meta"):  # all but the way back can be gone there
        round_trip_of(model)(pixels)
