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


def test_subject_is_tuned_once_on_all_its_images(
    rex: BenchSubject, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages: list[str] = []
    tuning = SubjectTuner(str(tiny_folder), tmp_path / "subjects", QUICK, log=messages.append)
    first = tuning(rex)
    assert first.name == "rex-2" and first.metadata["photos"] == 3 and first.metadata["steps"] == 1
    path = tmp_path / "subjects" / "rex.2.safetensors"
    written_at = path.stat().st_mtime_ns
    assert tuning(rex).embedding.equal(first.embedding) and read_subject(path).embedding.equal(first.embedding)
    assert (
        len(messages) == 1
        and messages[0].startswith("tuned to rex.2: 1 steps")
        and path.stat().st_mtime_ns == written_at
    )
    assert capsys.readouterr().out == ""  # which is the report's


def test_tuning_uses_the_device_of_the_evaluation(
    rex: BenchSubject, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record the requested device, because this machine may have no GPU."""
    tuned_subjects: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: tuned_subjects.append(device) or nullcontext())
    second = torch.device("cuda:1")
    config = EvalConfig(model=str(tiny_folder), condition="tuned", tuning=QUICK)
    bench = Bench("photos", "", (rex,), (), (), ())
    _build_tuner(config, bench, tmp_path / "cpu", "cpu", print)(rex)
    assert not tuned_subjects
    _build_tuner(config, bench, tmp_path / "gpu", second, print)(rex)
    assert tuned_subjects == [second]


def test_tuned_subjects_are_identified_by_their_settings(tmp_path: Path) -> None:
    def messages(**other: object) -> dict[str, object]:
        return SubjectTuner("mini", tmp_path, TuneConfig(**other)).settings(128)  # type: ignore[arg-type]

    assert messages()["tuning_steps"] is None and messages()["tuning_learning_rate"] == 1e-3
    assert messages(trainable="unet") != messages() != messages(steps=3) and messages(device="cpu") == messages()


def test_untunable_subjects_are_refused_before_tuning(rex: BenchSubject) -> None:
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
