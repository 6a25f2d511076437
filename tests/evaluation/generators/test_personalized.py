"""Subjects of a benchmark are tuned once each, from all their images."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.subject_file import read_subject
from blip_diffusion.data.benchmarks.dreambench import Bench, BenchSubject
from blip_diffusion.errors import InputError
from blip_diffusion.evaluation.evaluate import EvalConfig, _build_tuner
from blip_diffusion.evaluation.generators.personalized import SubjectTuner, check_tunable
from blip_diffusion.training.personalize.config import TuneConfig
from tests.training.photos import written

QUICK = TuneConfig(steps=1, batch_size=1, trainable="embedding")


@pytest.fixture
def rex(dog: Image.Image, tmp_path: Path) -> BenchSubject:
    images = sorted(written(dog, tmp_path / "photos").iterdir())
    return BenchSubject("rex.2", "dog", True, tuple(images))


def test_a_subject_is_tuned_once_from_all_its_images(
    rex: BenchSubject, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    tuning = SubjectTuner(str(tiny_folder), tmp_path / "subjects", QUICK, log=said.append)
    first = tuning(rex)
    assert first.name == "rex-2" and first.metadata["photos"] == 3 and first.metadata["steps"] == 1
    path = tmp_path / "subjects" / "rex.2.safetensors"
    written_at = path.stat().st_mtime_ns
    assert tuning(rex).embedding.equal(first.embedding) and read_subject(path).embedding.equal(first.embedding)
    assert len(said) == 1 and said[0].startswith("tuned to rex.2: 1 steps") and path.stat().st_mtime_ns == written_at
    assert capsys.readouterr().out == ""  # which is the report's


def test_it_is_tuned_where_the_evaluation_computes(
    rex: BenchSubject, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On that very GPU, if any; here there may be none, so what is asked of torch is written down."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    second = torch.device("cuda:1")
    config = EvalConfig(model=str(tiny_folder), condition="tuned", tuning=QUICK)
    bench = Bench("photos", "", (rex,), (), (), ())
    _build_tuner(config, bench, tmp_path / "cpu", "cpu", print)(rex)
    assert not asked
    _build_tuner(config, bench, tmp_path / "gpu", second, print)(rex)
    assert asked == [second]


def test_settings_tell_tunings_apart(tmp_path: Path) -> None:
    def said(**other: object) -> dict[str, object]:
        return SubjectTuner("mini", tmp_path, TuneConfig(**other)).settings(128)  # type: ignore[arg-type]

    assert said()["tuning_steps"] is None and said()["tuning_learning_rate"] == 3e-3
    assert said(trainable="unet") != said() != said(steps=3) and said(device="cpu") == said()


def test_what_cannot_be_tuned_is_said_before(rex: BenchSubject) -> None:
    check_tunable([rex], QUICK)
    many = BenchSubject("rex", "dog", True, rex.images * 11)
    long = BenchSubject("rex", "a very big brown dog", True, rex.images)
    for subject, config, sentence in (
        (many, QUICK, "33 images of rex"),
        (long, QUICK, "is too long"),
        (rex, TuneConfig(method="dreambooth"), "not dreambooth"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_tunable([subject], config)
