"""Checkpoints that are complete or absent: written under a temporary name, flushed to disk, renamed.

step-00001234/
├── model.safetensors    trainable parameters and buffers
├── ema.safetensors      the average of the parameters
├── optimizer.pt         moments by parameter name; the loss scale of fp16
├── config.toml          the resolved configuration
└── state.json           `State`, and the digests of the files above, to detect damage
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import flush, sha256_of
from blip_diffusion.nn_utils import is_finite
from blip_diffusion.pickles import read_pickle
from blip_diffusion.strict_json import parse_json

MODEL, EMA, OPTIMIZER, CONFIG, STATE = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.pt",
    "config.toml",
    "state.json",
)
PREFIX, UNFINISHED, SUPERSEDED = "step-", ".unfinished-", "superseded-"
REPLACED = f"{UNFINISHED}replaced-"
MAX_COUNT = 2**53
MAX_STATE = 2**24
"""Bytes of `state.json`."""
MAX_LISTED = 6  # differences in one sentence

Window = dict[str, tuple[float, int]]
"""Sum and count of every loss since the last report."""


@dataclass
class State:
    """Progress of a run."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    """Spent in training steps; hooks and saving are not counted."""
    losses: dict[str, float] = field(default_factory=dict)
    """The most recently reported means."""
    best: float | None = None
    """The lowest reported mean of `loss`."""
    windows: list[Window] = field(default_factory=list)
    """Losses that are not reported yet, by process."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint folder, on the CPU."""

    path: Path
    state: State
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    config: str = ""


def name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"{PREFIX}{step:08d}"


def save(checkpoint: Checkpoint, *, keep: int) -> None:
    """Write a checkpoint atomically and remove all but the newest `keep`."""
    path = checkpoint.path
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path.parent)
    unfinished = _unfinished(path)
    try:
        _write(unfinished, checkpoint)
        if path.exists():
            path.rename(path.with_name(f"{REPLACED}{path.name}"))
        unfinished.rename(path)
        flush(path.parent)
        _flush(path.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        with suppress(OSError):
            recover(path.parent)  # an incomplete checkpoint would fill a full disk
        raise CheckpointError(f"The checkpoint {path} can't be written: {error}.") from error
    for old in complete(path.parent)[:-keep]:
        shutil.rmtree(old.rename(_unfinished(old)))


def recover(folder: Path) -> None:
    """Remove what a killed process left in a folder of checkpoints; no process may be writing there.

    A checkpoint that was being replaced when the process died gets its name back.
    """
    for leftover in folder.glob(f"{UNFINISHED}*"):
        name = leftover.name.removeprefix(REPLACED)
        if leftover.name.startswith(REPLACED) and not (folder / name).exists():
            leftover.rename(folder / name)
        else:
            shutil.rmtree(leftover)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{UNFINISHED}{path.name}")


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    (folder / CONFIG).write_text(checkpoint.config, encoding="utf-8")
    for name, tensors in ((MODEL, checkpoint.model), (EMA, checkpoint.ema)):
        save_file(_on_cpu(tensors), folder / name)
        (folder / name).chmod((folder / CONFIG).stat().st_mode)  # of the umask; safetensors makes the file private
    torch.save(checkpoint.optimizer, folder / OPTIMIZER)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    state = json.dumps({**asdict(checkpoint.state), "files": files}, indent=1)
    (folder / STATE).write_text(state, encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU: safetensors refuses tensors that share memory."""
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}


def _unchanged(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def _flush(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first; the rename that named them was atomic."""
    paths = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and path.is_dir()]
    return sorted(paths, key=step_of)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's folder name."""
    return int(path.name.removeprefix(PREFIX))


def latest(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint, or `None` without checkpoints; warn of a damaged one that is skipped.

    Raises:
        CheckpointError: If all are damaged: the run would start again and lose its progress.
    """
    damage = ""
    for path in reversed(complete(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            damage = str(error)
            continue
        if damage:
            warn(f"{damage} The run continues from {path.name}.", stacklevel=2)
        return path
    if damage:
        raise CheckpointError(f"{damage} There is no other: restore it, or remove {folder} to start again.")
    return None


def verify(path: Path) -> State:
    """Return the state of a checkpoint after a check of its digests."""
    try:
        table = _read_state(path / STATE)
        files: dict[str, str] = table.pop("files")
        state = _checked(State(**table), path)
        damaged = [name for name in (MODEL, EMA, OPTIMIZER, CONFIG) if not _unchanged(path / name, files[name])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint, or its {STATE} is damaged: {reason(error)}.") from error
    if damaged:
        raise CheckpointError(f"The checkpoint {path} is damaged: {' and '.join(damaged)} changed or went missing.")
    return state


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a named pipe, for example
        raise ValueError("it is missing")
    if path.stat().st_size > MAX_STATE:
        raise ValueError(f"it has more than {MAX_STATE} bytes")
    return dict(parse_json(path.read_text(encoding="utf-8")))


def _checked(state: State, path: Path) -> State:
    """Return a state. Raises `ValueError` for values of another type, or numbers that no run has."""
    whole = (state.step, state.samples, *(count for window in state.windows for _, count in window.values()))
    best = 0.0 if state.best is None else state.best
    losses = (*state.losses.values(), *(total for one in state.windows for total, _ in one.values()), best)
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT for value in whole):
        raise ValueError("a number of steps, samples or losses is impossible")
    if not all(type(value) in (int, float) for value in (*losses, state.seconds)) or not isfinite(state.seconds):
        raise ValueError("a time or a loss is not a number")
    if path.name.removeprefix(PREFIX).isdecimal() and state.step != step_of(path):
        raise ValueError(f"it is of step {state.step}")
    return state


def load(path: Path) -> Checkpoint:
    """Load a checkpoint after a check of its digests.

    Raises:
        CheckpointError: If it is damaged, or holds weights or averages that are not finite.
    """
    state = verify(path)
    try:
        optimizer = read_pickle(path / OPTIMIZER)
        config = (path / CONFIG).read_text(encoding="utf-8")
        checkpoint = Checkpoint(path, state, load_file(path / MODEL), load_file(path / EMA), dict(optimizer), config)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, LookupError, EOFError) as error:
        raise CheckpointError(f"The checkpoint {path} can't be loaded: {reason(error)}.") from error
    for name, tensors in ((MODEL, checkpoint.model), (EMA, checkpoint.ema)):
        for key, tensor in tensors.items():
            if not is_finite(tensor):
                raise CheckpointError(f"{key} in {path / name} is not finite: resume from an earlier checkpoint.")
    return checkpoint


def supersede(folder: Path, step: int) -> None:
    """Rename the checkpoints after a step, because a resumed run writes them again."""
    for path in complete(folder):
        if step_of(path) > step:
            aside = path.with_name(f"{SUPERSEDED}{path.name}")
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)


def copy_into(target: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: Path) -> None:
    """Copy saved tensors into those of `target` by name. Raises `CheckpointError` if names or shapes differ."""
    differences = [
        *(f"{key} is missing" for key in target if key not in saved),
        *(f"{key[:100]} is unexpected" for key in saved if key not in target),
        *(
            f"{key} has shape {tuple(saved[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in target.items()
            if key in saved and saved[key].shape != tensor.shape
        ),
    ]
    if differences:
        more = f" and {len(differences) - MAX_LISTED} more" if len(differences) > MAX_LISTED else ""
        raise CheckpointError(
            f"{where} was saved by another configuration: {', '.join(differences[:MAX_LISTED])}{more}; resume with "
            f"the settings in {where.parent / CONFIG}."
        )
    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(saved[key])
