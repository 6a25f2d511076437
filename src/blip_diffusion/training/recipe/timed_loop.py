"""The training loop of a phase: it lasts a given time, and resumes from its newest checkpoint."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import check_writable, locked_run
from blip_diffusion.training import checkpointing
from blip_diffusion.training.checkpointing import Checkpoint, State
from blip_diffusion.training.ema import Ema
from blip_diffusion.training.metric_logger import MetricLogger
from blip_diffusion.training.objective import Losses, Objective, StepContext
from blip_diffusion.training.optim import (
    adamw,
    learning_rate_by_time,
    load_optimizer_state,
    optimizer_state_by_name,
    set_learning_rate,
    set_trainable,
    skip_unless_finite,
)
from blip_diffusion.training.recipe.config import PhaseConfig
from blip_diffusion.training.recipe.cuda_graph import Step, make_step
from blip_diffusion.training.recipe.packing import Rows
from blip_diffusion.training.run import DivergedError, Result, sdpa_backend, to_training_mode
from blip_diffusion.training.signals import signals

MAX_MINUTES = 100_000
NextRows = Callable[[float, torch.Generator], Rows]
"""The fraction of the phase's time that has passed, and a random generator, to the rows of the next step."""


@dataclass(frozen=True)
class Settings:
    """Settings that all phases share."""

    device: torch.device
    seed: int = 0
    lr_scale: float = 1.0
    log_every: int = 100
    save_minutes: float = 5.0
    cuda_graphs: bool = False
    compile: bool = False  # the kernels of the CUDA graphs, by torch.compile


