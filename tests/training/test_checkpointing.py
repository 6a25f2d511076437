import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_diffusion.errors import CheckpointError
from blip_diffusion.training import checkpointing
from blip_diffusion.training.checkpointing import Checkpoint, State
from blip_diffusion.training.optim import load_optimizer_state


def made(folder: Path, step: int, value: float = 1.0) -> Checkpoint:
    weights = {"w": torch.full((2, 3), value), "n": torch.tensor(7)}
    state = State(step, 8 * step, 1.5, {"loss": 0.25}, 0.125, [{"loss": (0.5, 2)}])
    path = folder / checkpointing.name(step)
    moments = {"moments": {"w": {"step": torch.ones(())}}}
    return Checkpoint(path, state, weights, {"w": weights["w"] * 2}, moments, "a = 1\n")


def test_saved_checkpoint_is_loaded(tmp_path: Path) -> None:
    saved = made(tmp_path, 1234)
    checkpointing.save(saved, keep=2)
    result = checkpointing.load(tmp_path / "step-00001234")
    assert result.state.step == 1234 and result.state.losses == {"loss": 0.25} and result.state.best == 0.125
    assert [{name: tuple(part) for name, part in one.items()} for one in result.state.windows] == saved.state.windows
    assert torch.equal(result.model["w"], saved.model["w"]) and result.model["n"].item() == 7
    assert torch.equal(result.ema["w"], saved.ema["w"]) and result.config == "a = 1\n"
    assert result.optimizer["moments"]["w"]["step"].item() == 1
    assert {path.name for path in result.path.iterdir()} == {
        *("model.safetensors", "ema.safetensors", "optimizer.pt", "config.toml", "state.json")
    }
    assert len({path.stat().st_mode for path in result.path.iterdir()}) == 1  # safetensors makes private files


def test_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        checkpointing.save(made(tmp_path, step), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000009", "step-00000010"]


def test_shared_tensors_and_views_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    saved = Checkpoint(tmp_path / "step-00000001", State(1), {"a": base.T, "b": base[0], "c": base}, {"a": base.T}, {})
    checkpointing.save(saved, keep=1)
    assert torch.equal(checkpointing.load(saved.path).model["a"], base.T)


@pytest.mark.parametrize("crash", ["save_file", "torch.save", "_flush", "rename"])
def test_interrupted_write_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    """A kill is an exception that nothing handles: what is on disk then is what a new process finds."""
    checkpointing.save(made(tmp_path, 1), keep=1)

    class Killed(BaseException):
        pass

    calls = 0

    def killed(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        raise Killed

    with monkeypatch.context() as patch:
        target: Any = {"torch.save": torch, "rename": Path}.get(crash, checkpointing)
        patch.setattr(target, crash.removeprefix("torch."), killed)
        with pytest.raises(Killed):
            checkpointing.save(made(tmp_path, 2), keep=1)
    assert calls == 1
    assert checkpointing.latest(tmp_path) == tmp_path / "step-00000001"
    checkpointing.save(made(tmp_path, 3), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_full_disk_raises_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step-00000001 can't be written: .*No space left on device"):
        checkpointing.save(made(tmp_path, 1), keep=1)
    assert not list(tmp_path.iterdir()), "an incomplete checkpoint fills the disk"
    assert checkpointing.latest(tmp_path) is None


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "optimizer.pt", "config.toml", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path: Path, file: str, damage: str) -> None:
    for step in (1, 2):
        checkpointing.save(made(tmp_path, step), keep=2)
    path = tmp_path / "step-00000002" / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(bytes([content[0] ^ 0x40]) + content[1:])
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        checkpointing.load(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match="The run continues from step-00000001"):
        assert checkpointing.latest(tmp_path) == tmp_path / "step-00000001"
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="There is no other"):
        checkpointing.latest(tmp_path)


MOMENTS = {"exp_avg": torch.zeros(3, 4), "exp_avg_sq": torch.zeros(3, 4), "step": torch.ones(())}


@pytest.mark.parametrize(
    "moments",
    [
        {"weight": {"exp_avg": torch.zeros(1)}},
        {"weight": {"exp_avg_sq": torch.zeros(1).expand(3, 4)}},
        {"weight": {"other": torch.zeros(1).expand(3, 4)}},
        {"weight": {"step": torch.ones(())}},
        {"weight": MOMENTS | {"exp_avg": torch.full((3, 4), float("nan"))}},
        {"weight": MOMENTS | {"exp_avg": [0.0] * 12}},
        {"weight": MOMENTS | {"step": torch.ones(3)}},
        {"weight": MOMENTS | {"step": "one"}},
        {"unknown": {}},
        {"weight": 3},
        [],
    ],
)
def test_mismatched_moments_are_refused(moments: Any) -> None:
    """A fused optimizer would write beyond their memory."""
    layer = torch.nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    with pytest.raises(CheckpointError, match=r"doesn't fit|not trained|no table|not a table"):
        load_optimizer_state(optimizer, dict(layer.named_parameters()), moments)


def test_a_killed_process_leaves_nothing_but_checkpoints(tmp_path: Path) -> None:
    """What was half written is removed; what was about to be replaced, and is whole, gets its name back."""
    for step in (1, 2):
        checkpointing.save(made(tmp_path, step), keep=2)
    (tmp_path / "step-00000002").rename(tmp_path / ".unfinished-replaced-step-00000002")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".unfinished-replaced-step-00000001")
    (tmp_path / ".unfinished-step-00000003").mkdir()
    checkpointing.recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert checkpointing.latest(tmp_path) == tmp_path / "step-00000002"


def test_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpointing.latest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpointing.load(tmp_path / "nowhere")


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for value in (1.0, 5.0):
        checkpointing.save(made(tmp_path, 4, value), keep=2)
    assert checkpointing.load(tmp_path / "step-00000004").model["w"][0, 0] == 5.0
    checkpointing.save(made(tmp_path, 5), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_later_checkpoints_are_renamed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpointing.save(made(tmp_path, step), keep=9)
    checkpointing.supersede(tmp_path, 1)
    assert checkpointing.latest(tmp_path) == tmp_path / "step-00000001"
    assert (tmp_path / "superseded-step-00000003" / "state.json").exists()


def test_differences_between_states_are_listed(tmp_path: Path) -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "d": torch.zeros(1)}
    result = {"b": torch.zeros(4), "c": torch.zeros(1), "d": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        checkpointing.copy_into(expected, result, tmp_path)
    for words in ("a is missing", "c is unexpected", "b has shape (4,) instead of (3,)", "with the settings in"):
        assert words in str(caught.value)
    assert expected["d"].item() == 0  # nothing is copied in part


def test_pickle_with_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "evil"),)

    saved = made(tmp_path, 1)
    checkpointing.save(Checkpoint(saved.path, saved.state, saved.model, saved.ema, {"evil": Evil()}), keep=1)
    with pytest.raises(CheckpointError, match="is refused"):
        checkpointing.load(saved.path)
    assert not (tmp_path / "evil").exists()
