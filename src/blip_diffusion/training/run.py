"""A training run: its parts, its progress, and its result."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.utils import DistributedDataParallelKwargs, gather_object  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from blip_diffusion.devices import device_of, fastest_dtype
from blip_diffusion.errors import BlipDiffusionError, ConfigError
from blip_diffusion.training.checkpointing import State, Window
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.ema import Ema
from blip_diffusion.training.metric_logger import MetricLogger
from blip_diffusion.training.objective import Objective
from blip_diffusion.training.optim import adamw, adamw_8bit, set_trainable
from blip_diffusion.training.prefetch import Prefetcher

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Data types by mixed precision."""
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Result:
    """Result of a run."""

    step: int
    samples: int
    seconds: float
    """Time spent in training steps, over all resumptions."""
    losses: dict[str, float]
    """The most recently reported means."""
    stopped: Literal["done", "minutes", "signal", "hook", "diverged"]
    """Why the run ended. After a signal nothing is exported, so that the process ends soon."""


class DivergedError(BlipDiffusionError):
    """A loss, gradient or weight that is not finite; `result` is the run's result so far."""

    def __init__(self, sentence: str, result: Result) -> None:
        super().__init__(sentence)
        self.result = result


@dataclass
class Run:
    """A run's parts and progress."""

    objective: Objective
    model: nn.Module  # the objective as wrapped by accelerate
    trainable: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: Ema
    batches: Prefetcher
    accelerator: Accelerator
    config: TrainConfig
    folder: Path
    config_text: str
    clock: "Timing"
    metric_logger: MetricLogger | None = None  # on the main process
    state: State = field(default_factory=State)
    window: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    stopped: Literal["", "minutes", "signal", "hook"] = ""
    save_due: bool = False
    saved: int = -1  # the step of the last checkpoint

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS


@dataclass
class Timing:
    """Wall time in seconds: start, last checkpoint, and durations of a step, a checkpoint and the hooks."""

    start: float = field(default_factory=time.monotonic)
    last_save: float = field(default_factory=time.monotonic)
    step: float = 0.0
    save: float = 0.0
    hooks: float = 0.0
    reported: tuple[int, float] = (0, 0.0)  # samples and seconds at the last report


@contextmanager
def started(
    objective: Objective, batches: Callable[[int], Any], config: TrainConfig, folder: Path, config_text: str
) -> Iterator[Run]:
    """Context manager: set up the run, and clean up on exit."""
    clock = Timing()
    accelerator = _accelerator(config)
    objective = to_training_mode(objective, accelerator.device)
    groups = objective.parameter_groups()
    trainable = set_trainable(objective, groups)
    optimizer = adamw(groups, config.optim)
    model, prepared = accelerator.prepare(objective, optimizer)
    prefetcher = Prefetcher(
        batches,
        accelerator,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        steps=config.steps,
        depth=config.prefetch,
    )
    ema = Ema(trainable, config.ema_decay)
    run = Run(objective, model, trainable, prepared, ema, prefetcher, accelerator, config, folder, config_text, clock)
    try:
        yield run
    finally:
        prefetcher.close()
        if run.metric_logger:
            run.metric_logger.close()
        for patched in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(objective).pop(patched, None)  # accelerate's attributes, with which a second run would not autocast
        accelerator.free_memory()


def to_training_mode(objective: Objective, device: torch.device) -> Objective:
    """Move an objective to a device in its fastest memory format, in training mode.

    On an H100 the small autoencoder's step takes 42 ms in contiguous format and 51 ms in channels last: GroupNorm
    copies channels-last inputs. CPUs are faster in channels last.
    """
    objective = objective.to(device).train()
    if device.type == "cpu":
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # unknown to torch's stub
    return objective


def sdpa_backend(device: torch.device) -> AbstractContextManager[None]:
    """Return a context with the math backend on a CPU: the flash kernel's backward pass is 28 % of a U-Net's step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def accelerate_precision(device: torch.device, config: TrainConfig) -> str:
    """Return accelerate's name of `mixed_precision` on a device."""
    return PRECISIONS[fastest_dtype(device)] if config.mixed_precision == "auto" else config.mixed_precision


def check_possible(config: TrainConfig) -> None:
    """Raise `ConfigError` for a setting that this machine doesn't support."""
    if config.mixed_precision == "fp16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("mixed_precision fp16 needs a GPU; use auto, bf16 or no.")
    if config.optim.eight_bit:
        adamw_8bit()


def _accelerator(config: TrainConfig) -> Accelerator:
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # a second run in one process may use another device or precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.ddp_find_unused_parameters)
    device = device_of(config.device)
    cpu = device.type == "cpu"  # explicit, so that CPU processes use a CPU backend
    accelerator = Accelerator(cpu=cpu, mixed_precision=accelerate_precision(device, config), kwargs_handlers=[unused])
    accelerator.gradient_accumulation_steps = 1  # the loop divides the loss itself, so the environment's value must not
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    return accelerator


def window_totals(run: Run) -> list[Window]:
    """Return sums and counts of the losses since the last report, by process."""
    local = {name: (float(total), count) for name, (total, count) in run.window.items()}
    return cast(list[Window], gather_object([local]))


def window_means(windows: Sequence[Window]) -> dict[str, float]:
    """Return the mean of each loss over all processes."""
    names = list(dict.fromkeys(name for window in windows for name in window))
    parts = {name: [window[name] for window in windows if name in window] for name in names}
    return {name: sum(total for total, _ in part) / sum(count for _, count in part) for name, part in parts.items()}


def result_of(run: Run, stopped: Literal["done", "minutes", "signal", "hook", "diverged"]) -> Result:
    """Return the result of a run that has stopped for a reason."""
    losses = run.state.losses or window_means(window_totals(run))
    return Result(run.state.step, run.state.samples, run.state.seconds, losses, stopped)


def in_time(run: Run, seconds: float = 0.0) -> bool:
    """Return whether there is time for an action of `seconds`, one more step, and a checkpoint."""
    if run.config.minutes is None:
        return True
    clock = run.clock
    return time.monotonic() - clock.start + seconds + clock.step + clock.save <= 60 * run.config.minutes
