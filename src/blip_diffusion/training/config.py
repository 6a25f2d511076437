"""Configuration of the training loop."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from blip_diffusion.errors import ConfigError
from blip_diffusion.training.optim import OptimConfig


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop: duration, reports, checkpoints and precision.

    Example:
        >>> TrainConfig(steps=12500, minutes=60, mixed_precision="auto", optim=OptimConfig(lr=9e-4))
    """

    steps: int = 1000
    """Optimizer steps of the whole run; the schedule of the learning rate depends on it."""
    minutes: float | None = None
    """Stop, save and export within this time from the start of the call. The next step, checkpoint and hooks are
    assumed to take as long as the last ones; hooks that would exceed the time are skipped."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of every process in one optimizer step."""
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    mixed_precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    """`auto` chooses the device's fastest type: bf16 that a CPU has to emulate takes eighty times as long."""
    ema_decay: float = 0.999
    """Final decay of the weight average, after a warm-up; 0 disables averaging."""
    log_every: int = 10
    """Steps between reports of the mean losses over these steps."""
    save_every: int = 1000
    """Steps between checkpoints."""
    save_minutes: float | None = None
    """Minutes between checkpoints, in addition to `save_every`."""
    sample_every: int = 0
    """Steps between calls of the hooks; 0 for none."""
    keep_last: int = 2
    """Number of checkpoints to keep."""
    prefetch: int = 2
    """Batches that a thread prepares in advance; 0: none."""
    ddp_find_unused_parameters: bool = False
    """Required with several processes if a trainable parameter may get no gradient in a step."""
    tensorboard: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "gradient_accumulation_steps", "log_every", "save_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("sample_every", "prefetch", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, but is {getattr(self, name)}.")
        for name in ("minutes", "save_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < inf:
                raise ConfigError(f"{name} must be positive and finite, not {value}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), not {self.ema_decay}.")
