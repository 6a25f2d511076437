"""Configuration of the training loop."""

from dataclasses import dataclass, field
from typing import Literal

from blip_diffusion.errors import ConfigError
from blip_diffusion.training.optim import OptimConfig


@dataclass(frozen=True)
class TrainConfig:
    """How long, how often, how precisely."""

    steps: int = 1000
    """Optimizer steps of the whole run; the schedule of the learning rate depends on it."""
    minutes: float | None = None
    """Stop, save and export before this much time has passed since the start of this call. What is to come is taken to
    last as long as its like did last, and hooks for which that leaves no time are passed over."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of every process in one optimizer step."""
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    mixed_precision: Literal["no", "auto", "bf16", "fp16"] = "no"
    """`auto` is what the device computes fastest in: a CPU that must emulate bf16 takes eighty times as long."""
    ema_decay: float = 0.999
    """What the decay of the average warms up to; 0 makes the average equal the weights."""
    log_every: int = 10
    """Steps between reports, which are means over these steps."""
    save_every: int = 1000
    """Steps between checkpoints."""
    save_minutes: float | None = None
    """Minutes between checkpoints, beside `save_every`."""
    sample_every: int = 0
    """Steps between calls of the hooks; 0 for none."""
    keep_last: int = 2
    """How many checkpoints are kept."""
    prefetch: int = 2
    """How many batches a thread prepares ahead; 0 prepares each when it is needed."""
    ddp_find_unused_parameters: bool = False
    """Set it where a step may leave a trained parameter without gradient, on several processes."""
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
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), not {self.ema_decay}.")
