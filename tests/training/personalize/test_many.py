"""Many subjects: a file for each, equal to that of `tune`, and the same call continues."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip_diffusion.checkpoint.subject_file import read_subject
from blip_diffusion.errors import BlipDiffusionError, InputError
from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.personalize.many import ManyConfig, Outcome, subjects_in, tune_many
from tests.training.photos import written

ONE_STEP = TuneConfig(steps=1, batch_size=1, trainable="embedding")


def test_each_subject_gets_the_file_of_tune(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    for place in ("dog/rex", "toy dog/tom"):
        written(dog, tmp_path / "photos" / place, count=1)
    (written(dog, tmp_path / "photos/cat/broken", count=1) / "0.png").write_bytes(b"no image")
    settings = ManyConfig(tmp_path / "out", str(tiny_folder), ONE_STEP, masks="none")
    subjects = subjects_in(tmp_path / "photos")
    ended: list[Outcome] = []
    with warnings.catch_warnings(action="error", category=UserWarning):  # nothing of a missing checkpoint
        tune_many(subjects, settings, on_ended=ended.append)
    assert [(one.name, one.state, one.step) for one in ended] == [
        ("broken", "failed", 0), ("rex", "tuned", 1), ("tom", "tuned", 1)]  # fmt: skip
    alone = tune([tmp_path / "photos/toy dog/tom"], category="toy dog", name="tom", out=tmp_path / "tom.safetensors",
                 model=tiny_folder, config=ONE_STEP, masks="none")  # fmt: skip
    one, other = read_subject(alone.out), read_subject(tmp_path / "out/tom.safetensors")
    assert torch.equal(one.embedding, other.embedding) and one.metadata == other.metadata

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    (tmp_path / "out/rex.safetensors").unlink()
    states = [one.state for one in tune_many(subjects[1:], settings)]
    assert states == ["tuned", "kept"]
    assert before["tom.safetensors"] == (tmp_path / "out/tom.safetensors").stat().st_mtime_ns
    other = ManyConfig(tmp_path / "out", str(tiny_folder), TuneConfig(steps=2, trainable="embedding"), masks="none")
    (outcome,) = tune_many(subjects[2:], other)
    assert outcome.state == "failed" and "was tuned with other" in outcome.problem


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        ([], "no subjects in"),
        (["dog/rex", "cat/rex"], "Two subjects in .* are named rex"),
        (["dog/re x"], "re x"),
        (["dog/empty"], "no images in"),
    ],
)
def test_wrong_folders_are_refused(folders: list[str], problem: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        if "empty" not in folder:
            (tmp_path / folder / "0.png").touch()
    with pytest.raises(BlipDiffusionError, match=problem):
        subjects_in(tmp_path)


def test_dreambooth_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of subjects"):
        subjects_in(tmp_path / "none")
    with pytest.raises(InputError, match="choose another method"):
        tune_many([], ManyConfig(tmp_path, config=TuneConfig(method="dreambooth")))


def test_arguments_of_wrong_types_are_refused(tmp_path: Path) -> None:
    settings = ManyConfig(tmp_path / "out")
    for fields in ({"out": 5}, {"out": ""}, {"model": None}, {"config": {}}, {"loras": "x"}, {"masks": "both"}):
        with pytest.raises(InputError, match=next(iter(fields))):
            ManyConfig(**{"out": tmp_path, **fields})  # type: ignore[arg-type]
    for folder in (None, 5, ""):
        with pytest.raises(InputError, match="folder"):
            subjects_in(folder)  # type: ignore[arg-type]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("subjects", {"subjects": "dogs"}), ("subject", {"subjects": ["dogs"]}), ("settings", {"settings": tmp_path}),
        ("backend", {"backend": "slurm"}), ("on_ended", {"on_ended": 5}),
    ]  # fmt: skip
    for name, arguments in wrong:
        with pytest.raises(InputError, match=name):
            tune_many(**{"subjects": [], "settings": settings, **arguments})
    assert not list(tmp_path.iterdir())