class PhaseLoop:
    """Training of an objective for some seconds, with `folder/checkpoints` and `folder/log.jsonl`."""

    def __init__(
        self, objective: Objective, next_rows: NextRows, config: PhaseConfig, settings: Settings, folder: Path
    ) -> None:
        self.objective = to_training_mode(objective, settings.device)
        self.groups = objective.parameter_groups()
        self.trainable = set_trainable(objective, self.groups)
        self.optimizer = adamw(self.groups, config.optim)
        self.ema = Ema(self.trainable, config.ema_decay)
        self.next_rows, self.config, self.settings, self.folder = next_rows, config, settings, folder
        self.state = State()
        self.rng = torch.Generator(settings.device).manual_seed(settings.seed)
        self._step: Step | None = None
        self._shapes: Mapping[str, torch.Size] = {}
        self._saved, self._saved_step = time.monotonic(), -1
        self._skipped = torch.zeros((), device=settings.device)  # steps since the last report

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    def resume(self) -> None:
        """Continue from the newest undamaged checkpoint, if there is one."""
        path = checkpointing.latest(self.checkpoints)
        if path is None:
            return
        checkpoint = checkpointing.load(path)
        checkpointing.copy_into(self._model_state(), checkpoint.model, path)
        checkpointing.copy_into(self.ema.state_dict(), checkpoint.ema, path)
        load_optimizer_state(self.optimizer, self.trainable, checkpoint.optimizer)
        self.state, self._saved_step = checkpoint.state, checkpoint.state.step
        self.rng.manual_seed(self.settings.seed + self.state.step)  # not the same random numbers again

    def run(self, seconds: float) -> State:
        """Train until the phase has lasted `seconds`, over all calls. Raises `KeyboardInterrupt` after a signal."""
        start, before = time.monotonic(), self.state.seconds
        with (
            signals() as arrived,
            sdpa_backend(self.settings.device),
            MetricLogger(self.folder, start=self.state.step) as logger,
        ):
            while self.state.seconds < seconds:
                losses = self._train_step(self.state.seconds / seconds)
                self.state.seconds = before + time.monotonic() - start
                if self.state.step % self.settings.log_every == 0:
                    self._report(losses, logger)
                if arrived.is_set():
                    self.save()
                    raise KeyboardInterrupt
                if time.monotonic() - self._saved > 60 * self.settings.save_minutes:
                    self.save()
        self.save()
        return self.state

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        if self.state.step == self._saved_step:
            return
        checkpointing.save(
            Checkpoint(
                self.checkpoints / checkpointing.name(self.state.step),
                self.state,
                self._model_state(),
                self.ema.state_dict(),
                optimizer_state_by_name(self.optimizer, self.trainable),
            ),
            keep=1,
        )
        self._saved, self._saved_step = time.monotonic(), self.state.step

    def _train_step(self, elapsed: float) -> Losses:
        rows = self.next_rows(elapsed, self.rng)
        losses = self._step_for(rows)(rows)
        norms = [
            nn.utils.clip_grad_norm_(group.parameters, self.config.optim.clip or math.inf) for group in self.groups
        ]
        self._skipped += skip_unless_finite(self.optimizer, torch.stack(norms))
        rate = learning_rate_by_time(self.state.step, elapsed, self.config.optim)
        set_learning_rate(self.optimizer, rate * self.settings.lr_scale)
        self.optimizer.step()
        self.ema.update(self.state.step)
        self.state.step += 1
        self.state.samples += len(next(iter(rows.values())))
        return losses

    def _step_for(self, rows: Rows) -> Step:
        """Return the step for rows of these shapes; a graph is captured again when they change."""
        shapes = {name: value.shape for name, value in rows.items()}
        if self._step is None or shapes != self._shapes:
            self._step, self._shapes = None, shapes  # free the old graph's memory first
            parameters = list(self.trainable.values())
            self._step = make_step(
                self._losses, parameters, rows, graph=self.settings.cuda_graphs, compiled=self.settings.compile
            )
        return self._step

    def _losses(self, rows: Rows) -> Losses:
        return self.objective(rows, StepContext(self.state.step, self.rng))

    def _report(self, losses: Losses, logger: MetricLogger) -> None:
        """Log the losses of the last step and the number of skipped steps. Only this synchronises with the device.

        Raises:
            DivergedError: If most of the steps since the last report were skipped.
        """
        values = {name: float(value) for name, value in losses.items()}
        self.state.losses, skipped = values, int(self._skipped)
        if skipped > self.settings.log_every / 2:
            result = Result(self.state.step, self.state.samples, self.state.seconds, values, "diverged")
            raise DivergedError(
                f"The loss is {values['loss']} at step {self.state.step}, and {skipped} of the last "
                f"{self.settings.log_every} steps had a gradient that is not finite: lower the learning rate.",
                result,
            )
        self._skipped.zero_()
        speed = self.state.samples / max(self.state.seconds, 1e-9)
        logger.log(self.state.step, {**values, "skipped": float(skipped), "samples_per_second": speed})

    def _model_state(self) -> dict[str, torch.Tensor]:
        """Return trainable parameters, and the buffers that training changes."""
        buffers = dict(self.objective.named_buffers(recurse=False))
        return {**{name: value.detach() for name, value in self.trainable.items()}, **buffers}


def check_minutes(minutes: float) -> None:
    """Raise `InputError` unless a training time can be used."""
    if not 0 < minutes <= MAX_MINUTES:
        raise InputError(f"--minutes is {minutes:g}: use a number above 0, up to {MAX_MINUTES}.")


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Context manager: no other process writes a run to this folder, and partial files of killed ones are removed.

    Warns if `resume` is set and the folder holds no checkpoint.

    Raises:
        CheckpointError: If the folder holds a run and `resume` is false.
        InputError: If nothing can be written there, or another process writes there.
    """
    check_writable(folder)
    with locked_run(folder):
        for place in folder.glob("*/checkpoints"):
            checkpointing.recover(place)
        existing = any(folder.glob("*/checkpoints/step-*"))
        if resume and not existing:
            warn(f"{folder} holds no checkpoint: the run starts from the beginning.", stacklevel=4)
        if existing and not resume:
            raise CheckpointError(f"{folder} holds a run: continue it with --resume, or choose another --out.")
        yield
