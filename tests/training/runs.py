"""Helpers of the tests of training runs."""

import json
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.training import checkpointing

TIMES = ("seconds", "samples_per_second", "eta")
CONFIG: dict[str, Any] = {
    "steps": 6,
    "gradient_accumulation_steps": 2,
    "log_every": 4,
    "save_every": 100,
    "device": "cpu",
    "prefetch": 0,
    "optim": {"lr": 0.01, "schedule": "cosine", "warmup": 2},
}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, without values that depend on time."""
    result = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in result]


def assert_same_end(first: Path, second: Path, step: int) -> None:
    """Compare parameters, buffers, EMA, moments and logs, bit for bit."""
    one, other = (checkpointing.load(folder / "checkpoints" / checkpointing.name(step)) for folder in (first, second))
    for left, right in ((one.model, other.model), (one.ema, other.ema)):
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in left.items())
    left, right = one.optimizer["moments"], other.optimizer["moments"]
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name][kind]) for name in left for kind, value in left[name].items())
    assert one.state.samples == other.state.samples and one.state.windows == other.state.windows
    assert read_log(first) == read_log(second)
