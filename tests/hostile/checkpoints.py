"""Hostile changes of a run's checkpoint: each takes its folder, in which digests are right again afterwards."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from blip_diffusion.fileio import sha256_of
from blip_diffusion.training.checkpointing import EMA, MODEL, OPTIMIZER, STATE

from .weights import SAFETENSORS, Command

Spoil = Callable[[Path], object]


def _state(**change: object) -> Spoil:
    def spoil(folder: Path) -> None:
        table = json.loads((folder / STATE).read_text())
        (folder / STATE).write_text(json.dumps({**table, **change}))

    return spoil


def _state_bytes(data: bytes) -> Spoil:
    return lambda folder: (folder / STATE).write_bytes(data)


def _piped(folder: Path) -> None:
    (folder / STATE).unlink()
    os.mkfifo(folder / STATE)


def _endless(folder: Path) -> None:
    (folder / STATE).unlink()
    (folder / STATE).symlink_to("/dev/zero")


def _with_digest(folder: Path, name: str) -> None:
    table = json.loads((folder / STATE).read_text())
    table["files"][name] = sha256_of(folder / name)
    (folder / STATE).write_text(json.dumps(table))


def _moments(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the moments of all parameters, by their names."""

    def spoil(folder: Path) -> None:
        content = torch.load(folder / OPTIMIZER, weights_only=True)
        for state in content["moments"].values():
            change(state)
        torch.save(content, folder / OPTIMIZER)
        _with_digest(folder, OPTIMIZER)

    return spoil


def _optimizer(content: object) -> Spoil:
    def spoil(folder: Path) -> None:
        torch.save(content, folder / OPTIMIZER)
        _with_digest(folder, OPTIMIZER)

    return spoil


def _tensors(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def spoil(folder: Path) -> None:
        save_file({key: change(value) for key, value in load_file(folder / name).items()}, folder / name)
        _with_digest(folder, name)

    return spoil


def _file(name: str, make: Callable[[], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(make())
        _with_digest(folder, name)

    return spoil


STATES: dict[str, Spoil] = {
    "empty": _state_bytes(b""),
    "list": _state_bytes(b"[]"),
    "deep": _state_bytes(b"[" * 100_000),
    "digits": _state_bytes(b'{"step": ' + b"9" * 9000 + b"}"),
    "large": _state_bytes(b" " * (2**24 + 1)),
    "named pipe": _piped,
    "device": _endless,
    "key given twice": lambda folder: (folder / STATE).write_text(
        (folder / STATE).read_text().replace('"step":', '"step": 1, "step":', 1)
    ),
    "unknown key": _state(colour="red"),
    "no digests": _state(files={}),
    "digests that are no table": _state(files=[1]),
    "digests that are no text": _state(files={MODEL: 3, EMA: 3, OPTIMIZER: 3, "config.toml": 3}),
    **{
        f"{key} {value!r:.20}": _state(**{key: value})
        for key, values in {
            "step": ("six", None, float("nan"), 1e12, -1, True, 7),
            "samples": (None, "many", -1),
            "seconds": ("long", None, float("inf"), []),
            "losses": ([1], {"loss": "low"}, {"loss": True}, {"loss": ""}, None),
            "best": ("low", [1], "", [], {}, False),
            "windows": (3, [[1]], [{"loss": 3}], [{"loss": [1, 2, 3]}], [{"loss": ["x", 1]}]),
        }.items()
        for value in values
    },
}
"""Of `state.json`."""
TENSORS: dict[str, Spoil] = {
    "moments of one number": _moments(lambda state: state.update(exp_avg=state["exp_avg"][:1, ...].flatten()[:1])),
    "stretched moments": _moments(lambda state: state.update(exp_avg=torch.zeros(1).expand(state["exp_avg"].shape))),
    "moments that are not finite": _moments(lambda state: state.update(exp_avg_sq=state["exp_avg_sq"] * float("nan"))),
    "moments that are text": _moments(lambda state: state.update(exp_avg="none")),
    "moments that are missing": _moments(lambda state: state.pop("exp_avg")),
    "steps of moments": _moments(lambda state: state.update(step=torch.ones(9))),
    "moments that are no table": _optimizer({"moments": [1], "scaler": {}}),
    "optimizer without moments": _optimizer({}),
    "optimizer that is a list": _optimizer([1, 2]),
    "optimizer that is a tensor": _optimizer(torch.ones(2)),
    "code in the optimizer": _optimizer({"moments": Command()}),
    "average that is not finite": _tensors(EMA, lambda tensor: tensor * float("nan")),
    "average of another shape": _tensors(EMA, lambda tensor: tensor.flatten()[:1].clone()),
    "weights that are infinite": _tensors(MODEL, lambda tensor: tensor / 0),
    "weights of another shape": _tensors(MODEL, lambda tensor: tensor.flatten()[:1].clone()),
    **{f"average: {name}": _file(EMA, make) for name, make in SAFETENSORS.items()},
}
"""Of the tensors in a checkpoint."""
