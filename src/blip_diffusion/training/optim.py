"""AdamW over an objective's parameter groups, and a learning rate that is a pure function of the step.

The schedule has no state, so a resumed run doesn't restore any.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blip_diffusion.errors import CheckpointError, ConfigError
from blip_diffusion.nn_utils import holds_all_numbers, is_finite
from blip_diffusion.training.objective import ParameterGroup

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's averages of the gradient and of its square."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning-rate schedule.

    The rate of step s is lr · (s + 1) / warmup during the warm-up, then lr, and with `schedule="cosine"` after
    `stable_fraction` of the run lr · (r + (1 - r) (1 + cos π p) / 2) for progress p in [0, 1] and r = `min_lr_ratio`.
    """

    lr: float = 1e-4
    """Learning rate after the warm-up; each group's `lr_scale` multiplies it."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Default of groups; parameters with fewer than two dimensions are never decayed."""
    warmup: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    stable_fraction: float = 0.0
    """Fraction of the run before the cosine starts, in [0, 1)."""
    min_lr_ratio: float = 0.0
    """Final learning rate of the cosine as a fraction of `lr`, in [0, 1]."""
    clip: float = 1.0
    """Gradient norm to clip to; 0: no clipping."""
    fused: bool = True
    """Use the fused kernel on devices that have it."""
    eight_bit: bool = False
    """8-bit moments (Dettmers et al. 2022), a quarter of the memory; needs bitsandbytes."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, not {getattr(self, name)}.")
        for name in ("weight_decay", "warmup", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, not {getattr(self, name)}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must lie in [0, 1), not {self.betas}.")
        if not 0 <= self.stable_fraction < 1:
            raise ConfigError(f"stable_fraction is a fraction of the run in [0, 1), not {self.stable_fraction}.")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"min_lr_ratio is a fraction of lr in [0, 1], not {self.min_lr_ratio}.")


def learning_rate(step: int, config: OptimConfig, total: int) -> float:
    """Return the learning rate of the step after `step` others, in a run of `total`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    start = max(config.warmup, config.stable_fraction * total)
    return config.lr * _cosine((step - start) / max(total - start, 1), config.min_lr_ratio)


def learning_rate_by_time(step: int, elapsed: float, config: OptimConfig) -> float:
    """Return the learning rate of the step after `step` others, at the fraction `elapsed` of the run's time."""
    warmed = min(1.0, (step + 1) / max(config.warmup, 1))
    if config.schedule == "constant":
        return config.lr * warmed
    progress = (elapsed - config.stable_fraction) / (1 - config.stable_fraction)
    return config.lr * warmed * _cosine(progress, config.min_lr_ratio)


def _cosine(progress: float, floor: float) -> float:
    """Return a half cosine from 1 at progress 0 to `floor` at progress 1."""
    progress = min(max(progress, 0.0), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_trainable(module: nn.Module, groups: Sequence[ParameterGroup]) -> dict[str, nn.Parameter]:
    """Make the groups' parameters trainable, in float32, and freeze all others; return them by name."""
    listed = {id(parameter) for group in groups for parameter in group.parameters}
    trainable = {}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(id(parameter) in listed)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            trainable[name] = parameter
    _check_groups(groups, len(trainable))
    return trainable


def _check_groups(groups: Sequence[ParameterGroup], registered: int) -> None:
    listed = [id(parameter) for group in groups for parameter in group.parameters]
    if not listed:
        raise ValueError("parameter_groups() names no parameter, so there is nothing to train")
    if len(listed) != len(set(listed)):
        raise ValueError("parameter_groups() names a parameter twice")
    if len(listed) != registered:
        raise ValueError(f"parameter_groups() names {len(listed)} parameters, of which the module has {registered}")


def adamw(groups: Sequence[ParameterGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW, with the learning-rate scale of each group under the key `scale`."""
    options = list(_options(groups, config.weight_decay))
    common: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.eight_bit:
        return adamw_8bit()(options, **common)
    parameters = [parameter for group in groups for parameter in group.parameters]
    fused = config.fused and all(parameter.device.type in ("cuda", "cpu") for parameter in parameters)
    return torch.optim.AdamW(options, fused=fused, **common)


def adamw_8bit() -> type[torch.optim.Optimizer]:
    """Return the optimizer's class. Raises `ConfigError` if bitsandbytes is not installed."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "8-bit Adam needs bitsandbytes: pip install bitsandbytes, or set eight_bit to false."
        ) from error
    kind: type[torch.optim.Optimizer] = AdamW8bit
    return kind


def _options(groups: Sequence[ParameterGroup], default_decay: float) -> Iterator[dict[str, Any]]:
    for group in groups:
        decay = default_decay if group.weight_decay is None else group.weight_decay
        for parameters, weight_decay in (
            ([parameter for parameter in group.parameters if parameter.ndim > 1], decay),
            ([parameter for parameter in group.parameters if parameter.ndim <= 1], 0.0),
        ):
            if parameters:
                yield {"params": parameters, "scale": group.lr_scale, "weight_decay": weight_decay}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def skip_unless_finite(optimizer: torch.optim.Optimizer, norms: Tensor) -> Tensor:
    """Let a fused optimizer's next step change nothing if a gradient norm is not finite, without synchronisation.

    Args:
        optimizer: AdamW. Only its fused kernel reads the flag, which `GradScaler` sets in the same way.
        norms: Norms (G,) of the gradients.

    Returns:
        1 if a norm is not finite, else 0, as a scalar on the device of the norms.
    """
    found = (~norms.isfinite().all()).float()
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = found  # type: ignore[attr-defined]
    return found


def optimizer_state_by_name(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Return the optimizer's state by parameter name, without hyperparameters."""
    return {name: dict(optimizer.state[value]) for name, value in trainable.items() if value in optimizer.state}


def load_optimizer_state(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], saved: Any) -> None:
    """Restore the state that `optimizer_state_by_name` returned; torch moves and casts it.

    Raises:
        CheckpointError: If it is not a table of moments with the shapes of these parameters.
    """
    _check_moments(trainable, saved)
    names = {id(parameter): name for name, parameter in trainable.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: saved[name] for number, name in enumerate(order) if name in saved}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_moments(trainable: Mapping[str, nn.Parameter], saved: Any) -> None:
    """Raise `CheckpointError` unless shapes match: a fused optimizer writes beyond smaller moments."""
    if not isinstance(saved, Mapping) or not all(isinstance(state, Mapping) for state in saved.values()):
        raise CheckpointError("The optimizer's state in the checkpoint is not a table of moments: it is damaged.")
    for name, state in saved.items():
        if name not in trainable:
            raise CheckpointError(f"The checkpoint has moments of {str(name)[:200]!r}, which is not trained.")
        needed = () if "state1" in state or not state else (*MOMENTS, "step")  # the 8-bit form has others
        for key, value in {**dict.fromkeys(needed), **state}.items():
            if not _is_moment(value, None if key not in MOMENTS else trainable[name].shape, scalar=key == "step"):
                raise CheckpointError(
                    f"The checkpoint's {key} of {name!r} doesn't fit the parameter or isn't finite: it is damaged."
                )


def _is_moment(value: Any, shape: torch.Size | None, *, scalar: bool) -> bool:
    """Return whether a value is a whole tensor of finite numbers, of a shape if one is given, or one number."""
    if not isinstance(value, Tensor):
        return shape is None and isinstance(value, int | float) and math.isfinite(value)
    right = value.numel() == 1 if scalar else shape in (None, value.shape)
    return right and holds_all_numbers(value) and is_finite(value)
