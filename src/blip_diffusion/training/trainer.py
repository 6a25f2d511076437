"""The training loop: accumulate, clip, step, average, report, save, resume and stop, for any objective.

A step is a pure function of the configuration, the weights and the step's number: the index of a micro-batch determines
its data and its random numbers. So a checkpoint holds no data state, and a resumed run equals an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip_diffusion.fileio import atomic_dir
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.ema import Ema
from blip_diffusion.training.metric_logger import MetricLogger
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.optim import learning_rate
from blip_diffusion.training.run import (
    Result,
    Run,
    check_possible,
    in_time,
    result_of,
    sdpa_backend,
    started,
    window_means,
    window_totals,
)
from blip_diffusion.training.run_checkpoints import resume_run, save_if_due
from blip_diffusion.training.signals import signals
from blip_diffusion.training.step import train_step

EXPORT = "export"


@dataclass(frozen=True)
class HookContext:
    """Argument of a hook: the objective in eval mode with averaged weights, without gradient."""

    step: int
    objective: Any
    metric_logger: MetricLogger
    ema: Ema
    """`with context.ema.swapped()` restores the raw weights within the block."""
    seconds: float = 0.0
    """Time spent in training steps so far."""


Hook = Callable[[HookContext], bool | None]
"""Called on the main process every `sample_every` steps if `minutes` leave time; its time is not counted as training.

If it returns `True`, the run ends."""


def fit(
    objective: Objective,
    batches: Callable[[int], Any],
    config: TrainConfig,
    *,
    folder: Path,
    resume: bool | str | Path = False,
    hooks: Sequence[Hook] = (),
    config_text: str = "",
) -> Result:
    """Train an objective for `config.steps` optimizer steps and export its averaged weights to `folder/export`.

    Optimizer step s, micro-batch a of process r takes the batch of index
    (s * gradient_accumulation_steps + a) * processes + r. A checkpoint therefore holds no data state, and on a CPU a
    resumed run equals an uninterrupted one bit for bit.

    Args:
        objective: The module whose forward pass is the loss. It is put in training mode once; one that keeps a frozen
            part in eval mode overrides `train`.
        batches: A pure function of an index. It is called from a thread if `config.prefetch` is above 0.
        config: Duration, precision, reports, checkpoints and optimizer.
        folder: Where checkpoints, logs, samples and the export are written.
        resume: `True` or `"latest"` continues from the newest undamaged checkpoint in `folder`, or starts with a
            warning if there is none; a path continues from that checkpoint.
        hooks: Called every `config.sample_every` steps on the main process with the averaged weights.
        config_text: The TOML of the run, saved with each checkpoint.

    Returns:
        The step that was reached, the number of samples, the seconds spent and why the run stopped.

    Raises:
        ConfigError: If this machine doesn't support a setting.
        CheckpointError: If `folder` holds a run and `resume` is false, or if a checkpoint cannot be loaded.
        DivergedError: If a loss, a gradient or a weight is not finite.

    Example:
        >>> fit(objective, sampler, TrainConfig(steps=1000), folder=Path("runs/mine"), resume="latest")
    """
    check_possible(config)
    with (
        started(objective, batches, config, folder, config_text) as run,
        signals() as arrived,
        sdpa_backend(run.accelerator.device),
    ):
        resume_run(run, resume)
        if run.saved > 0:
            _run_hooks(run, hooks)  # a signal may have ended the run before this step's hooks
        while run.state.step < config.steps and not run.stopped:
            train_step(run, stop=arrived.is_set)
            _report(run)
            save_if_due(run)
            _run_hooks(run, hooks)
        return _finish(run)


def _report(run: Run) -> None:
    """Log the means over all processes since the last report, every `log_every` steps and at the end."""
    step, config = run.state.step, run.config
    if step % config.log_every and step != config.steps:
        return
    means = window_means(window_totals(run))
    run.window = {}
    run.state.losses = means
    run.state.best = min(means["loss"], math.inf if run.state.best is None else run.state.best)
    if run.metric_logger:
        run.metric_logger.log(step, {**means, **_progress(run)})
    run.clock.reported = (run.state.samples, run.state.seconds)


def _progress(run: Run) -> dict[str, float]:
    samples, seconds = run.clock.reported
    speed = (run.state.samples - samples) / max(run.state.seconds - seconds, 1e-9)
    per_step = run.state.samples / run.state.step
    return {
        "lr": learning_rate(run.state.step - 1, run.config.optim, run.config.steps),
        "samples": run.state.samples,
        "seconds": run.state.seconds,
        "samples_per_second": speed,
        "eta": (run.config.steps - run.state.step) * per_step / speed,
    }


def _run_hooks(run: Run, hooks: Sequence[Hook]) -> None:
    """Call the hooks with the averaged weights, if there is time for it; they may end the run."""
    if run.stopped or not hooks or not run.config.sample_every or run.state.step % run.config.sample_every:
        return
    stop = False
    if run.metric_logger and in_time(run, run.clock.hooks):
        began = time.monotonic()
        context = HookContext(run.state.step, run.objective, run.metric_logger, run.ema, run.state.seconds)
        with _evaluation_mode(run):
            for hook in hooks:
                stop = bool(hook(context)) or stop
        run.clock.hooks = time.monotonic() - began
    flag = torch.tensor(float(stop), device=run.accelerator.device)
    if run.accelerator.reduce(flag, "sum") > 0:  # other processes wait here for the main one
        run.stopped = "hook"


def _finish(run: Run) -> Result:
    """Export the averaged weights, except after a signal."""
    if run.stopped != "signal" and run.accelerator.is_main_process:
        with _evaluation_mode(run), atomic_dir(run.folder / EXPORT) as partial:
            run.objective.export(partial)
    run.accelerator.wait_for_everyone()
    return result_of(run, run.stopped or "done")


@contextmanager
def _evaluation_mode(run: Run) -> Iterator[None]:
    """Switch the objective to averaged weights, eval mode and no gradient."""
    modes = [(module, module.training) for module in run.objective.modules()]
    run.objective.eval()
    try:
        with run.ema.swapped(), torch.no_grad(), run.accelerator.autocast():
            yield
    finally:
        for module, training in modes:
            module.training = training
