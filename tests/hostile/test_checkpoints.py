"""Runs resume from a damaged or forged checkpoint with one sentence, and never start over."""

import shutil
from pathlib import Path

import pytest

from blip_diffusion.errors import CheckpointError
from blip_diffusion.training.recipe.timed_loop import claimed
from tests.training.runs import CONFIG
from tests.training.toys import train

from .checkpoints import STATES, TENSORS, Spoil
from .conftest import limited

STEPS = {**CONFIG, "steps": 2, "save_every": 1, "keep_last": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train({"folder": folder, "config": STEPS})
    return folder


@pytest.mark.parametrize("spoil", [*STATES.values(), *TENSORS.values()], ids=[*STATES, *TENSORS])
def test_a_forged_checkpoint_is_refused(
    spoil: Spoil, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    log = (copied / "log.jsonl").read_bytes()
    spoil(copied / "checkpoints" / "step-00000002")
    with limited(), pytest.raises(CheckpointError) as caught:
        train({"folder": copied, "config": {**STEPS, "steps": 4}, "resume": "latest"})
    sentence = str(caught.value)
    assert len(sentence) < 1000 and "\n" not in sentence and "weights_only" not in sentence
    assert (copied / "log.jsonl").read_bytes() == log and not Path("executed").exists()
    assert [path.name for path in (copied / "checkpoints").iterdir()] == ["step-00000002"]


def test_what_a_killed_save_left_is_gone_at_the_start(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    left = copied / "checkpoints" / ".unfinished-step-00000003"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with claimed(tmp_path, resume=True):
        assert [path.name for path in (copied / "checkpoints").iterdir()] == ["step-00000002"]
