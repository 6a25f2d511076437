"""The end of a run: time limits, signals, and losses that are not finite."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_diffusion.training import checkpointing
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.optim import OptimConfig
from blip_diffusion.training.run import DivergedError
from blip_diffusion.training.trainer import HookContext, fit

from .conftest import Launch
from .runs import CONFIG, assert_same_end
from .toys import Regression, batches, train


def test_time_limit_stops_saves_and_exports(tmp_path: Path) -> None:
    def slow(index: int) -> Any:
        time.sleep(0.1)
        return batches(index)

    config = TrainConfig(steps=1000, minutes=2 / 60, device="cpu", log_every=7)
    result = fit(Regression(), slow, config, folder=tmp_path)
    assert result.stopped == "minutes" and 1 <= result.step < 20
    assert result.seconds < 2.5  # the limit, with a margin for a busy machine
    latest = checkpointing.latest(tmp_path / "checkpoints")
    assert latest is not None and latest.name == checkpointing.name(result.step)
    assert (tmp_path / "export" / "net.pt").exists() and result.losses["loss"] > 0


def test_hooks_are_skipped_near_the_time_limit(tmp_path: Path) -> None:
    seen: list[int] = []

    def slow(context: HookContext) -> None:
        seen.append(context.step)
        time.sleep(1.8)

    def paced(index: int) -> Any:
        time.sleep(0.02)
        return batches(index)

    config = TrainConfig(steps=1000, minutes=3 / 60, device="cpu", sample_every=1)
    result = fit(Regression(), paced, config, folder=tmp_path, hooks=[slow])
    assert seen == [1] and result.step > 1 and result.stopped == "minutes"


def test_time_limit_does_not_change_the_schedule(tmp_path: Path) -> None:
    config = {**CONFIG, "minutes": 1e-6}
    for step in range(1, 7):
        assert train({"folder": tmp_path / "parts", "config": config, "resume": True}).step == step
    train({"folder": tmp_path / "whole", "config": CONFIG})
    assert_same_end(tmp_path / "whole", tmp_path / "parts", 6)


def test_save_minutes_sets_the_checkpoint_interval(tmp_path: Path) -> None:
    config = TrainConfig(steps=3, save_minutes=1e-9, save_every=100, keep_last=9, device="cpu")
    fit(Regression(), batches, config, folder=tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_and_saves(tmp_path: Path, launch: Launch, number: int) -> None:
    run = {"folder": str(tmp_path), "config": {**CONFIG, "steps": 50}, "signals": {7: number}}
    ended = launch(run)
    assert ended.returncode == 0, ended.stderr
    assert "stopped: signal at 4" in ended.stdout
    assert checkpointing.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000004"


def test_signal_handlers_are_restored_and_threads_may_train(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train({"folder": tmp_path, "config": CONFIG})))
    thread.start()
    thread.join()
    assert results[0].step == 6
    train({"folder": tmp_path, "config": {**CONFIG, "steps": 8}, "resume": True})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_nan_loss_stops_before_the_step(tmp_path: Path) -> None:
    run = {"folder": tmp_path, "config": {**CONFIG, "save_every": 2}, "arguments": {"poison": 5, "where": 1}}
    with pytest.raises(DivergedError, match=r"Step 5 was not taken.*loss nan.*last checkpoint is step-00000004"):
        train(run)
    whole = train({"folder": tmp_path / "whole", "config": {**CONFIG, "save_every": 2}})
    assert train({**run, "resume": True, "arguments": {}}).step == whole.step
    assert_same_end(tmp_path / "whole", tmp_path, 6)


def test_nan_gradient_stops_and_keeps_the_weights(tmp_path: Path) -> None:
    class Steep(Regression):
        def forward(self, batch: Any, context: Any) -> Any:
            losses = super().forward(batch, context)
            return {"loss": losses["loss"] + (self.net[0].weight * 0).abs().sqrt().sum()}  # 0, but its slope is nan

    method = Steep()
    before = [parameter.detach().clone() for parameter in method.parameters()]
    with pytest.raises(DivergedError, match=r"Step 0 .*gradient norm nan; there is no checkpoint yet"):
        fit(method, batches, TrainConfig(steps=3, device="cpu"), folder=tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(before, method.parameters(), strict=True))


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    config = TrainConfig(steps=3, save_every=1, device="cpu", optim=OptimConfig(lr=3e38))
    method = Regression()
    with torch.no_grad():
        method.net[0].weight.fill_(-1e38)
    with pytest.raises(DivergedError):
        fit(method, batches, config, folder=tmp_path)
    newest = checkpointing.latest(tmp_path / "checkpoints")
    assert newest is None or all(value.isfinite().all() for value in checkpointing.load(newest).model.values())
