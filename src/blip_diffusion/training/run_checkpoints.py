"""Checkpoints of a run: when one is due, its contents, and how a run resumes from it."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip_diffusion.errors import CheckpointError
from blip_diffusion.escaping import warn
from blip_diffusion.training import checkpointing
from blip_diffusion.training.checkpointing import Checkpoint, Window
from blip_diffusion.training.metric_logger import MetricLogger
from blip_diffusion.training.optim import load_optimizer_state, optimizer_state_by_name
from blip_diffusion.training.run import DivergedError, Run, result_of, window_totals


def resume_run(run: Run, resume: bool | str | Path) -> None:
    """Restore a checkpoint; refuse to start over an existing run, and warn if there is nothing to continue."""
    existing = checkpointing.complete(run.checkpoints)
    if existing and not resume:
        last = existing[-1].name
        raise CheckpointError(f"{run.folder} already holds a run, up to {last}; resume it or name another folder.")
    given = None if isinstance(resume, bool) or resume == "latest" else Path(resume)
    if path := given or checkpointing.latest(run.checkpoints):
        _restore(run, checkpointing.load(path))
    if resume and run.accelerator.is_main_process:
        _warn_of_nothing_to_resume(run)
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        if resume:
            checkpointing.supersede(run.checkpoints, run.state.step)
        run.metric_logger = MetricLogger(
            run.folder, start=run.state.step, steps=run.config.steps, tensorboard=run.config.tensorboard
        )


def _warn_of_nothing_to_resume(run: Run) -> None:
    if run.saved <= 0:
        warn(f"{run.folder} holds no checkpoint: the run starts from the beginning.", stacklevel=4)
    elif run.state.step >= run.config.steps:
        warn(f"{run.folder} is trained already, {run.state.step} steps: only its result is written.", stacklevel=4)


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    checkpointing.copy_into(_weights(run), checkpoint.model, checkpoint.path / checkpointing.MODEL)
    if run.ema.decay:  # with a decay of 0, the saved average would overwrite the weights
        checkpointing.copy_into(run.ema.state_dict(), checkpoint.ema, checkpoint.path / checkpointing.EMA)
    load_optimizer_state(run.optimizer, run.trainable, checkpoint.optimizer.get("moments"))
    if run.accelerator.scaler is not None and checkpoint.optimizer.get("scaler"):
        run.accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
    run.state, run.saved = checkpoint.state, checkpoint.state.step
    run.window = _local_window(run, checkpoint.state.windows)
    run.clock.reported = (run.state.samples, run.state.seconds)


def _local_window(run: Run, windows: Sequence[Window]) -> dict[str, tuple[Tensor, int]]:
    """Return this process's part of the losses not yet reported; windows of additional processes are distributed."""
    rank, processes = run.accelerator.process_index, run.accelerator.num_processes
    local: dict[str, tuple[Tensor, int]] = {}
    for number, window in enumerate(windows):
        if number % processes == rank:
            for name, (total, count) in window.items():
                sum_before, count_before = local.get(name, (torch.zeros((), device=run.accelerator.device), 0))
                local[name] = (sum_before + total, count_before + count)
    return local


def _weights(run: Run) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: trainable parameters and persistent buffers."""
    persistent = run.objective.state_dict().keys()
    buffers = {name: buffer for name, buffer in run.objective.named_buffers() if name in persistent}
    return {**run.trainable, **buffers}


def save_if_due(run: Run) -> None:
    """Write a checkpoint at the steps and times of the configuration, and at the end."""
    step = run.state.step
    if run.save_due or run.stopped or step % run.config.save_every == 0 or step == run.config.steps:
        _save(run)


def _save(run: Run) -> None:
    """Write a checkpoint on the main process, unless its weights are not finite."""
    began = time.monotonic()
    run.state.windows = window_totals(run)
    if not torch.stack(torch._foreach_norm(list(run.trainable.values()))).isfinite().all():
        sentence = f"The weights are not finite after step {run.state.step}, and were not saved."
        raise DivergedError(sentence, result_of(run, "diverged"))
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler.state_dict() if run.accelerator.scaler is not None else {}
        optimizer = {"moments": optimizer_state_by_name(run.optimizer, run.trainable), "scaler": scaler}
        path = run.checkpoints / checkpointing.name(run.state.step)
        checkpointing.save(
            Checkpoint(path, run.state, _weights(run), run.ema.state_dict(), optimizer, run.config_text),
            keep=run.config.keep_last,
        )
    run.accelerator.wait_for_everyone()
    run.saved = run.state.step
    run.clock.last_save = time.monotonic()
    run.clock.save = run.clock.last_save - began
