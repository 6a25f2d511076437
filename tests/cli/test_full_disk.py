"""A full disk at several sizes, for every command that writes: one sentence, exit code 1, and only whole files.

A limit of the size of files stands for the disk: writes beyond it fail, as they do on a full disk or quota.
"""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from blip_diffusion.cli.main import main
from tests.data.benchmarks.test_dreambench import published
from tests.training.photos import written

Command = Callable[[str], list[str]]

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "tests" / "fixtures" / "world.zip"
SMALL = ["--set", "synthetic.size=32", "--set", "synthetic.object_crop_size=16", "--set", "held_out=4", "--set",
         "cpu.pool=48", "--set", "cpu.fill=16", "--set", "cpu.worker_batch=8"]  # fmt: skip
TRAIN = ["--data", str(WORLD), "--out", "out", "--minutes", "0.01", "--device", "cpu", "--workers", "0", *SMALL]
REFERENCE = ["--reference", "dog.png", "--category", "dog", "--steps", "1", "--out", "out"]
COMMANDS = {
    "generate": ["generate", "on the beach", *REFERENCE],
    "grid": ["generate", "on the beach", *REFERENCE, "--grid", "out/grid.png"],
    "edit": ["edit", "photo.png", "--from", "cat", "--to", "dog", "--steps", "2", "--out", "out"],
    "inpaint": ["inpaint", "photo.png", "in snow", "--mask", "mask.png", *REFERENCE],
    "tune": ["tune", "photos", "--category", "dog", "--name", "rex", "--masks", "none", "--train-steps", "1", "--out",
             "out/rex.safetensors"],
    "convert": ["convert", "MODEL", "--out", "out/model"],
    "train": ["train", str(ROOT / "configs/debug/autoencoder.toml"), "--out", "out", "--set", f"data.path={WORLD}",
              "--set", "train.device=cpu", "--set", "train.steps=2", "--set", "train.save_every=1"],
    "train-mini": ["train-mini", *TRAIN, "--set", 'preset="tiny-placed"'],
    "train-control": ["train-control", "--model", "MODEL", *TRAIN, "--set", "samples=2"],
    "data sheet": ["data", "sheet", "--dataset", str(WORLD), "--num-images", "2", "--out", "out/sheet.png"],
    "evaluate": ["evaluate", "--model", "MODEL", "--benchmark", "bench", "--out", "out", "--steps", "1",
                 "--subjects", "2", "--prompts", "2", "--seeds", "1", "--metrics", "dino=DINO"],
    "evaluate-captions": ["evaluate-captions", "--model", "BLIP2", "--dataset", str(WORLD), "--out", "out",
                          "--num-images", "4", "--num-beams", "1"],
    "caption": ["caption", "photos", "--model", "BLIP2", "--num-beams", "1", "--max-new-tokens", "2", "--out",
                "out/captions.jsonl"],
    "invent": ["invent", "apple", "--model", "PRIOR", "--steps", "1", "--out", "out/apple.safetensors"],
}  # fmt: skip
WITH_MODEL = ("generate", "grid", "edit", "inpaint", "tune")


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Context manager: no file grows beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_whole(path: Path) -> None:
    """Check that a file has no temporary name, and can be read."""
    assert ".partial-" not in str(path)
    if path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            assert list(file.keys())
    else:
        assert path.stat().st_size or path.name == "log.jsonl"


@pytest.fixture
def command(models: dict[str, str], dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return the words of a command, whose files are in the working directory."""
    monkeypatch.chdir(tmp_path)
    dog.save("dog.png")
    written(dog, Path("photos"))
    published(Path("bench"))
    Image.effect_noise((48, 32), 80).convert("RGB").save("photo.png")
    Image.linear_gradient("L").resize((48, 32)).point(lambda value: 255 * (value > 128)).save("mask.png")

    places = models | {"dino=DINO": f"dino={models['DINO']}"}

    def words(name: str) -> list[str]:
        model = ["--model", models["MODEL"], "--device", "cpu"] if name in WITH_MODEL else []
        return [*(places.get(word, word) for word in COMMANDS[name]), *model]

    return words


@pytest.mark.parametrize("size", [0, 2_000])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_sentence(
    name: str, size: int, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    if (name, size) == ("caption", 2_000):
        pytest.skip("its captions are smaller")
    with disk_of(size):
        code = main(command(name))
    output = capsys.readouterr()
    assert code == 1, output.err
    assert "blip-diffusion: The disk is full" in output.err
    assert output.err.rstrip().splitlines()[-1].startswith("blip-diffusion:")
    for path in Path("out").rglob("*"):
        if path.is_file():
            assert_whole(path)
    if name == "caption":  # are printed instead
        assert [line.partition(":")[0] for line in output.out.splitlines()] == [f"photos/{i}.png" for i in range(3)]


def test_a_checkpoint_that_is_cut_off_is_one_sentence(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch's writer finds that it is at another place than it should be, which names no full disk."""
    for size in range(20_000, 200_000, 20_000):
        with disk_of(size):
            code = main(command("tune"))
        error = capsys.readouterr().err
        assert code == 0 or (code == 1 and "blip-diffusion: The disk is full" in error), error
        shutil.rmtree("out")


def test_no_place_for_temporary_files_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch looks for one when it is imported, which fails on a full disk."""

    def importing(_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("blip_diffusion.cli.commands.doctor.run", importing)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("blip-diffusion: The disk is full ([Errno 2] No usable temporary")


def test_evaluation_continues_where_the_disk_was_full(command: Command) -> None:
    """Its images are kept, and generated once."""
    with disk_of(4_000):  # less than the report
        assert main(command("evaluate")) == 1
    generated = {path: path.stat().st_mtime_ns for path in Path("out/images").rglob("*.png")}
    assert generated and not Path("out/report.json").exists()
    assert main(command("evaluate")) == 0
    assert Path("out/report.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in generated} == generated


@pytest.mark.parametrize("arguments", [["search", "photos", "a dog", "--model", "BLIP2"], ["doctor"]])
def test_output_to_a_full_disk_is_one_sentence(
    arguments: list[str],
    command: Command,
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command("generate")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main([models.get(word, word) for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("blip-diffusion: The disk is full") and len(error.splitlines()) == 1


def test_a_reader_may_end_before_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `head` does: no message, and the exit code of other programs."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert main(["doctor"]) == 141
    assert capsys.readouterr().err == ""
