"""Every entry point refuses a hostile file in one sentence, in seconds, and leaves nothing behind."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.cli.main import main

from .conftest import limited
from .corpus import ARCHIVES, CONFIGS, IMAGES, WEIGHTS, Make

EntryPoint = Callable[["Files", Path], list[str]]
DEBUG = Path(__file__).parents[2] / "configs" / "debug"
SECONDS, GIBIBYTES = 30, 2


class Files:
    """Usable files beside the hostile one."""

    def __init__(self, model: Path, dog: Path) -> None:
        self.model, self.dog = str(model), str(dog)
        self.model_flags = ["--model", self.model]
        self.subject_flags = [*self.model_flags, "--category", "dog"]
        self.flags = [*self.subject_flags, "--reference", self.dog]


@pytest.fixture(scope="module")
def files(tiny_folder: Path, dog: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Files:
    path = tmp_path_factory.mktemp("usable") / "dog.png"
    dog.save(path)
    return Files(tiny_folder, path)


IMAGE_INPUTS: dict[str, EntryPoint] = {
    "generate --reference": lambda f, bad: ["generate", "on grass", *f.subject_flags, "--reference", str(bad)],
    "tune": lambda f, bad: ["tune", str(bad), *f.subject_flags, "--name", "rex"],
    "edit": lambda f, bad: ["edit", str(bad), *f.model_flags, "--from", "cat", "--to", "dog", "--reference", f.dog],
    "edit --reference": lambda f, bad: [
        "edit", f.dog, *f.model_flags, "--from", "cat", "--to", "dog", "--reference", str(bad)
    ],
    "inpaint --mask": lambda f, bad: ["inpaint", f.dog, "--mask", str(bad), *f.flags],
    "inpaint": lambda f, bad: ["inpaint", str(bad), "--mask", f.dog, *f.flags],
}  # fmt: skip
ACCEPTED = {
    ("edit", "one colour"), ("edit", "transparent"), ("inpaint", "one colour"), ("inpaint", "transparent"),
    ("inpaint --mask", "one colour"),
}  # fmt: skip
"""Photos without a subject may be edited."""

WEIGHT_INPUTS: dict[str, EntryPoint] = {
    "generate --subject": lambda f, bad: ["generate", "on grass", *f.model_flags, "--subject", str(bad)],
    "generate --lora": lambda f, bad: ["generate", "on grass", *f.flags, "--lora", str(bad)],
    "generate --embedding": lambda f, bad: ["generate", "on grass", *f.flags, "--embedding", str(bad)],
    "generate --model": lambda f, bad: [
        "generate", "on grass", "--category", "dog", "--reference", f.dog, "--model", str(bad)
    ],
    "convert": lambda _, bad: ["convert", str(bad), "--out", "converted"],
    "caption --model": lambda f, bad: ["caption", f.dog, "--model", str(bad), "--out", "captions.jsonl"],
}  # fmt: skip
CONFIG_INPUTS: dict[str, EntryPoint] = {"train": lambda _, bad: ["train", str(bad), "--out", "run"]}
DATA_INPUTS: dict[str, EntryPoint] = {
    "train": lambda _, bad: ["train", str(DEBUG / "autoencoder.toml"), "--out", "run", "--set", f'data.path="{bad}"'],
    "train-mini": lambda _, bad: ["train-mini", "--data", str(bad), "--out", "run", "--minutes", "0.01"],
    "train-control": lambda f, bad: ["train-control", *f.model_flags, "--data", str(bad), "--out", "run"],
    "evaluate": lambda f, bad: ["evaluate", *f.model_flags, "--dataset", str(bad), "--out", "report"],
}

CASES = [
    pytest.param(inputs[entry], corpus[name], id=f"{entry}: {name}")
    for inputs, corpus in (
        (IMAGE_INPUTS, IMAGES),
        (WEIGHT_INPUTS, WEIGHTS),
        (CONFIG_INPUTS, CONFIGS),
        (DATA_INPUTS, ARCHIVES),
    )
    for entry in inputs
    for name in corpus
    if (entry, name) not in ACCEPTED
]


@pytest.mark.parametrize(("entry", "make"), CASES)
def test_hostile_file_is_refused(
    entry: EntryPoint,
    make: Make,
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent").mkdir()
    command = entry(files, make(tmp_path / "sent"))
    with limited(wall=SECONDS):
        assert main(command) == 2
    printed = capsys.readouterr().err
    sentence = printed.rpartition("blip-diffusion: ")[2].strip()
    assert sentence and len(sentence) < 600 and "Traceback" not in printed, printed
    assert [path.name for path in tmp_path.iterdir()] == ["sent"], "left behind"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < GIBIBYTES * 2**20
