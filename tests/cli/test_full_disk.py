"""A full disk at several sizes, for every command that writes: one sentence, exit code 1, and only whole files.

A limit of the size of files stands for the disk: writes beyond it fail, as they do on a full disk or quota.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from blip_diffusion.cli.main import main
from tests.training.photos import written

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
    "data sheet": ["data", "sheet", "--dataset", str(WORLD), "--num-images", "2", "--out", "out/sheet.png"],
}  # fmt: skip
WITHOUT_MODEL = ("convert", "train", "train-mini", "data sheet")


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


@pytest.mark.parametrize("size", [0, 2_000])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_sentence(
    name: str,
    size: int,
    tiny_folder: Path,
    dog: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dog.save("dog.png")
    written(dog, Path("photos"))
    Image.effect_noise((48, 32), 80).convert("RGB").save("photo.png")
    Image.linear_gradient("L").resize((48, 32)).point(lambda value: 255 * (value > 128)).save("mask.png")
    words = [str(tiny_folder) if word == "MODEL" else word for word in COMMANDS[name]]
    model = [] if name in WITHOUT_MODEL else ["--model", str(tiny_folder), "--device", "cpu"]
    with disk_of(size):
        code = main([*words, *model])
    error = capsys.readouterr().err
    assert code == 1, error
    assert "blip-diffusion: The disk is full" in error and error.rstrip().splitlines()[-1].startswith("blip-diffusion:")
    for path in Path("out").rglob("*"):
        if path.is_file():
            assert_whole(path)
