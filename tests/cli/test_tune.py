"""`tune`, and `generate` with its subject files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from blip_diffusion.checkpoint.diffusers_export import save_stable_diffusion
from blip_diffusion.checkpoint.subject_file import read_subject, write_subject
from blip_diffusion.cli.main import main
from blip_diffusion.model import BlipDiffusion
from tests.checkpoint.loras import lora_of
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


def test_a_subject_is_tuned_on_top_of_loras_and_words(
    tiny_folder: Path, dog: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result goes with the plain model, together with the same LoRA: its fingerprint is the plain model's."""
    dog.save("dog.png")
    lora_of(tiny_folder, Path("style.safetensors"))
    save_file({"<rex>": torch.randn(2, 32)}, "word.safetensors")
    flags = ["--lora", "style.safetensors:0.5", "--embedding", "word.safetensors", "--model", str(tiny_folder)]
    command = [
        "tune",
        "dog.png",
        "--category",
        "<rex>",
        "--name",
        "rex",
        "--train-steps",
        "1",
        "--masks",
        "none",
        *flags,
    ]
    assert main(command) == 0
    assert (
        "--subject rex.safetensors --lora style.safetensors:0.5 --embedding word.safetensors" in capsys.readouterr().out
    )
    assert generate(tiny_folder, "--subject", "rex.safetensors", *flags[:4]) == 0
    assert main([*command, "--lora", "style.safetensors"]) == 2
    assert "was tuned with other LoRAs or embeddings" in capsys.readouterr().err
    assert main([*command, "--trainable", "unet", "--out", "new.safetensors"]) == 2
    assert "trainable is unet, which saves weights that hold the LoRAs as well" in capsys.readouterr().err
    assert not Path("new.safetensors.tuning").exists()


def test_dreambooth_folder_as_model_is_refused(model: BlipDiffusion, capsys: pytest.CaptureFixture[str]) -> None:
    save_stable_diffusion(model, Path("rex"))
    assert main(["generate", "x", "--model", "rex", "--category", "dog", "--lora", "rex/model_index.json"]) == 2
    assert "as tune --method dreambooth writes: use diffusers' StableDiffusionPipeline" in capsys.readouterr().err


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
    assert "x.safetensors has changed since the image was generated" in capsys.readouterr().err


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
        (
            ["tune", "x.png", "--category", "dog", "--name", "rex", "--batch-size", "0"],
            "--batch-size is 0: use 1 to 1000",
        ),
        (["tune", "x.png", "--category", "dog", "--name", "rex", "--learning-rate", "-1"], "--learning-rate must be"),
        (
            ["tune", "x.png", "--category", "dog", "--name", "rex", "--num-class-images", "-1"],
            "--num-class-images is -1: use 0 to 1000",
        ),
        (["tune", "x.png", "--category", "dog", "--name", "rex", "--lora", "gone.safetensors"], "There is no LoRA at"),
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
