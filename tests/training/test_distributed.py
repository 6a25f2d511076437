"""Two processes with gloo, compared with one process that accumulates twice as many micro-batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip_diffusion.training import checkpointing

from .conftest import Launch
from .toys import ROWS, train

CONFIG: dict[str, Any] = {
    "steps": 6,
    "log_every": 4,
    "save_every": 2,
    "keep_last": 9,
    "device": "cpu",
    "optim": {"lr": 0.01, "schedule": "cosine", "clip": 0.5},
}


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_close(first: Path, second: Path, step: int) -> None:
    one, other = (folder / "checkpoints" / checkpointing.name(step) for folder in (first, second))
    for file in ("model.safetensors", "ema.safetensors"):
        left, right = load_file(one / file), load_file(other / file)
        assert left.keys() == right.keys()
        for name in left.keys() - {"seen"}:
            torch.testing.assert_close(left[name], right[name], atol=1e-6, rtol=0)


def test_two_processes_equal_gradient_accumulation(tmp_path: Path, launch: Launch) -> None:
    """With gathered negatives, dropout, and 2 processes x 2 micro-batches in another order than the ranks."""
    cases = [("contrast", 1), ("contrast", 2), ("regression", 1)]
    specs = [
        {
            "folder": str(tmp_path / f"two-{method}-{n}"),
            "objective": method,
            "config": {**CONFIG, "gradient_accumulation_steps": n},
        }
        for method, n in cases
    ]
    ended = launch(*specs, processes=2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("stopped: done at 6") == 2 * len(cases)
    for method, n in cases:
        two, one = tmp_path / f"two-{method}-{n}", tmp_path / f"one-{method}-{n}"
        train({"folder": one, "objective": method, "config": {**CONFIG, "gradient_accumulation_steps": 2 * n}})
        for step in (2, 6):
            assert_close(one, two, step)
        assert len(log(one)) == len(log(two)) == 2
        for left, right in zip(log(one), log(two), strict=True):
            assert left["loss"] == pytest.approx(right["loss"], abs=1e-6)
            assert left["samples"] == right["samples"] == left["step"] * 2 * n * ROWS
            assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], abs=1e-5)


def test_processes_stop_together_save_once_and_resume(tmp_path: Path, launch: Launch) -> None:
    """Both are sent away by the clock in the middle of a report's window, resume, and end as one process would."""
    spec = {"folder": str(tmp_path / "two"), "config": CONFIG}
    stopped = {**spec, "config": {**CONFIG, "minutes": 1e-6}}
    ended = launch(stopped, {**spec, "resume": "latest"}, processes=2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("stopped: minutes at 1") == ended.stdout.count("stopped: done at 6") == 2
    train({"folder": tmp_path / "one", "config": {**CONFIG, "gradient_accumulation_steps": 2}})
    assert_close(tmp_path / "one", tmp_path / "two", 6)
    assert [line["loss"] for line in log(tmp_path / "two")] == pytest.approx(
        [line["loss"] for line in log(tmp_path / "one")], abs=1e-6
    )


def test_divergence_in_one_process_stops_all(tmp_path: Path, launch: Launch) -> None:
    spec = {"folder": str(tmp_path), "config": CONFIG, "arguments": {"poison": 3, "where": 1}}
    ended = launch(spec, processes=2)
    assert ended.returncode != 0
    assert ended.stderr.count("DivergedError: Step 3 was not taken") >= 1
    newest = checkpointing.latest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-00000002"


def test_a_signal_to_one_process_stops_all(tmp_path: Path, launch: Launch) -> None:
    """Only the process that takes odd indices is signalled."""
    spec = {"folder": str(tmp_path), "config": {**CONFIG, "steps": 40, "prefetch": 0}, "signals": {7: 15}}
    ended = launch(spec, processes=2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("stopped: signal at 4") == 2
    assert not (tmp_path / "export").exists()
