"""Resuming a run from its checkpoints."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip_diffusion.errors import CheckpointError
from blip_diffusion.training import checkpointing

from .conftest import Launch
from .runs import CONFIG, assert_same_end, read_log
from .toys import ROWS, train


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    train({"folder": tmp_path / "whole", "config": CONFIG})
    run = {"folder": tmp_path / "parts", "config": CONFIG}
    first = train({**run, "signals": {2 * stop - 1: signal.SIGTERM}})
    assert (first.stopped, first.step) == ("signal", stop)
    assert not (tmp_path / "parts" / "export").exists()
    second = train({**run, "resume": "latest"})
    assert (second.stopped, second.step, second.samples) == ("done", 6, 6 * 2 * ROWS)
    assert_same_end(tmp_path / "whole", tmp_path / "parts", 6)
    one, other = (torch.load(tmp_path / name / "export" / "net.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_killed_run_resumes_from_the_last_checkpoint(tmp_path: Path, launch: Launch) -> None:
    config = {**CONFIG, "save_every": 2, "log_every": 1, "prefetch": 2}
    train({"folder": tmp_path / "whole", "config": config})
    run = {"folder": str(tmp_path / "parts"), "config": config}
    killed = launch({**run, "signals": {9: signal.SIGKILL}})  # while step 2 or 3 is under way
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = tmp_path / "parts" / "checkpoints"
    assert checkpointing.latest(saved) == saved / "step-00000002"
    result = train({**run, "resume": True})
    assert result.step == 6
    assert_same_end(tmp_path / "whole", tmp_path / "parts", 6)


def test_resuming_from_an_earlier_checkpoint_renames_later_ones(tmp_path: Path) -> None:
    config = {**CONFIG, "save_every": 2, "keep_last": 9}
    run = {"folder": tmp_path, "config": config}
    train(run)
    expected = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    result = train({**run, "resume": str(tmp_path / "checkpoints" / "step-00000002")})
    assert result.step == 6
    again = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in expected.items())
    assert (tmp_path / "checkpoints" / "superseded-step-00000006").exists()
    assert [line["step"] for line in read_log(tmp_path)] == [4, 6]


def test_run_with_only_damaged_checkpoints_is_not_restarted(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": {**CONFIG, "keep_last": 1}}
    train(run)
    (tmp_path / "checkpoints" / "step-00000006" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(run)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged.* There is no other"):
        train({**run, "resume": True})


def test_damaged_checkpoint_is_skipped(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": {**CONFIG, "save_every": 2}}
    train(run)
    (tmp_path / "checkpoints" / "step-00000006" / "optimizer.pt").write_bytes(b"nonsense")
    with pytest.warns(UserWarning, match=r"optimizer\.pt changed.* continues from step-00000004"):
        assert train({**run, "resume": "latest"}).step == 6
    assert checkpointing.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000006"


def test_resuming_an_empty_folder_starts_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"^{tmp_path} holds no checkpoint: the run starts from the beginning"):
        assert train({"folder": tmp_path, "config": CONFIG, "resume": "latest"}).step == 6


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": CONFIG}
    first = train(run)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.warns(UserWarning, match=f"^{tmp_path} is trained already, 6 steps: only its result is written"):
        second = train({**run, "resume": True})
    assert second == first and (tmp_path / "log.jsonl").read_text() == before


def test_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": CONFIG}
    train(run)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(CheckpointError, match="already holds a run, up to step-00000006; resume it"):
        train(run)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_checkpoint_of_another_objective_is_refused(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": CONFIG}
    train(run)
    with pytest.raises(CheckpointError, match=r"left\.weight is missing.*net\.0\.weight is unexpected.* and 2 more"):
        train({**run, "objective": "contrast", "resume": True})


def test_resuming_without_ema_uses_the_raw_weights(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": {**CONFIG, "ema_decay": 0.9}}
    train(run)
    raw = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    train({**run, "config": {**CONFIG, "ema_decay": 0.0}, "resume": True})
    exported = torch.load(tmp_path / "export" / "net.pt", weights_only=True)
    assert all(torch.equal(value, raw[f"net.{name}"]) for name, value in exported.items())


def test_resuming_uses_the_new_configuration(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": {**CONFIG, "log_every": 1}}
    train(run)
    changed = {**CONFIG, "log_every": 1, "steps": 8, "optim": {"lr": 0.5}}
    train({**run, "config": changed, "resume": True})
    assert [line["lr"] for line in read_log(tmp_path)][-2:] == [0.5, 0.5]
