"""The DreamBooth paper's protocol, against plain loops; and what a judge is asked wrongly."""

import itertools
from pathlib import Path

import pytest
import torch

from blip_diffusion import images
from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.evaluation.features.networks import Clip, Dino
from blip_diffusion.evaluation.generators.baselines import reference
from blip_diffusion.evaluation.instances import cases_of, other_prompts, other_subjects
from blip_diffusion.evaluation.metrics.similarity import ClipTextJudge, DreamBoothJudge, Seen
from tests.evaluation.toys import Everything


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / a.norm() / b.norm()).item()


def test_dino_is_the_mean_over_all_real_pictures(bench: Bench, tiny_dino: Path) -> None:
    network = Dino(str(tiny_dino))
    judge = DreamBoothJudge("DINO", Seen(network), bench)
    cases = cases_of(bench.part(3, 2), 1)
    copied = [reference(case) for case in cases]
    scores = judge(copied, cases)
    for path, case, score in zip(copied, cases, scores["likeness"].tolist(), strict=True):
        own = network([images.open_picture(path)])[0]
        real = [cosine(own, network([images.open_picture(other)])[0]) for other in case.subject.pictures]
        assert score == pytest.approx(sum(real) / len(real), abs=1e-5)
    assert scores["named"].mean() >= judge(copied, other_subjects(cases, bench))["named"].mean()


def test_a_real_picture_is_compared_with_the_others(bench: Bench, tiny_dino: Path) -> None:
    """The paper's "real images": over all pairs of different pictures."""
    network, subject = Dino(str(tiny_dino)), bench.subjects[0]
    case = cases_of(bench, 1)[0]
    real = list(subject.pictures[1:])
    found = DreamBoothJudge("DINO", Seen(network), bench)(real, [case] * len(real))["likeness"]
    features = {path: network([images.open_picture(path)])[0] for path in subject.pictures}
    for path, score in zip(real, found.tolist(), strict=True):
        others = [cosine(features[path], features[other]) for other in subject.pictures if other != path]
        assert score == pytest.approx(sum(others) / len(others), abs=1e-5)


def test_clip_t_is_the_cosine_to_the_sentence(bench: Bench, tiny_clip: Path) -> None:
    clip = Clip(str(tiny_clip))
    judge = ClipTextJudge("CLIP-T", Seen(clip), clip, bench)
    cases = cases_of(bench.part(2, 3), 1)
    pictures = [case.subject.pictures[1] for case in cases]
    found = judge(pictures, cases)
    for path, case, score in zip(pictures, cases, found["match"].tolist(), strict=True):
        expected = cosine(clip([images.open_picture(path)])[0], clip.read([case.sentence])[0])
        assert score == pytest.approx(expected, abs=1e-5)
    for a, b in itertools.pairwise((found, judge(pictures, other_prompts(cases, bench)))):
        assert not torch.equal(a["match"], b["match"])


def test_a_picture_is_looked_at_once(bench: Bench) -> None:
    class Counting(Everything):
        looked = 0

        def __call__(self, pictures):  # type: ignore[no-untyped-def]
            self.looked += len(pictures)
            return super().__call__(pictures)

    network = Counting()
    seen, paths = Seen(network, batch=2), [path for subject in bench.subjects for path in subject.pictures]
    first = seen([*paths, *paths])
    assert torch.equal(first[: len(paths)], seen(paths)) and network.looked == len(paths)
