"""`tune`, and `generate` with its subject files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip_diffusion.checkpoint.subject_file import read_subject, write_subject
from blip_diffusion.cli.main import main
from tests.training.photos import written


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def rex(tiny_folder: Path, dog: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned subject, as the command line makes one."""
    folder = tmp_path_factory.mktemp("tuned")
    out = folder / "rex.safetensors"
    words = ["tune", written(dog, folder / "photos"), "--category", "dog", "--name", "rex", "--train-steps", 1]
    assert main([str(word) for word in [*words, "--out", out, "--model", tiny_folder, "--masks", "none"]]) == 0
    return out


def generate(model: Path, *words: object) -> int:
    return main([str(word) for word in ("generate", "on the beach", "--model", model, "--steps", 1, *words)])


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_tuned_subject_is_generated_and_reproduced(rex: Path, tiny_folder: Path) -> None:
    assert read_subject(rex).rank == 8
    assert generate(tiny_folder, "--subject", rex, "--grid", "sheet.png") == 0
    path = Path("out/on-the-beach-0.png")
    assert path.is_file() and Path("sheet.png").is_file()
    assert main(["generate", "--reproduce", str(path), "--out", "again"]) == 0
    assert np.array_equal(pixels(path), pixels("again/on-the-beach-0.png"))


def test_two_subjects_are_mixed(rex: Path, tiny_folder: Path) -> None:
    subject = read_subject(rex)
    write_subject(subject.__class__("tom", "cat", -subject.embedding, subject.base), Path("tom.safetensors"))
    assert generate(tiny_folder, "--subject", rex, "--out", "rex") == 0
    assert generate(tiny_folder, "--subject", f"{rex}:3", "--subject", "tom.safetensors:1", "--out", "mixed") == 0
    assert not np.array_equal(pixels("rex/on-the-beach-0.png"), pixels("mixed/on-the-beach-0.png"))


def test_changed_subject_file_is_refused(rex: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = read_subject(rex)
    write_subject(subject, Path("x.safetensors"))
    assert generate(tiny_folder, "--subject", "x.safetensors") == 0
    write_subject(subject.__class__("rex", "dog", subject.embedding + 1, subject.base), Path("x.safetensors"))
    capsys.readouterr()
    assert main(["generate", "--reproduce", "out/on-the-beach-0.png"]) == 2
    assert "x.safetensors has changed since the image was made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["generate", "x", "--subject", "nowhere.safetensors"], "no subject at nowhere.safetensors"),
        (["generate", "x", "--subject", "nowhere.safetensors:much"], "has the weight 'much'"),
        (["generate", "x", "--subject", "a", "--reference", "b", "--category", "dog"], "exclude each other"),
        (["tune", "nowhere.png", "--category", "dog", "--name", "rex"], "There is no photo at nowhere.png"),
        (["tune", "x.png", "--category", "a very big brown dog", "--name", "rex"], "is too long"),
        (["tune", "x.png", "--category", "dog", "--name", "a b"], "name 'a b' can't be used"),
        (["tune", "x.png", "--category", "dog", "--name", "rex", "--train-steps", "many"], "--train-steps is many"),
        (["tune", "x.png", "--category", "dog", "--name", "rex", "--train-steps", "0"], "--train-steps is 0"),
        (
            ["tune", "x.png", "--category", "dog", "--name", "rex", "--out", "x.png/x.safetensors"],
            "Nothing can be written to x.png",
        ),
        (["tune", "x.png", "--category", "dog", "--name", "rex", "--masks", "a.png", "b.png"], "2 masks for 1 photos"),
    ],
)
def test_invalid_subjects_exit_with_code_2(
    words: list[str], sentence: str, dog: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dog.save("x.png")
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and sentence in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_subject_of_another_model_is_refused(rex: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--subject", str(rex)]) == 2
    assert "'rex' was tuned for" in capsys.readouterr().err
