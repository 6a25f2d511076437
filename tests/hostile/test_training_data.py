"""`train` reads a stranger's folders and shards of captioned images: one sentence, and no run is begun."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Attempt
from .data import FOLDERS, SHARDS, Spoil, _line
from .images import encoded, noise

CONFIG = Path(__file__).parents[2] / "configs" / "debug" / "autoencoder.toml"
TRAIN = ("train", CONFIG, "--out", "run", "--set", "train.device=cpu", "--set", "train.steps=1", "--set",
         "data.batch_size=1", "--set", "train.sample_every=0")  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "1.png").write_bytes(encoded(noise(), "PNG"))
    _line()(folder)
    return folder


def test_train_reads_captioned_images(attempt: Attempt, photos: Path) -> None:
    assert attempt(*TRAIN, "--set", f'data.path="{photos}"') == 0


@pytest.mark.filterwarnings("ignore:.*is passed over")
@pytest.mark.parametrize("spoil", FOLDERS.values(), ids=FOLDERS.keys())
def test_train_reads_folders(attempt: Attempt, photos: Path, spoil: Spoil) -> None:
    spoil(photos)
    assert attempt(*TRAIN, "--set", f'data.path="{photos}"') == 2


@pytest.mark.filterwarnings("ignore:.*is passed over")
@pytest.mark.parametrize("make", SHARDS.values(), ids=SHARDS.keys())
def test_train_reads_shards(attempt: Attempt, tmp_path: Path, make: Callable[[], bytes]) -> None:
    (tmp_path / "1.tar").write_bytes(make())
    assert attempt(*TRAIN, "--set", f'data.path="{tmp_path / "1.tar"}"') == 2
