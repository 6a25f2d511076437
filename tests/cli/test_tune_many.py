"""`tune-many`: a file for each subject of a folder, and one sentence for what can't be tuned."""

from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.checkpoint.subject_file import read_subject
from blip_diffusion.cli.main import main
from tests.training.photos import written


@pytest.mark.usefixtures("empty_working_directory")
def test_subjects_of_a_folder_are_tuned(
    tiny_folder: Path, dog: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    written(dog, Path("subjects/dog/rex"), count=1)
    (written(dog, Path("subjects/cat/tom"), count=1) / "0.png").write_bytes(b"no image")
    command = ["tune-many", "subjects", "--model", str(tiny_folder), "--masks", "none", "--train-steps", "1"]
    assert main([*command, "--trainable", "embedding"]) == 2
    assert read_subject("tuned/rex.safetensors").category == "dog"
    captured = capsys.readouterr()
    assert "tom: None of the 1 photos can be used" in captured.out and "rex: tuned after 1 steps" in captured.out
    assert "1 of 2 subjects were not tuned: tom." in captured.err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "There is no folder of subjects at nowhere"),
        (("--actors", "2"), "--actors has no effect without --on ray"),
        (("--method", "textual-inversion", "--num-class-images", "3"), "--num-class-images has no effect"),
    ],
)
@pytest.mark.usefixtures("empty_working_directory")
def test_bad_input_is_one_sentence(flags: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune-many", "nowhere", *flags]) == 2
    assert problem in capsys.readouterr().err and not Path("tuned").exists()
